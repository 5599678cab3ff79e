// One line of the kernel benchmark: a kernel beside the limit that binds it, measured alternately.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <new>
#include <string>
#include <vector>

#include "kernels/nf4.h"
#include "kernels/parallel.h"
#include "kernels/tables.h"

namespace nibble::kernels::bench {

// Arrays begin at a cache line, as a plan places them: stores across two lines cost twice as much.
template <typename T>
struct OnLines {
  using value_type = T;
  OnLines() = default;
  template <typename U>
  explicit OnLines(const OnLines<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t{64})); }
  void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t{64}); }
  bool operator==(const OnLines&) const { return true; }
};
template <typename T>
using Array = std::vector<T, OnLines<T>>;

struct Options {
  std::string body{CpuTable().body};
  int threads = 1;
  int64_t tokens = 512;
  bool json = false;
  std::string filter;
};

// What a kernel cannot be faster than: products from registers, copying memory larger than the caches,
// reading it, or storing into the second-level cache.
enum class Limit { kProducts, kCopy, kRead, kStore };

class Bench {
 public:
  explicit Bench(const Options& options);

  // `work` is operations (products) or bytes of one call.
  void Line(const std::string& kernel, const std::string& shape, double work, Limit limit,
            const std::function<void()>& run);
  // Whether any of these lines is wanted, so that their arrays are worth making.
  bool Wants(std::initializer_list<const char*> kernels, const std::string& shape) const;

  Context* context() { return &context_; }
  const KernelTable& table() const { return table_; }
  int64_t tokens() const { return options_.tokens; }

 private:
  double Now() const;
  double Rate(Limit limit) const;

  Options options_;
  const KernelTable& table_;
  ThreadPool pool_;
  Array<char> workspace_;
  Context context_;
};

// bf16 values of all magnitudes around one.
Array<uint16_t> Activations(int64_t count);

// A weight of random codes: in tiles, as a cache file has it, where they suit.
struct RandomWeight {
  RandomWeight(QuantType type, int64_t n, int64_t k);
  // Bytes of one reading.
  double Bytes() const;
  Array<uint8_t> codes, scales;
  std::vector<float> nested;
  WeightView view;
};

}  // namespace nibble::kernels::bench

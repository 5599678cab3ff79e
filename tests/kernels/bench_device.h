// What nibble-bench-cuda measures with: a device's memory, its limits, and lines of results.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace nibble::kernels::bench {

struct DeviceOptions {
  CudaOptions device;
  int64_t tokens = 16384;
  bool small = false;
  std::string json, filter;
  int skip = 0;  // of the lines that the filter wants, so many first ones
};

class DeviceBench {
 public:
  // Measures the limits: copying, and the vendor's product of two large matrices.
  DeviceBench(const DeviceOptions& options, Backend* backend);

  // Device memory that lives until the next Clear, filled with activations. Stops the program when there is
  // not enough.
  void* Array(int64_t bytes);
  void* Act(int64_t count) { return Array(2 * count); }
  template <typename T>
  T* Copied(const std::vector<T>& values) {
    const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
    void* to = Array(bytes);
    backend_->CopyIn(Lane::kCompute, to, values.data(), bytes);
    return static_cast<T*>(to);
  }
  void Clear();

  // Measures and prints a line, when the filter wants it, and writes all there are so far. `work` of one call
  // is operations (products) or bytes. Bytes are held against copying as many, where that is slower than
  // copying very many: what is small waits for its start.
  void Report(const std::string& kernel, const std::string& shape, double work, bool products,
              const std::function<void()>& run);

  // All lines as JSON, when a file was asked for; false when it cannot be written.
  bool Write() const;

  const KernelTable& table() const { return backend_->table(); }
  Context* context() { return &backend_->context(); }
  int64_t tokens() const { return options_.tokens; }
  bool small() const { return options_.small; }

 private:
  struct Line {
    std::string kernel, shape, unit;
    double milliseconds, figure, limit, work;
  };

  void FillPattern();
  void MeasureLimits();
  double CopyRate(double bytes);  // read plus written
  double Seconds(const std::function<void()>& run);

  const DeviceOptions options_;
  Backend* backend_;
  void* pattern_ = nullptr;
  int64_t pattern_bytes_ = 0;
  double copy_rate_ = 1, product_rate_ = 1;  // bytes, operations per second
  std::map<int64_t, double> copy_rates_;            // of fewer bytes
  std::vector<void*> arrays_;
  std::vector<Line> lines_;
  int skipped_ = 0;
};

}  // namespace nibble::kernels::bench

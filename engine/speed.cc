#include "engine/speed.h"

#include <algorithm>
#include <chrono>
#include <cstddef>

#include "engine/region.h"
#include "engine/spec/workspace.h"

namespace nibble::engine {
namespace {

constexpr int64_t kBlock = 64;
constexpr int64_t kAlignment = 256;
constexpr double kLongEnoughS = 1e-3;  // of one call: far above what starting it costs
constexpr double kTotalS = 0.05;

struct Size {
  int64_t m, k, n;
};
// From what an emulated device can do to what fills a large one.
constexpr Size kSizes[] = {{32, 256, 256}, {256, 1024, 1024}, {1024, 2048, 2048}, {4096, 4096, 4096}};

// Operands of one size, all zero: what is multiplied does not matter.
class Probe {
 public:
  Probe(kernels::Backend& backend, const spec::DeviceProfile& profile, const Size& size)
      : backend_(backend), size_(size) {
    const int64_t act = kernels::DTypeBytes(backend.table().act);
    const int64_t workspace_bytes =
        spec::WorkspaceBytes(spec::Op::kLinearForward, {.m = size.m, .k = size.k, .n = size.n}, profile);
    int64_t bytes = 0;
    const auto take = [&](int64_t wanted) {
      const int64_t at = bytes;
      bytes += (wanted + kAlignment - 1) / kAlignment * kAlignment;
      return at;
    };
    const int64_t x = take(size.m * size.k * act);
    const int64_t y = take(size.m * size.n * act);
    const int64_t codes = take(size.n * size.k / 2);
    const int64_t absmax = take(size.n * size.k / kBlock * 4);
    const int64_t book = take(16 * 4);
    const int64_t workspace = take(workspace_bytes);
    auto region = Region::On(backend, bytes);
    if (!region.ok()) return;
    region_ = *std::move(region);
    if (!region_.Map(bytes).ok()) return;
    std::byte* const data = region_.data();
    backend.Fill(data, 0, bytes);
    x_ = data + x;
    y_ = data + y;
    args_.m = size.m;
    args_.w.n = size.n;
    args_.w.k = size.k;
    args_.w.block = kBlock;
    args_.w.data = data + codes;
    args_.w.absmax = reinterpret_cast<const float*>(data + absmax);
    args_.w.code_book = reinterpret_cast<const float*>(data + book);
    backend.context().workspace = data + workspace;
    backend.context().workspace_bytes = workspace_bytes;
  }
  ~Probe() {
    backend_.context().workspace = nullptr;
    backend_.context().workspace_bytes = 0;
  }
  Probe(const Probe&) = delete;
  Probe& operator=(const Probe&) = delete;

  // Seconds for so many calls; negative when there is no memory or the device fails.
  double Seconds(int64_t calls) {
    if (x_ == nullptr) return -1;
    const auto begin = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < calls; ++i)
      backend_.table().linear_forward(&backend_.context(), y_, x_, args_);
    if (!backend_.Synchronize()) return -1;
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  double Flops() const {
    return 2 * static_cast<double>(size_.m) * static_cast<double>(size_.k) * static_cast<double>(size_.n);
  }

 private:
  kernels::Backend& backend_;
  const Size size_;
  Region region_;
  std::byte* x_ = nullptr;
  std::byte* y_ = nullptr;
  kernels::LinearArgs args_;
};

}  // namespace

int64_t MeasureLinearMflopPerS(kernels::Backend& backend, const spec::DeviceProfile& profile) {
  double flop_per_s = 0;
  for (const Size& size : kSizes) {
    Probe probe(backend, profile, size);
    if (probe.Seconds(1) < 0) break;  // the first call also loads its code
    const double one_s = probe.Seconds(1);
    if (one_s < 0) break;
    flop_per_s = probe.Flops() / std::max(one_s, 1e-9);
    if (one_s < kLongEnoughS) continue;
    const auto calls = static_cast<int64_t>(kTotalS / one_s);
    const double many_s = calls > 1 ? probe.Seconds(calls) : -1;
    if (many_s > 0) flop_per_s = probe.Flops() * static_cast<double>(calls) / many_s;
    break;
  }
  return static_cast<int64_t>(flop_per_s / 1e6);
}

}  // namespace nibble::engine

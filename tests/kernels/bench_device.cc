#include "tests/kernels/bench_device.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "kernels/counter.h"

namespace nibble::kernels::bench {

DeviceBench::DeviceBench(const DeviceOptions& options, Backend* backend)
    : options_(options), backend_(backend) {
  FillPattern();
  const int64_t workspace_bytes = int64_t{options.small ? 96 : 1536} << 20;
  backend->context().workspace = backend->Allocate(workspace_bytes);
  backend->context().workspace_bytes = workspace_bytes;
  MeasureLimits();
}

// Random bits near 1, so that the device draws the power that real numbers make it draw.
void DeviceBench::FillPattern() {
  std::vector<uint16_t> pattern(size_t{1} << 19);
  const bool fp16 = table().act == DType::kF16;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const uint64_t bits = CounterBits(1, 2, i);
    pattern[i] = static_cast<uint16_t>(fp16 ? (bits & 0x83FF) | 0x3400 : (bits & 0x80FF) | 0x3E80);
  }
  pattern_bytes_ = static_cast<int64_t>(pattern.size()) * 2;
  pattern_ = backend_->Allocate(pattern_bytes_);
  backend_->CopyIn(Lane::kCompute, pattern_, pattern.data(), pattern_bytes_);
}

void* DeviceBench::Array(int64_t bytes) {
  void* to = backend_->Allocate(bytes);
  if (to == nullptr) {
    std::fprintf(stderr, "no room for %lld bytes on the device; try fewer --tokens\n",
                 static_cast<long long>(bytes));
    std::exit(1);
  }
  arrays_.push_back(to);
  for (int64_t at = 0; at < bytes; at += pattern_bytes_)
    backend_->CopyWithin(Lane::kCompute, static_cast<char*>(to) + at, pattern_,
                         std::min(pattern_bytes_, bytes - at));
  return to;
}

void DeviceBench::Clear() {
  backend_->Synchronize();
  for (void* array : arrays_) backend_->Release(array);
  arrays_.clear();
}

void DeviceBench::Report(const std::string& kernel, const std::string& shape, double work, bool products,
                         const std::function<void()>& run) {
  if ((kernel + " " + shape).find(options_.filter) == std::string::npos) return;
  if (skipped_ < options_.skip) {
    ++skipped_;
    return;
  }
  const double seconds = Seconds(run), unit = products ? 1e-12 : 1e-9;
  const Line line{kernel,
                  shape,
                  products ? "TFLOP/s" : "GB/s",
                  seconds * 1e3,
                  work / seconds * unit,
                  (products ? product_rate_ : CopyRate(work)) * unit,
                  work};
  std::printf("%-22s %-34s %9.3f ms %9.1f %-7s of %7.1f %5.1f%%\n", kernel.c_str(), shape.c_str(),
              line.milliseconds, line.figure, line.unit.c_str(), line.limit, 100 * line.figure / line.limit);
  std::fflush(stdout);
  lines_.push_back(line);
  Write();  // the next one may be the end of this process
}

bool DeviceBench::Write() const {
  if (options_.json.empty()) return true;
  std::FILE* file = std::fopen(options_.json.c_str(), "w");
  if (file == nullptr) return false;
  std::fprintf(file,
               "{\"body\": \"%s\", \"tokens\": %lld, \"copy_bytes_per_second\": %.6g, "
               "\"product_operations_per_second\": %.6g, \"lines\": [",
               table().body, static_cast<long long>(tokens()), copy_rate_, product_rate_);
  for (size_t i = 0; i < lines_.size(); ++i) {
    const Line& line = lines_[i];
    std::fprintf(file,
                 "%s\n  {\"kernel\": \"%s\", \"shape\": \"%s\", \"milliseconds\": %.6g, \"figure\": %.6g, "
                 "\"unit\": \"%s\", \"limit\": %.6g, \"work\": %.6g, \"share\": %.4f}",
                 i == 0 ? "" : ",", line.kernel.c_str(), line.shape.c_str(), line.milliseconds, line.figure,
                 line.unit.c_str(), line.limit, line.work, line.figure / line.limit);
  }
  std::fprintf(file, "\n]}\n");
  return std::fclose(file) == 0;
}

void DeviceBench::MeasureLimits() {
  const int64_t copied = int64_t{options_.small ? 1 : 1024} << 20;
  void *from = Array(copied), *to = Array(copied);
  copy_rate_ = 2 * static_cast<double>(copied) /
               Seconds([&] { backend_->CopyWithin(Lane::kCompute, to, from, copied); });
  // A product with a weight that is in bf16 already, without an adapter, goes to the library as it is.
  const int64_t size = options_.small ? 128 : 8192;
  LinearArgs args;
  args.m = size;
  args.w.type = QuantType::kBF16;
  args.w.n = args.w.k = size;
  args.w.data = Act(size * size);
  void *x = Act(size * size), *y = Act(size * size);
  product_rate_ = 2 * std::pow(static_cast<double>(size), 3) /
                  Seconds([&] { table().linear_forward(context(), y, x, args); });
  std::printf("body %s: copies %.1f GB/s, a product of %lld^3 %.1f TFLOP/s\n", table().body,
              copy_rate_ * 1e-9, static_cast<long long>(size), product_rate_ * 1e-12);
  Clear();
}

// Of as many bytes or up to half of them, each size once; never above that of very many.
double DeviceBench::CopyRate(double bytes) {
  constexpr int64_t kMany = int64_t{256} << 20;
  int64_t copied = int64_t{64} << 10;
  while (2 * copied <= static_cast<int64_t>(bytes / 2) && copied < kMany) copied *= 2;
  if (copied == kMany || options_.small) return copy_rate_;
  const auto [at, is_new] = copy_rates_.try_emplace(copied, copy_rate_);
  if (!is_new) return at->second;
  void *from = backend_->Allocate(copied), *to = backend_->Allocate(copied);
  if (from != nullptr && to != nullptr)
    at->second = std::min(copy_rate_, 2 * static_cast<double>(copied) / Seconds([&] {
                                        backend_->CopyWithin(Lane::kCompute, to, from, copied);
                                      }));
  std::printf("copying %lld KiB: %.1f GB/s\n", static_cast<long long>(copied >> 10), at->second * 1e-9);
  for (void* array : {from, to})
    if (array != nullptr) backend_->Release(array);
  return at->second;
}

// The median of several batches, each long enough that starting it does not matter.
double DeviceBench::Seconds(const std::function<void()>& run) {
  const auto timed = [&](int calls) {
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < calls; ++i) run();
    if (!backend_->Synchronize()) {
      std::fprintf(stderr, "%s\n", backend_->error());
      std::exit(1);
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  backend_->Synchronize();
  timed(1);
  int calls = 1;
  while (!options_.small && calls < 1000 && timed(calls) < 0.02) calls *= 2;
  std::vector<double> seconds;
  for (int i = 0; i < (options_.small ? 1 : 5); ++i) seconds.push_back(timed(calls) / calls);
  std::nth_element(seconds.begin(), seconds.begin() + static_cast<int64_t>(seconds.size()) / 2,
                   seconds.end());
  return seconds[seconds.size() / 2];
}

}  // namespace nibble::kernels::bench

#include "tests/kernels/bench_rig.h"

#include <algorithm>
#include <cstdio>
#include <ctime>

#include "tests/kernels/bench_probe.h"

namespace nibble::kernels::bench {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{256} << 20;

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size()) / 2, values.end());
  return values[values.size() / 2];
}

const char* Name(Limit limit) {
  switch (limit) {
    case Limit::kProducts: return "products";
    case Limit::kCopy: return "copy";
    case Limit::kRead: return "read";
    case Limit::kStore: return "store";
  }
  return "";
}

}  // namespace

Bench::Bench(const Options& options)
    : options_(options), table_(*CpuTableFor(options.body)), pool_(options.threads),
      workspace_(static_cast<size_t>(kWorkspaceBytes)) {
  context_.workspace = workspace_.data();
  context_.workspace_bytes = kWorkspaceBytes;
  context_.pool = &pool_;
  if (!options.json)
    std::printf("body %s, %d threads\n%-18s %-34s %13s %19s %7s\n", options.body.c_str(), options.threads,
                "kernel", "shape", "figure", "limit", "share");
}

void Bench::Line(const std::string& kernel, const std::string& shape, double work, Limit limit,
                 const std::function<void()>& run) {
  if ((kernel + " " + shape).find(options_.filter) == std::string::npos) return;
  run();
  std::vector<double> shares, rates, limits;
  const auto begin = Now();
  while (rates.size() < 5 || (Now() - begin < 0.4 && rates.size() < 200)) {
    limits.push_back(Rate(limit) * options_.threads);
    int calls = 0;
    const auto start = Now();
    do {
      run();
      ++calls;
    } while ((Now() - start) < 0.005);
    rates.push_back(work * calls / (Now() - start));
    shares.push_back(rates.back() / limits.back());
  }
  const double figure = Median(rates) * 1e-9, bound = Median(limits) * 1e-9, share = Median(shares);
  const char* unit = limit == Limit::kProducts ? "GF/s" : "GB/s";
  if (options_.json) {
    std::printf("{\"body\":\"%s\",\"threads\":%d,\"kernel\":\"%s\",\"shape\":\"%s\",\"figure\":%.3f,"
                "\"unit\":\"%s\",\"limit\":%.3f,\"limit_name\":\"%s\",\"share\":%.4f}\n",
                options_.body.c_str(), options_.threads, kernel.c_str(), shape.c_str(), figure, unit, bound,
                Name(limit), share);
  } else {
    std::printf("%-18s %-34s %8.1f %s %9.1f %-8s %6.0f%%\n", kernel.c_str(), shape.c_str(), figure, unit,
                bound, Name(limit), 100 * share);
  }
  std::fflush(stdout);
}

bool Bench::Wants(std::initializer_list<const char*> kernels, const std::string& shape) const {
  for (const char* kernel : kernels)
    if ((kernel + (" " + shape)).find(options_.filter) != std::string::npos) return true;
  return false;
}

// One thread is measured in its own processor time, so that other programs disturb less.
double Bench::Now() const {
  timespec now;
  clock_gettime(options_.threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

double Bench::Rate(Limit limit) const {
  switch (limit) {
    case Limit::kProducts: return ProductRate(options_.body);
    case Limit::kCopy: return CopyRate();
    case Limit::kRead: return ReadRate();
    case Limit::kStore: return StoreRate();
  }
  return 0;
}

Array<uint16_t> Activations(int64_t count) {
  Array<uint16_t> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<uint16_t>((i * 2654435761u >> 20 & 0x80FF) | 0x3C00);
  return values;
}

RandomWeight::RandomWeight(QuantType type, int64_t n, int64_t k)
    : codes(static_cast<size_t>(WeightBytes(type, n * k))), scales(static_cast<size_t>(n * k / 64)),
      nested(static_cast<size_t>(NestedCount(n * k / 64)), 0.01f) {
  if (IsQuantized(type)) {
    for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
  } else {
    const auto values = Activations(n * k);
    for (size_t i = 0; i < codes.size(); ++i)
      codes[i] = reinterpret_cast<const uint8_t*>(values.data())[i % (values.size() * 2)];
  }
  // Of many sizes, as trained weights have them: what is looked up by scale must not be the same always.
  for (size_t i = 0; i < scales.size(); ++i)
    scales[i] = static_cast<uint8_t>(80 + (i * 2654435761u >> 24) % 96);
  view.type = type;
  if (SuitsTiles(type, k, view.block)) view.order = WeightOrder::kTiles;
  view.n = n;
  view.k = k;
  view.data = codes.data();
  view.absmax_codes = scales.data();
  view.nested_absmax = nested.data();
  view.nested_map = SignedDynamicMap();
  view.offset = 0.05f;
  view.code_book = CodeBook(type);
}

double RandomWeight::Bytes() const {
  const size_t scale_bytes = IsQuantized(view.type) ? scales.size() : 0;
  return static_cast<double>(codes.size() + scale_bytes);
}

}  // namespace nibble::kernels::bench

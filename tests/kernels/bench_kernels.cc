// nibble-bench-kernels: every important kernel at the shapes of real models, as a share of what this
// machine can do, measured in the same run.
//
//   nibble-bench-kernels [--body NAME] [--threads N] [--tokens M] [WORD IN A LINE]
//
// Each line: kernel, shape, median figure, the limit (products from registers, or copying), share.
// With more than one thread the limit is one thread's times their number.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cpu/workspace.h"
#include "kernels/nf4.h"
#include "kernels/parallel.h"
#include "kernels/tables.h"
#include "tests/kernels/bench_probe.h"

namespace nibble::kernels::bench {
namespace {

struct Options {
  std::string body{CpuTable().body};
  int threads = 1;
  int64_t tokens = 512;
  std::string filter;
};

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options), table_(*CpuTableFor(options.body)), pool_(options.threads),
        workspace_(size_t{256} << 20) {
    context_.workspace = workspace_.data();
    context_.workspace_bytes = static_cast<int64_t>(workspace_.size());
    context_.pool = &pool_;
    std::printf("body %s, %d threads\n%-18s %-34s %10s %10s %7s\n", options.body.c_str(), options.threads,
                "kernel", "shape", "figure", "limit", "share");
  }

  // `work` is operations (products) or bytes of one call.
  void Line(const std::string& kernel, const std::string& shape, double work, bool products,
            const std::function<void()>& run) {
    if ((kernel + " " + shape).find(options_.filter) == std::string::npos) return;
    run();
    std::vector<double> shares, rates, limits;
    const auto begin = Now();
    while (rates.size() < 5 || (Now() - begin < 0.4 && rates.size() < 200)) {
      const double limit = (products ? ProductRate(options_.body) : CopyRate()) * options_.threads;
      int calls = 0;
      const auto start = Now();
      do {
        run();
        ++calls;
      } while ((Now() - start) < 0.005);
      rates.push_back(work * calls / (Now() - start));
      limits.push_back(limit);
      shares.push_back(rates.back() / limit);
    }
    std::printf("%-18s %-34s %8.1f %s %8.1f %6.0f%%\n", kernel.c_str(), shape.c_str(),
                Median(rates) * 1e-9, products ? "GF" : "GB", Median(limits) * 1e-9,
                100 * Median(shares));
    std::fflush(stdout);
  }

  // Whether any of these lines is wanted, so that their arrays are worth making.
  bool Wants(std::initializer_list<const char*> kernels, const std::string& shape) const {
    for (const char* kernel : kernels)
      if ((kernel + (" " + shape)).find(options_.filter) != std::string::npos) return true;
    return false;
  }

  Context* context() { return &context_; }
  const KernelTable& table() const { return table_; }
  int64_t tokens() const { return options_.tokens; }

 private:
  // One thread is measured in its own processor time, so that other programs disturb less.
  double Now() const {
    timespec now;
    clock_gettime(options_.threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
    return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
  }
  static double Median(std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size()) / 2, values.end());
    return values[values.size() / 2];
  }

  Options options_;
  const KernelTable& table_;
  ThreadPool pool_;
  std::vector<char> workspace_;
  Context context_;
};

std::vector<uint16_t> Activations(int64_t count) {
  std::vector<uint16_t> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<uint16_t>((i * 2654435761u >> 20 & 0x80FF) | 0x3C00);
  return values;
}

// A weight of random codes.
struct RandomWeight {
  RandomWeight(int64_t n, int64_t k)
      : codes(static_cast<size_t>(n * k / 2)), scales(static_cast<size_t>(n * k / 64), 100),
        nested(static_cast<size_t>(NestedCount(n * k / 64)), 0.01f) {
    for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
    view.n = n;
    view.k = k;
    view.data = codes.data();
    view.absmax_codes = scales.data();
    view.nested_absmax = nested.data();
    view.nested_map = SignedDynamicMap();
    view.offset = 0.05f;
    view.code_book = CodeBook(QuantType::kNF4);
  }
  std::vector<uint8_t> codes, scales;
  std::vector<float> nested;
  WeightView view;
};

void BenchLinear(Bench& bench, const std::string& model, int64_t k, int64_t n) {
  const int64_t m = bench.tokens(), r = 16;
  const std::string shape =
      model + " " + std::to_string(m) + "x" + std::to_string(k) + "x" + std::to_string(n);
  if (!bench.Wants({"linear fwd", "linear bwd", "linear+lora fwd", "linear+lora bwd", "decode"}, shape))
    return;
  const RandomWeight weight(n, k);
  auto x = Activations(m * k), y = Activations(m * n), a = Activations(r * k), b = Activations(n * r),
       u = Activations(m * r);
  std::vector<float> da(static_cast<size_t>(r * k)), db(static_cast<size_t>(n * r));
  LoraArgs lora;
  lora.r = r;
  lora.scale = 2;
  lora.a = a.data();
  lora.b = b.data();
  lora.u = u.data();
  lora.da = da.data();
  lora.db = db.data();
  LinearArgs args;
  args.m = m;
  args.w = weight.view;
  const double main = 2.0 * static_cast<double>(m * k * n);
  const double branch = 2.0 * static_cast<double>(m * r * (k + n));
  bench.Line("linear fwd", shape, main, true, [&] {
    bench.table().linear_forward(bench.context(), y.data(), x.data(), args);
  });
  bench.Line("linear bwd", shape, main, true, [&] {
    bench.table().linear_backward(bench.context(), x.data(), false, y.data(), nullptr, args);
  });
  args.lora = &lora;
  bench.Line("linear+lora fwd", shape, main + branch, true, [&] {
    bench.table().linear_forward(bench.context(), y.data(), x.data(), args);
  });
  bench.Line("linear+lora bwd", shape, main + 3 * branch, true, [&] {
    bench.table().linear_backward(bench.context(), x.data(), false, y.data(), x.data(), args);
  });
  auto out = Activations(k * n);
  bench.Line("decode", shape, 2.5 * static_cast<double>(k * n), false, [&] {
    bench.table().decode_weight(bench.context(), out.data(), weight.view, 0, n);
  });
}

void BenchAttention(Bench& bench, const std::string& model, int64_t heads, int64_t kv_heads, int64_t dim) {
  const int64_t m = bench.tokens();
  const std::string shape = model + " " + std::to_string(m) + " h" + std::to_string(heads) + "/" +
                            std::to_string(kv_heads) + " d" + std::to_string(dim);
  if (!bench.Wants({"attention fwd", "attention bwd"}, shape)) return;
  const std::vector<int32_t> starts = {0, static_cast<int32_t>(m)};
  auto q = Activations(m * heads * dim), k = Activations(m * kv_heads * dim), v = k, out = q, dq = q, dk = k,
       dv = k;
  std::vector<float> lse(static_cast<size_t>(m * heads));
  AttentionArgs args;
  args.m = m;
  args.heads = heads;
  args.kv_heads = kv_heads;
  args.head_dim = dim;
  args.starts = starts.data();
  args.documents = 1;
  args.scale = 1 / std::sqrt(static_cast<float>(dim));
  const double product = static_cast<double>(m * (m + 1) * heads * dim);  // the causal half
  bench.Line("attention fwd", shape, 2 * product, true, [&] {
    bench.table().attention_forward(bench.context(), out.data(), lse.data(), q.data(), k.data(),
                                    v.data(), args);
  });
  bench.Line("attention bwd", shape, 5 * product, true, [&] {
    bench.table().attention_backward(bench.context(), dq.data(), dk.data(), dv.data(), out.data(),
                                     out.data(), lse.data(), q.data(), k.data(), v.data(), args);
  });
}

// One token: the limit is reading the weights once.
void BenchGenerate(Bench& bench, const std::string& model, int64_t k, int64_t n) {
  const std::string shape = model + " 1x" + std::to_string(k) + "x" + std::to_string(n);
  if (!bench.Wants({"linear one"}, shape)) return;
  const RandomWeight weight(n, k);
  auto x = Activations(k), y = Activations(n);
  LinearArgs args;
  args.m = 1;
  args.w = weight.view;
  bench.Line("linear one", shape, static_cast<double>(k * n) * (0.5 + 1.0 / 64), false, [&] {
    bench.table().linear_forward(bench.context(), y.data(), x.data(), args);
  });
}

void BenchHead(Bench& bench, const std::string& model, int64_t dim, int64_t vocab) {
  const int64_t m = bench.tokens();
  const std::string shape =
      model + " " + std::to_string(m) + "x" + std::to_string(dim) + "x" + std::to_string(vocab);
  if (!bench.Wants({"cross entropy"}, shape)) return;
  auto h = Activations(m * dim), head = Activations(vocab * dim), dh = h;
  const std::vector<int32_t> labels(static_cast<size_t>(m), 7);
  double loss = 0;
  bench.Line("cross entropy", shape, 4.0 * static_cast<double>(m * dim * vocab), true, [&] {
    bench.table().cross_entropy(bench.context(), &loss, dh.data(), h.data(), {head.data(), DType::kBF16},
                                labels.data(), m, dim, vocab, 1);
  });
}

void BenchElementwise(Bench& bench, const std::string& model, int64_t dim, int64_t intermediate) {
  const int64_t m = bench.tokens();
  auto x = Activations(m * dim), y = x, w = Activations(dim);
  auto gate = Activations(m * intermediate), up = gate, out = gate;
  std::vector<float> rstd(static_cast<size_t>(m));
  const std::string shape = model + " " + std::to_string(m) + "x" + std::to_string(dim);
  const std::string wide = model + " " + std::to_string(m) + "x" + std::to_string(intermediate);
  const auto bytes = 2.0 * static_cast<double>(m * dim);
  const auto wide_bytes = 2.0 * static_cast<double>(m * intermediate);
  bench.Line("rmsnorm fwd", shape, 2 * bytes, false, [&] {
    bench.table().rmsnorm_forward(bench.context(), y.data(), rstd.data(), x.data(),
                                  {w.data(), DType::kBF16}, m, dim, 1e-5f, 0);
  });
  bench.Line("rmsnorm bwd", shape, 3 * bytes, false, [&] {
    bench.table().rmsnorm_backward(bench.context(), y.data(), false, y.data(), x.data(),
                                   {w.data(), DType::kBF16}, rstd.data(), m, dim, 0);
  });
  bench.Line("add", shape, 3 * bytes, false,
             [&] { bench.table().add(bench.context(), y.data(), x.data(), y.data(), m * dim); });
  bench.Line("silu fwd", wide, 3 * wide_bytes, false, [&] {
    bench.table().gated_forward(bench.context(), out.data(), gate.data(), up.data(), m * intermediate,
                                Activation::kSilu);
  });
  bench.Line("silu bwd", wide, 5 * wide_bytes, false, [&] {
    bench.table().gated_backward(bench.context(), out.data(), out.data(), out.data(), gate.data(), up.data(),
                                 m * intermediate, Activation::kSilu);
  });
}

void BenchOptimizer(Bench& bench) {
  const int64_t count = 12'600'000;
  std::vector<float> p(static_cast<size_t>(count), 1), g = p, m = p, v = p;
  AdamWArgs args;
  args.count = count;
  args.learning_rate = 1e-4;
  bench.Line("adamw", "12.6M", 28.0 * static_cast<double>(count), false,
             [&] { bench.table().adamw(bench.context(), p.data(), g.data(), m.data(), v.data(), args); });
}

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--body" && i + 1 < argc) {
      options.body = argv[++i];
    } else if (word == "--threads" && i + 1 < argc) {
      options.threads = std::atoi(argv[++i]);
    } else if (word == "--tokens" && i + 1 < argc) {
      options.tokens = std::atoll(argv[++i]);
    } else {
      options.filter = word;
    }
  }
  if (CpuTableFor(options.body) == nullptr || options.threads < 1 || options.tokens < 1) {
    std::fprintf(stderr, "usage: nibble-bench-kernels [--body NAME] [--threads N] [--tokens M] [WORD]\n");
    return 2;
  }
  Bench bench(options);
  for (const auto& [k, n] : {std::pair<int64_t, int64_t>{192, 192}, {192, 512}, {512, 192}})
    BenchLinear(bench, "demo", k, n);
  for (const auto& [k, n] : {std::pair<int64_t, int64_t>{576, 576}, {576, 1536}, {1536, 576}})
    BenchLinear(bench, "135M", k, n);
  for (const auto& [k, n] : {std::pair<int64_t, int64_t>{2048, 2048}, {2048, 5632}, {5632, 2048}})
    BenchLinear(bench, "1.1B", k, n);
  for (const auto& [k, n] : {std::pair<int64_t, int64_t>{4096, 4096}, {4096, 11008}, {11008, 4096}})
    BenchLinear(bench, "7B", k, n);
  BenchGenerate(bench, "1.1B", 2048, 5632);
  BenchGenerate(bench, "all of 1.1B", 2048, 473088);
  BenchAttention(bench, "demo", 6, 6, 32);
  BenchAttention(bench, "135M", 9, 3, 64);
  BenchAttention(bench, "1.1B", 32, 4, 64);
  BenchAttention(bench, "7B", 32, 32, 128);
  BenchHead(bench, "demo", 192, 1024);
  BenchHead(bench, "135M", 576, 49152);
  BenchHead(bench, "7B", 4096, 32000);
  BenchElementwise(bench, "demo", 192, 512);
  BenchElementwise(bench, "135M", 576, 1536);
  BenchElementwise(bench, "7B", 4096, 11008);
  BenchOptimizer(bench);
  return 0;
}

}  // namespace
}  // namespace nibble::kernels::bench

int main(int argc, char** argv) { return nibble::kernels::bench::Main(argc, argv); }

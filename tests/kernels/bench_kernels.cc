// nibble-bench-kernels: every important kernel at the shapes of real models, as a share of what this
// machine can do, measured in the same run.
//
//   nibble-bench-kernels [--body NAME] [--threads N] [--tokens M] [--json 1] [WORD IN A LINE]
//
// Each line: kernel, shape, median figure, the limit that binds it (bench_rig.h), share.
// With more than one thread the limit is one thread's times their number.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "kernels/nf4.h"
#include "tests/kernels/bench_rig.h"

namespace nibble::kernels::bench {
namespace {

void BenchLinear(Bench& bench, const std::string& model, int64_t k, int64_t n,
                 QuantType type = QuantType::kNF4) {
  const int64_t m = bench.tokens(), r = 16;
  const std::string shape =
      model + " " + std::to_string(m) + "x" + std::to_string(k) + "x" + std::to_string(n);
  if (!bench.Wants({"linear fwd", "linear bwd", "linear+lora fwd", "linear+lora bwd", "linear+dropout fwd",
                    "linear+dropout bwd", "linear fwd flat", "linear bwd flat", "decode to L2"},
                   shape))
    return;
  const RandomWeight weight(type, n, k);
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
  bench.Line("linear fwd", shape, main, Limit::kProducts, [&] {
    bench.table().linear_forward(bench.context(), y.data(), x.data(), args);
  });
  bench.Line("linear bwd", shape, main, Limit::kProducts, [&] {
    bench.table().linear_backward(bench.context(), x.data(), false, y.data(), nullptr, args);
  });
  if (weight.view.order == WeightOrder::kTiles && type == QuantType::kNF4) {  // what tiles gain
    LinearArgs flat = args;
    flat.w.order = WeightOrder::kFlat;
    bench.Line("linear fwd flat", shape, main, Limit::kProducts, [&] {
      bench.table().linear_forward(bench.context(), y.data(), x.data(), flat);
    });
    bench.Line("linear bwd flat", shape, main, Limit::kProducts, [&] {
      bench.table().linear_backward(bench.context(), x.data(), false, y.data(), nullptr, flat);
    });
  }
  args.lora = &lora;
  bench.Line("linear+lora fwd", shape, main + branch, Limit::kProducts, [&] {
    bench.table().linear_forward(bench.context(), y.data(), x.data(), args);
  });
  bench.Line("linear+lora bwd", shape, main + 3 * branch, Limit::kProducts, [&] {
    bench.table().linear_backward(bench.context(), x.data(), false, y.data(), x.data(), args);
  });
  lora.dropout = {1, 2, 0.05f};  // a recipe's default; the mask is made where operands are prepared
  bench.Line("linear+dropout fwd", shape, main + branch, Limit::kProducts, [&] {
    bench.table().linear_forward(bench.context(), y.data(), x.data(), args);
  });
  bench.Line("linear+dropout bwd", shape, main + 3 * branch, Limit::kProducts, [&] {
    bench.table().linear_backward(bench.context(), x.data(), false, y.data(), x.data(), args);
  });
  // 256 KiB of rows at a time, as a panel of a product is.
  const int64_t rows = 131072 / k < n ? 131072 / k : n;
  auto out = Activations(k * rows);
  bench.Line("decode to L2", shape, 2.0 * static_cast<double>(k * rows), Limit::kStore, [&] {
    bench.table().decode_weight(bench.context(), out.data(), weight.view, 0, rows);
  });
}

// Four jobs of 64 tokens over one weight, each with its adapter: in one product, as a fused turn does it, and
// one after the other, each decoding the weight for itself.
void BenchParts(Bench& bench, const std::string& model, int64_t k, int64_t n) {
  constexpr int64_t kJobs = 4, kTokens = 64, kRank = 16;
  const std::string shape =
      model + " 4x" + std::to_string(kTokens) + "x" + std::to_string(k) + "x" + std::to_string(n);
  if (!bench.Wants({"parts fwd", "parts bwd", "parts fwd apart", "parts bwd apart"}, shape)) return;
  struct Job {
    Array<uint16_t> x, y, a, b, u;
    std::vector<float> da, db;
    LoraArgs lora;
  };
  const RandomWeight weight(QuantType::kNF4, n, k);
  std::vector<Job> jobs(kJobs);
  std::vector<LinearPart> forward(kJobs), backward(kJobs);
  for (size_t i = 0; i < jobs.size(); ++i) {
    Job& job = jobs[i];
    job = {Activations(kTokens * k), Activations(kTokens * n), Activations(kRank * k), Activations(n * kRank),
           Activations(kTokens * kRank), std::vector<float>(static_cast<size_t>(kRank * k)),
           std::vector<float>(static_cast<size_t>(n * kRank)), {}};
    job.lora = {.r = kRank, .scale = 2, .a = job.a.data(), .b = job.b.data(), .u = job.u.data(),
                .da = job.da.data(), .db = job.db.data()};
    LinearArgs args;
    args.m = kTokens;
    args.w = weight.view;
    args.lora = &job.lora;
    forward[i] = {.out = job.y.data(), .in = job.x.data(), .args = args};
    backward[i] = {.out = job.x.data(), .in = job.y.data(), .x = job.x.data(), .args = args};
  }
  const KernelTable& t = bench.table();
  const double main = 2.0 * static_cast<double>(kJobs * kTokens * k * n);
  const double branch = 2.0 * static_cast<double>(kJobs * kTokens * kRank * (k + n));
  bench.Line("parts fwd", shape, main + branch, Limit::kProducts,
             [&] { t.linear_forward_parts(bench.context(), forward.data(), kJobs); });
  bench.Line("parts fwd apart", shape, main + branch, Limit::kProducts, [&] {
    for (const LinearPart& p : forward) t.linear_forward(bench.context(), p.out, p.in, p.args);
  });
  bench.Line("parts bwd", shape, main + 3 * branch, Limit::kProducts,
             [&] { t.linear_backward_parts(bench.context(), backward.data(), kJobs); });
  bench.Line("parts bwd apart", shape, main + 3 * branch, Limit::kProducts, [&] {
    for (const LinearPart& p : backward) t.linear_backward(bench.context(), p.out, false, p.in, p.x, p.args);
  });
}

// A whole matrix decoded into memory larger than the caches: Nibble never does this, its peers do.
void BenchDecodeToMemory(Bench& bench, const std::string& model, int64_t k, int64_t n) {
  const std::string shape = model + " " + std::to_string(k) + "x" + std::to_string(n);
  if (!bench.Wants({"decode to memory"}, shape)) return;
  const RandomWeight weight(QuantType::kNF4, n, k);
  auto out = Activations(k * n);
  bench.Line("decode to memory", shape, 2.0 * static_cast<double>(k * n), Limit::kCopy, [&] {
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
  bench.Line("attention fwd", shape, 2 * product, Limit::kProducts, [&] {
    bench.table().attention_forward(bench.context(), out.data(), lse.data(), q.data(), k.data(),
                                    v.data(), args);
  });
  bench.Line("attention bwd", shape, 5 * product, Limit::kProducts, [&] {
    bench.table().attention_backward(bench.context(), dq.data(), dk.data(), dv.data(), out.data(),
                                     out.data(), lse.data(), q.data(), k.data(), v.data(), args);
  });
}

// One token: the limit is reading the weights once.
void BenchGenerate(Bench& bench, const std::string& model, int64_t k, int64_t n,
                   QuantType type = QuantType::kNF4) {
  const std::string shape = model + " 1x" + std::to_string(k) + "x" + std::to_string(n);
  if (!bench.Wants({"linear one", "linear one flat"}, shape)) return;
  const RandomWeight weight(type, n, k);
  auto x = Activations(k), y = Activations(n);
  LinearArgs args;
  args.m = 1;
  args.w = weight.view;
  bench.Line("linear one", shape, weight.Bytes(), Limit::kRead, [&] {
    bench.table().linear_forward(bench.context(), y.data(), x.data(), args);
  });
  args.w.order = WeightOrder::kFlat;
  bench.Line("linear one flat", shape, weight.Bytes(), Limit::kRead, [&] {
    bench.table().linear_forward(bench.context(), y.data(), x.data(), args);
  });
}

// One token's attention: the limit is reading the cached keys and values once.
void BenchAttentionOne(Bench& bench, const std::string& model, int64_t length, int64_t heads,
                       int64_t kv_heads, int64_t dim) {
  const std::string shape = model + " 1 of " + std::to_string(length) + " h" + std::to_string(heads) + "/" +
                            std::to_string(kv_heads) + " d" + std::to_string(dim);
  if (!bench.Wants({"attention one"}, shape)) return;
  auto q = Activations(heads * dim), out = q, keys = Activations(length * kv_heads * dim), values = keys;
  AttentionArgs args;
  args.heads = heads;
  args.kv_heads = kv_heads;
  args.head_dim = dim;
  args.scale = 0.01f;
  bench.Line("attention one", shape, 4.0 * static_cast<double>(length * kv_heads * dim), Limit::kRead, [&] {
    bench.table().attention_decode(bench.context(), out.data(), q.data(), keys.data(), values.data(), length,
                                   args);
  });
}

void BenchHead(Bench& bench, const std::string& model, int64_t dim, int64_t vocab) {
  const int64_t m = bench.tokens();
  const std::string shape =
      model + " " + std::to_string(m) + "x" + std::to_string(dim) + "x" + std::to_string(vocab);
  if (!bench.Wants({"cross entropy", "logits", "logits one"}, shape)) return;
  auto h = Activations(m * dim), head = Activations(vocab * dim), dh = h;
  const ParamView weights{head.data(), DType::kBF16};
  const std::vector<int32_t> labels(static_cast<size_t>(m), 7);
  double loss = 0;
  bench.Line("cross entropy", shape, 4.0 * static_cast<double>(m * dim * vocab), Limit::kProducts, [&] {
    bench.table().cross_entropy(bench.context(), &loss, dh.data(), h.data(), weights, labels.data(), m, dim,
                                vocab, 1, 0);
  });
  // Of a prompt whose every token is asked about, and of the one token of a step of generation.
  std::vector<float> out(static_cast<size_t>(m * vocab));
  bench.Line("logits", shape, 2.0 * static_cast<double>(m * dim * vocab), Limit::kProducts, [&] {
    bench.table().logits(bench.context(), out.data(), h.data(), weights, m, dim, vocab, 0);
  });
  bench.Line("logits one", shape, 2.0 * static_cast<double>(dim * vocab), Limit::kRead, [&] {
    bench.table().logits(bench.context(), out.data(), h.data(), weights, 1, dim, vocab, 0);
  });
}

void BenchElementwise(Bench& bench, const std::string& model, int64_t dim, int64_t intermediate) {
  const int64_t m = bench.tokens();
  const std::string shape = model + " " + std::to_string(m) + "x" + std::to_string(dim);
  const std::string wide = model + " " + std::to_string(m) + "x" + std::to_string(intermediate);
  if (!bench.Wants({"rmsnorm fwd", "rmsnorm bwd", "add", "rope", "embedding", "columns"}, shape) &&
      !bench.Wants({"silu fwd", "silu bwd"}, wide))
    return;
  auto x = Activations(m * dim), y = x, dy = x, w = Activations(dim), embeddings = Activations(4096 * dim);
  auto gate = Activations(m * intermediate), up = gate, out = gate;
  std::vector<float> rstd(static_cast<size_t>(m), 1), cos_sin(static_cast<size_t>(m * 64), 0.5f);
  std::vector<int32_t> ids(static_cast<size_t>(m)), positions(static_cast<size_t>(m));
  for (int64_t i = 0; i < m; ++i) {
    ids[static_cast<size_t>(i)] = static_cast<int32_t>(i * 31 % 4096);
    positions[static_cast<size_t>(i)] = static_cast<int32_t>(i);
  }
  const auto bytes = 2.0 * static_cast<double>(m * dim);
  const auto wide_bytes = 2.0 * static_cast<double>(m * intermediate);
  const KernelTable& t = bench.table();
  const ParamView weight{w.data(), DType::kBF16};
  bench.Line("embedding", shape, 2 * bytes, Limit::kCopy, [&] {
    t.embedding_forward(bench.context(), y.data(), ids.data(), {embeddings.data(), DType::kBF16}, m, dim, 1);
  });
  bench.Line("rmsnorm fwd", shape, 2 * bytes, Limit::kCopy, [&] {
    t.rmsnorm_forward(bench.context(), y.data(), rstd.data(), x.data(), weight, m, dim, 1e-5f, 0);
  });
  bench.Line("rmsnorm bwd", shape, 3 * bytes, Limit::kCopy, [&] {
    t.rmsnorm_backward(bench.context(), y.data(), false, dy.data(), x.data(), weight, rstd.data(), m, dim, 0);
  });
  bench.Line("rope", shape, 2 * bytes, Limit::kCopy, [&] {
    t.rope(bench.context(), y.data(), positions.data(), cos_sin.data(), m, dim / 64, 64, 64, false);
  });
  bench.Line("add", shape, 3 * bytes, Limit::kCopy,
             [&] { t.add(bench.context(), y.data(), x.data(), dy.data(), m * dim); });
  // What a fused product of q, k and v made, as many columns as there are.
  ColumnsArgs columns{.rows = m, .width = {dim / 2, dim / 4, dim - dim / 2 - dim / 4}};
  for (int p = 0, at = 0; p < kMostColumns; at += static_cast<int>(m * columns.width[p++]))
    columns.part[p] = dy.data() + at;
  bench.Line("columns", shape, 2 * bytes, Limit::kCopy,
             [&] { t.split_columns(bench.context(), x.data(), columns); });
  bench.Line("silu fwd", wide, 3 * wide_bytes, Limit::kCopy, [&] {
    t.gated_forward(bench.context(), out.data(), gate.data(), up.data(), {.width = m * intermediate});
  });
  // Three arrays read, two written; not in place, where values would shrink to subnormals.
  auto dgate = gate, dup = gate;
  bench.Line("silu bwd", wide, 5 * wide_bytes, Limit::kCopy, [&] {
    t.gated_backward(bench.context(), dgate.data(), dup.data(), out.data(), gate.data(), up.data(),
                     {.width = m * intermediate});
  });
}

void BenchOptimizer(Bench& bench) {
  const int64_t count = 12'600'000;
  if (!bench.Wants({"adamw", "adamw8", "to_act", "sum_squares"}, "12.6M")) return;
  std::vector<float> p(static_cast<size_t>(count), 1), g = p, m = p, v = p;
  const auto blocks = static_cast<size_t>((count + kAdam8Block - 1) / kAdam8Block);
  std::vector<uint8_t> m8(static_cast<size_t>(count)), v8 = m8;
  std::vector<float> m_absmax(blocks, 1e-3f), v_absmax = m_absmax;
  std::vector<uint16_t> act(static_cast<size_t>(count));
  const Adam8State state{m8.data(), v8.data(), m_absmax.data(), v_absmax.data(), SignedDynamicMap(),
                         UnsignedDynamicMap()};
  AdamWArgs args;
  args.count = count;
  args.learning_rate = 1e-4;
  const auto each = static_cast<double>(count);
  double sum = 0;
  bench.Line("adamw", "12.6M", 28 * each, Limit::kCopy, [&] {
    bench.table().adamw(bench.context(), p.data(), g.data(), m.data(), v.data(), args);
  });
  bench.Line("adamw8", "12.6M", 16 * each, Limit::kCopy, [&] {
    bench.table().adamw8(bench.context(), p.data(), g.data(), state, args);
  });
  bench.Line("to_act", "12.6M", 6 * each, Limit::kCopy,
             [&] { bench.table().to_act(bench.context(), act.data(), p.data(), count); });
  bench.Line("sum_squares", "12.6M", 4 * each, Limit::kRead,
             [&] { bench.table().sum_squares(bench.context(), &sum, g.data(), count); });
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
    } else if (word == "--json" && i + 1 < argc) {
      options.json = std::atoi(argv[++i]) != 0;
    } else {
      options.filter = word;
    }
  }
  if (CpuTableFor(options.body) == nullptr || options.threads < 1 || options.tokens < 1) {
    std::fprintf(stderr, "usage: nibble-bench-kernels [--body NAME] [--threads N] [--tokens M] [--json 1] "
                         "[WORD]\n");
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
  for (const auto& [name, type] : {std::pair<const char*, QuantType>{"fp4", QuantType::kFP4},
                                   {"int4", QuantType::kINT4}, {"int8", QuantType::kINT8},
                                   {"bf16", QuantType::kBF16}})
    BenchLinear(bench, std::string("1.1B ") + name, 2048, 2048, type);
  BenchParts(bench, "135M", 576, 1536);
  BenchParts(bench, "1.1B", 2048, 5632);
  BenchParts(bench, "7B", 4096, 11008);
  BenchDecodeToMemory(bench, "7B", 4096, 11008);
  BenchGenerate(bench, "1.1B", 2048, 5632);
  BenchGenerate(bench, "all of 1.1B", 2048, 473088);
  BenchAttentionOne(bench, "1.1B", 512, 32, 4, 64);
  BenchAttentionOne(bench, "7B", 2048, 32, 32, 128);
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

// nibble-bench-cuda: every important kernel on a device at the shapes of real models, as a share of what that
// device did in the same run: copying memory, or the vendor's own bf16 product.
//
//   nibble-bench-cuda [--device N] [--fp16] [--tokens M] [--small] [--json FILE] [--skip N] [WORDS IN A LINE]
//
// A line: kernel, shape, milliseconds, figure (TFLOP/s, or GB/s read plus written), limit, share. The limit
// of bytes is copying very many, or as many where that is slower. Operations are those of the result: what a
// kernel computes twice counts once. --skip leaves out the first lines, where an earlier run ended. --small
// takes shapes so small that the emulation runs them; its figures mean nothing. Needs nothing but backend.h
// and the table.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "kernels/nf4.h"
#include "tests/kernels/bench_device.h"

namespace nibble::kernels::bench {
namespace {

// A weight of random NF4 codes, doubly quantized.
WeightView Weight(DeviceBench& bench, int64_t n, int64_t k) {
  const int64_t blocks = AbsmaxCount(n * k, 64);
  WeightView w;
  w.n = n;
  w.k = k;
  w.data = bench.Array(n * k / 2);
  w.absmax_codes = static_cast<const uint8_t*>(bench.Array(blocks));
  w.nested_absmax = bench.Copied(std::vector<float>(static_cast<size_t>(NestedCount(blocks)), 0.01f));
  const float *map = SignedDynamicMap(), *book = CodeBook(QuantType::kNF4);
  w.nested_map = bench.Copied(std::vector<float>(map, map + 256));
  w.code_book = bench.Copied(std::vector<float>(book, book + 16));
  w.offset = 0.05f;
  return w;
}

std::string Shape(const std::string& model, int64_t m, int64_t k, int64_t n) {
  return model + " " + std::to_string(m) + "x" + std::to_string(k) + "x" + std::to_string(n);
}

void BenchLinear(DeviceBench& bench, const std::string& model, int64_t k, int64_t n) {
  const int64_t m = bench.tokens(), r = 16;
  LinearArgs args;
  args.m = m;
  args.w = Weight(bench, n, k);
  void *x = bench.Act(m * k), *y = bench.Act(m * n), *dx = bench.Act(m * k);
  const KernelTable& t = bench.table();
  const std::string shape = Shape(model, m, k, n);
  const double main = 2.0 * static_cast<double>(m * k * n),
               branch = 2.0 * static_cast<double>(m * r * (k + n));
  void* decoded = bench.Act(n * k);
  bench.Report("decode", Shape(model, 1, k, n), (0.516 + 2.0) * static_cast<double>(k * n), false,
               [&] { t.decode_weight(bench.context(), decoded, args.w, 0, n); });
  LinearArgs one = args;
  one.m = 1;
  bench.Report("linear one row", Shape(model, 1, k, n), 0.516 * static_cast<double>(k * n), false,
               [&] { t.linear_forward(bench.context(), y, x, one); });
  bench.Report("linear fwd", shape, main, true, [&] { t.linear_forward(bench.context(), y, x, args); });
  bench.Report("linear bwd", shape, main, true,
               [&] { t.linear_backward(bench.context(), dx, false, y, nullptr, args); });
  LoraArgs lora;
  lora.r = r;
  lora.scale = 2;
  lora.a = bench.Act(r * k);
  lora.b = bench.Act(n * r);
  lora.u = bench.Act(m * r);
  lora.da = bench.Array(4 * r * k);
  lora.db = bench.Array(4 * r * n);
  args.lora = &lora;
  for (const float dropout : {0.0f, 0.05f}) {
    lora.dropout = {1, 2, dropout};
    const std::string name = dropout > 0 ? "linear+lora+drop" : "linear+lora";
    bench.Report(name + " fwd", shape, main + branch, true,
                 [&] { t.linear_forward(bench.context(), y, x, args); });
    bench.Report(name + " bwd", shape, main + 2 * branch, true,
                 [&] { t.linear_backward(bench.context(), dx, false, y, x, args); });
  }
  bench.Clear();
}

// Layers of one input as one op against one by one, with adapters: q, k and v with outputs of their own, gate
// and up as halves of one array.
void BenchGroup(DeviceBench& bench, const std::string& model, int64_t k, const std::vector<int64_t>& n) {
  const int64_t m = bench.tokens(), r = 16;
  const bool halves = n.size() == 2;
  int64_t all = 0;
  for (const int64_t outputs : n) all += outputs;
  LinearGroup group;
  LoraArgs lora[kMostGrouped];
  void *x = bench.Act(m * k), *dx = bench.Act(m * k), *columns = halves ? bench.Act(m * all) : nullptr;
  if (halves) group.stride = all;
  for (const int64_t outputs : n) {
    const int i = group.count++;
    lora[i].r = r;
    lora[i].scale = 2;
    lora[i].a = bench.Act(r * k);
    lora[i].b = bench.Act(outputs * r);
    lora[i].u = bench.Act(m * r);
    lora[i].da = bench.Array(4 * r * k);
    lora[i].db = bench.Array(4 * r * outputs);
    group.linear[i].m = m;
    group.linear[i].w = Weight(bench, outputs, k);
    group.linear[i].lora = &lora[i];
    group.y[i] = halves ? static_cast<char*>(columns) + 2 * i * outputs : bench.Act(m * outputs);
  }
  const KernelTable& t = bench.table();
  const std::string shape = Shape(model, m, k, all);
  const double main = 2.0 * static_cast<double>(m * k * all),
               branch = 2.0 * static_cast<double>(m * r * (group.count * k + all));
  bench.Report("group fwd", shape, main + branch, true,
               [&] { t.linear_group_forward(bench.context(), x, group); });
  bench.Report("group bwd", shape, main + 2 * branch, true,
               [&] { t.linear_group_backward(bench.context(), dx, x, group); });
  // Each output anywhere: what is read and written is as much.
  bench.Report("group one by one fwd", shape, main + branch, true, [&] {
    for (int i = 0; i < group.count; ++i)
      t.linear_forward(bench.context(), halves ? columns : group.y[i], x, group.linear[i]);
  });
  bench.Report("group one by one bwd", shape, main + 2 * branch, true, [&] {
    for (int i = 0; i < group.count; ++i)
      t.linear_backward(bench.context(), dx, i > 0, halves ? columns : group.y[i], x, group.linear[i]);
  });
  bench.Clear();
}

void BenchAttention(DeviceBench& bench, const std::string& model, int64_t heads, int64_t kv_heads,
                    int64_t dim, int64_t document, int64_t window) {
  const int64_t m = bench.tokens();
  std::vector<int32_t> starts;
  for (int64_t at = 0; at < m; at += document) starts.push_back(static_cast<int32_t>(at));
  starts.push_back(static_cast<int32_t>(m));
  double pairs = 0;  // of a query and a key that it sees
  for (size_t i = 1; i < starts.size(); ++i)
    for (int64_t seen = 1; seen <= starts[i] - starts[i - 1]; ++seen)
      pairs += static_cast<double>(window > 0 ? std::min(window, seen) : seen);
  AttentionArgs args;
  args.m = m;
  args.heads = heads;
  args.kv_heads = kv_heads;
  args.head_dim = dim;
  args.starts = bench.Copied(starts);
  args.documents = static_cast<int64_t>(starts.size()) - 1;
  args.scale = 1 / std::sqrt(static_cast<float>(dim));
  args.window = window;
  void *q = bench.Act(m * heads * dim), *k = bench.Act(m * kv_heads * dim),
       *v = bench.Act(m * kv_heads * dim);
  void *out = bench.Act(m * heads * dim), *dq = bench.Act(m * heads * dim),
       *dk = bench.Act(m * kv_heads * dim);
  void *dv = bench.Act(m * kv_heads * dim), *lse = bench.Array(4 * m * heads);
  std::string shape = model + " " + std::to_string(m) + "/" + std::to_string(document) + " h" +
                      std::to_string(heads) + "/" + std::to_string(kv_heads) + " d" + std::to_string(dim);
  if (window > 0) shape += " w" + std::to_string(window);
  const double product = 2 * pairs * static_cast<double>(heads * dim);
  const KernelTable& t = bench.table();
  bench.Report("attention fwd", shape, 2 * product, true,
               [&] { t.attention_forward(bench.context(), out, lse, q, k, v, args); });
  bench.Report("attention bwd", shape, 5 * product, true,
               [&] { t.attention_backward(bench.context(), dq, dk, dv, out, out, lse, q, k, v, args); });
  bench.Report("attention decode", shape, 4 * static_cast<double>(document * kv_heads * dim), false,
               [&] { t.attention_decode(bench.context(), out, q, k, v, std::min(m, document), args); });
  bench.Clear();
}

void BenchHead(DeviceBench& bench, const std::string& model, int64_t dim, int64_t vocab) {
  const int64_t m = bench.small() ? bench.tokens() : std::min<int64_t>(bench.tokens(), 4096);
  const ParamView head{bench.Act(vocab * dim), bench.table().act};
  void *h = bench.Act(m * dim), *dh = bench.Act(m * dim);
  auto* loss = bench.Copied(std::vector<double>(1, 0));
  std::vector<int32_t> all(static_cast<size_t>(m), 7), third(all);
  for (size_t i = 0; i < third.size(); ++i)
    if (i % 3 != 0) third[i] = -1;
  const int32_t *all_labels = bench.Copied(all), *third_labels = bench.Copied(third);
  const double work = 4.0 * static_cast<double>(m * dim) * static_cast<double>(vocab);
  const KernelTable& t = bench.table();
  const auto run = [&](const int32_t* labels) {
    t.cross_entropy(bench.context(), loss, dh, h, head, labels, m, dim, vocab, 1, 0);
  };
  const std::string shape = Shape(model, m, dim, vocab);
  bench.Report("cross entropy", shape, work, true, [&] { run(all_labels); });
  bench.Report("cross entropy 1/3", shape, work / 3, true, [&] { run(third_labels); });
  bench.Clear();
}

void BenchElementwise(DeviceBench& bench, const std::string& model, int64_t dim, int64_t wide,
                      int64_t head_dim) {
  const int64_t m = bench.tokens(), heads = dim / head_dim;
  void *x = bench.Act(m * dim), *y = bench.Act(m * dim), *w = bench.Act(dim), *rstd = bench.Array(4 * m);
  void* head_rstd = bench.Array(4 * m * heads);
  void *gate = bench.Act(m * wide), *up = bench.Act(m * wide), *out = bench.Act(m * wide);
  const auto* cos_sin = bench.Copied(std::vector<float>(static_cast<size_t>(m * head_dim), 0.7f));
  std::vector<int32_t> rows(static_cast<size_t>(m));
  for (int64_t i = 0; i < m; ++i) rows[static_cast<size_t>(i)] = static_cast<int32_t>(i);
  const int32_t* positions = bench.Copied(rows);
  const ParamView weight{w, bench.table().act}, table{y, bench.table().act};
  const std::string narrow = model + " " + std::to_string(m) + "x" + std::to_string(dim);
  const std::string broad = model + " " + std::to_string(m) + "x" + std::to_string(wide);
  const auto bytes = 2.0 * static_cast<double>(m * dim), wide_bytes = 2.0 * static_cast<double>(m * wide);
  const KernelTable& t = bench.table();
  Context* c = bench.context();
  bench.Report("rmsnorm fwd", narrow, 2 * bytes, false,
               [&] { t.rmsnorm_forward(c, y, rstd, x, weight, m, dim, 1e-5f, 0); });
  bench.Report("rmsnorm bwd", narrow, 3 * bytes, false,
               [&] { t.rmsnorm_backward(c, gate, false, y, x, weight, rstd, m, dim, 0); });
  // The norms of q and k, a row to a head.
  const std::string head_rows = model + " " + std::to_string(m * heads) + "x" + std::to_string(head_dim);
  bench.Report("rmsnorm fwd", head_rows, 2 * bytes, false, [&] {
    t.rmsnorm_forward(c, y, head_rstd, x, weight, m * heads, head_dim, 1e-5f, 0);
  });
  bench.Report("rmsnorm bwd", head_rows, 3 * bytes, false, [&] {
    t.rmsnorm_backward(c, gate, false, y, x, weight, head_rstd, m * heads, head_dim, 0);
  });
  bench.Report("add", narrow, 3 * bytes, false, [&] { t.add(c, gate, x, y, m * dim); });
  ColumnsArgs columns{.rows = m, .width = {dim / 2, dim / 4, dim / 4}};
  columns.part[0] = y;
  columns.part[1] = static_cast<char*>(columns.part[0]) + 2 * m * columns.width[0];
  columns.part[2] = static_cast<char*>(columns.part[1]) + 2 * m * columns.width[1];
  bench.Report("columns", narrow, 2 * bytes, false, [&] { t.split_columns(c, x, columns); });
  bench.Report("rope", narrow, 2 * bytes, false,
               [&] { t.rope(c, x, positions, cos_sin, m, heads, head_dim, head_dim, false); });
  bench.Report("embedding", narrow, 2 * bytes, false,
               [&] { t.embedding_forward(c, x, positions, table, m, dim, 1); });
  bench.Report("silu fwd", broad, 3 * wide_bytes, false,
               [&] { t.gated_forward(c, out, gate, up, {.width = m * wide}); });
  bench.Report("silu bwd", broad, 5 * wide_bytes, false,
               [&] { t.gated_backward(c, gate, up, out, gate, up, {.width = m * wide}); });
  bench.Clear();
}

void BenchOptimizer(DeviceBench& bench, int64_t count) {
  const auto floats = [&] { return static_cast<float*>(bench.Array(4 * count)); };
  float *p = floats(), *g = floats(), *m = floats(), *v = floats();
  AdamWArgs args;
  args.count = count;
  args.learning_rate = 1e-4;
  const KernelTable& t = bench.table();
  const auto bytes = static_cast<double>(count);
  const std::string shape = std::to_string(count);
  bench.Report("adamw", shape, 28 * bytes, false, [&] { t.adamw(bench.context(), p, g, m, v, args); });
  const float *signed_map = SignedDynamicMap(), *unsigned_map = UnsignedDynamicMap();
  Adam8State state;
  state.m = static_cast<uint8_t*>(bench.Array(count));
  state.v = static_cast<uint8_t*>(bench.Array(count));
  const std::vector<float> scales(static_cast<size_t>((count + kAdam8Block - 1) / kAdam8Block), 1e-3f);
  state.m_absmax = bench.Copied(scales);
  state.v_absmax = bench.Copied(scales);
  state.signed_map = bench.Copied(std::vector<float>(signed_map, signed_map + 256));
  state.unsigned_map = bench.Copied(std::vector<float>(unsigned_map, unsigned_map + 256));
  bench.Report("adamw8", shape, 16 * bytes, false, [&] { t.adamw8(bench.context(), p, g, state, args); });
  auto* sum = bench.Copied(std::vector<double>(1, 0));
  bench.Report("sum squares", shape, 4 * bytes, false,
               [&] { t.sum_squares(bench.context(), sum, g, count); });
  void* out = bench.Act(count);
  bench.Report("to act", shape, 6 * bytes, false, [&] { t.to_act(bench.context(), out, p, count); });
  bench.Clear();
}

void RunAll(DeviceBench& bench) {
  if (bench.small()) {
    BenchLinear(bench, "small", 128, 192);
    BenchGroup(bench, "small", 64, {64, 32, 32});
    BenchGroup(bench, "small", 64, {96, 96});
    BenchAttention(bench, "small", 2, 1, 64, 24, 0);
    BenchHead(bench, "small", 64, 200);
    BenchElementwise(bench, "small", 64, 128, 32);
    BenchOptimizer(bench, 1000);
    return;
  }
  for (const auto& [k, n] :
       {std::pair<int64_t, int64_t>{4096, 4096}, {4096, 1024}, {4096, 14336}, {14336, 4096}})
    BenchLinear(bench, "8B", k, n);
  for (const auto& [k, n] : {std::pair<int64_t, int64_t>{1024, 2048}, {1024, 3072}, {3072, 1024}})
    BenchLinear(bench, "0.6B", k, n);
  BenchGroup(bench, "8B q k v", 4096, {4096, 1024, 1024});
  BenchGroup(bench, "8B gate up", 4096, {14336, 14336});
  BenchGroup(bench, "0.6B q k v", 1024, {2048, 1024, 1024});
  BenchGroup(bench, "0.6B gate up", 1024, {3072, 3072});
  BenchAttention(bench, "8B", 32, 8, 128, 4096, 0);
  BenchAttention(bench, "8B", 32, 8, 128, 2048, 0);
  BenchAttention(bench, "0.6B", 16, 8, 128, 2048, 0);
  BenchAttention(bench, "1B", 32, 8, 64, 4096, 0);
  BenchAttention(bench, "256", 16, 8, 256, 4096, 0);
  BenchAttention(bench, "window", 32, 8, 128, 4096, 1024);
  BenchHead(bench, "8B", 4096, 128256);
  BenchHead(bench, "0.6B", 1024, 151936);
  BenchElementwise(bench, "8B", 4096, 14336, 128);
  BenchElementwise(bench, "0.6B", 1024, 3072, 128);
  BenchOptimizer(bench, int64_t{42} << 20);
}

int Main(int argc, char** argv) {
  DeviceOptions options;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const bool more = i + 1 < argc;
    if (word == "--device" && more) {
      options.device.index = std::atoi(argv[++i]);
    } else if (word == "--fp16") {
      options.device.fp16 = true;
    } else if (word == "--tokens" && more) {
      options.tokens = std::atoll(argv[++i]);
    } else if (word == "--small") {
      options.small = true;
      options.tokens = 40;
    } else if (word == "--json" && more) {
      options.json = argv[++i];
    } else if (word == "--skip" && more) {
      options.skip = std::atoi(argv[++i]);
    } else {
      options.filter = word;
    }
  }
  if (options.tokens < 1) {
    std::fprintf(
        stderr,
        "usage: nibble-bench-cuda [--device N] [--fp16] [--tokens M] [--small] [--json FILE] [--skip N] "
        "[WORD]\n");
    return 2;
  }
  std::string why;
  const std::unique_ptr<Backend> backend = OpenCuda(options.device, &why);
  if (backend == nullptr) {
    std::fprintf(stderr, "%s\n", why.c_str());
    return 1;
  }
  DeviceBench bench(options, backend.get());
  RunAll(bench);
  if (!bench.Write()) {
    std::fprintf(stderr, "%s cannot be written\n", options.json.c_str());
    return 1;
  }
  return backend->Synchronize() ? 0 : 1;
}

}  // namespace
}  // namespace nibble::kernels::bench

int main(int argc, char** argv) { return nibble::kernels::bench::Main(argc, argv); }

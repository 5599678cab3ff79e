// Linear layers of numbers that products in fixed point (kernels/cpu/body/fixed.h) could lose or overflow
// with: sums as large as they can be, numbers far apart in one block, very small and very large ones, and
// what is no number.
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/tables.h"
#include "tests/kernels/linear_setup.h"

namespace nibble::kernels::check {
namespace {

// Weights that are all the largest of their type, so that nothing in a sum cancels.
struct LargestWeight {
  LargestWeight(QuantType type, int64_t n, int64_t k, float size) {
    view.type = type;
    view.n = n;
    view.k = k;
    if (type == QuantType::kBF16) {
      bytes.resize(static_cast<size_t>(2 * n * k));
      for (size_t i = 0; i < bytes.size(); i += 2) {
        const BF16 value = ToBF16(1.9921875f * size);
        std::memcpy(bytes.data() + i, &value, 2);
      }
    } else {
      bytes.assign(static_cast<size_t>(WeightBytes(type, n * k)), type == QuantType::kINT8 ? 254 : 255);
      absmax.assign(static_cast<size_t>(AbsmaxCount(n * k, view.block)), 0.75f * size);
      view.absmax = absmax.data();
      view.code_book = CodeBook(type);
    }
    view.data = bytes.data();
    values.assign(static_cast<size_t>(n * k), (type == QuantType::kBF16 ? 1.9921875 : 0.75) * size);
  }
  std::vector<uint8_t> bytes;
  std::vector<float> absmax;
  std::vector<double> values;
  WeightView view;
};

struct Rows {
  const char* name;
  double (*value)(int64_t row, int64_t column);
  float weights = 1;  // times as large
};
constexpr double kInfinity = std::numeric_limits<double>::infinity();
const Rows kRows[] = {
    {"equal", [](int64_t, int64_t) { return 1.9921875; }},
    {"equal and small", [](int64_t, int64_t) { return -1.9921875 * 0x1p-40; }},
    {"smallest", [](int64_t, int64_t column) { return (column % 3 + 1) * 0x1p-122; }},
    {"largest", [](int64_t, int64_t column) { return column % 2 == 0 ? 0x1.8p118 : -0x1p117; }},
    {"beyond sums", [](int64_t, int64_t) { return 0x1.8p126; }, 0x1p-20f},  // whose sum no float holds
    {"one far above", [](int64_t row, int64_t column) { return column % 64 == row % 64 ? -3000.0 : 0.75; }},
    {"falling", [](int64_t, int64_t column) { return std::exp2(-static_cast<double>(column % 64)); }},
    {"zeros but one", [](int64_t row, int64_t column) { return column == row ? 1.0 : 0.0; }},
    {"infinite", [](int64_t row, int64_t column) { return row == 1 && column == 5 ? kInfinity : 0.5; }},
    {"no number", [](int64_t row, int64_t column) { return row == 1 && column == 70 ? std::nan("") : 0.5; }},
};

// What is no finite number in `want` must be none in `got`; both are zero there afterwards.
void TakeOutNonFinite(Comparison& result, DType act, Tensor& got, Tensor& want) {
  std::vector<double> a = got.Values(), b = want.Values();
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isfinite(b[i])) continue;
    result.AddScalar("finite at " + std::to_string(i), std::isfinite(a[i]) ? 1.0 : 0.0, 0, 1);
    a[i] = b[i] = 0;
  }
  got = Tensor(act, a);
  want = Tensor(DType::kF64, b);
}

Outcome RunExtremes(const KernelTable& table, int threads, int64_t m, int64_t k, int64_t n, QuantType type,
                    const Rows& rows) {
  if (IsCuda(table)) return {};  // whose 16-bit activations may hold less
  const LargestWeight weight(type, n, k, rows.weights);
  const Tensor wide(DType::kF64, weight.values);
  Comparison result;
  for (const bool backward : {false, true}) {
    const int64_t depth = backward ? n : k, width = backward ? k : n;
    std::vector<double> in;
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < depth; ++j) in.push_back(rows.value(i, j));
    const Tensor from(table.act, in), exact(DType::kF64, from.Values());
    Tensor out(table.act, m * width), want(DType::kF64, m * width);
    LinearArgs args, plain;
    args.m = plain.m = m;
    args.w = weight.view;
    plain.w.type = QuantType::kF32;
    const Tensor floats(DType::kF32, weight.values);
    plain.w.n = n;
    plain.w.k = k;
    plain.w.data = floats.data();
    WorkspaceShape shape;
    shape.m = m;
    shape.k = k;
    shape.n = n;
    shape.threads = threads;
    TestContext ctx(threads, LinearWorkspaceBytes(shape)), ref_ctx(1, LinearWorkspaceBytes(shape));
    if (backward) {
      table.linear_backward(ctx.get(), out.data(), false, from.data(), nullptr, args);
      Ref64Table().linear_backward(ref_ctx.get(), want.data(), false, exact.data(), nullptr, plain);
    } else {
      table.linear_forward(ctx.get(), out.data(), from.data(), args);
      Ref64Table().linear_forward(ref_ctx.get(), want.data(), exact.data(), plain);
    }
    result.Guard("output", out.Intact());
    TakeOutNonFinite(result, table.act, out, want);
    result.Add(backward ? "dx" : "y", out, want, ActTolerance(table));
    result.Guard("workspace", ctx.Intact());
  }
  return result.Result();
}

}  // namespace

std::vector<Case> LinearExtremesCases() {
  static const char* const types[] = {"f32", "bf16", "nf4", "fp4", "int4", "int8"};
  std::vector<Case> cases;
  for (const QuantType type : {QuantType::kNF4, QuantType::kINT8, QuantType::kBF16}) {
    for (const int64_t m : {1, 7}) {
      for (const Rows& rows : kRows) {
        if (m == 1 && &rows >= kRows + 7) continue;  // those of row 1
        cases.push_back({std::string("linear_extremes m=") + std::to_string(m) + " " +
                             types[static_cast<int>(type)] + " rows=" + rows.name,
                         [=, &rows](const KernelTable& t, int threads) {
                           return RunExtremes(t, threads, m, 192, 130, type, rows);
                         }});
      }
    }
  }
  return cases;
}

}  // namespace nibble::kernels::check

// Elementwise ops where numbers end: gates far from zero, and what is no number.
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "kernels/tables.h"
#include "tests/kernels/harness.h"

namespace nibble::kernels::check {
namespace {

// Gates beside which exponentials, powers and reciprocals leave what a float holds. Each is by itself, beside
// small ones: so what should be nothing is compared with something small.
Outcome GatedFar(const KernelTable& t, int threads, int64_t count, Activation activation) {
  if (t.act == DType::kF16) return {};  // has no such numbers
  TestContext ctx(threads, 64), ref_ctx(1, 64);
  const auto values = [&](double even, double odd) {
    std::vector<double> all(static_cast<size_t>(count), even);
    for (size_t i = 1; i < all.size(); i += 2) all[i] = odd;
    return all;
  };
  const GatedArgs args{.width = count, .activation = activation};
  const std::vector<double> quarters = values(0.25, 0.25);
  const Tensor quarter(t.act, quarters), quarter_r(DType::kF64, quarters);
  Comparison result;
  for (const double size : {0x1p-133, 0x1p-127, 0x1p-126, 0x1p-60, 0x1p5, 0x1.5cp6, 0x1.6p6, 0x1p7, 0x1p64,
                            0x1.8p119, 0x1.8p126, 0x1.fep127}) {
    for (const double far : {size, -size}) {
      const auto gates = values(far, 0x1p-10);
      const Tensor gate(t.act, gates), gate_r(DType::kF64, gates);
      Tensor out(t.act, count), dgate(t.act, count), dup(t.act, count), out_r(DType::kF64, count),
          dgate_r(DType::kF64, count), dup_r(DType::kF64, count);
      t.gated_forward(ctx.get(), out.data(), gate.data(), quarter.data(), args);
      t.gated_backward(ctx.get(), dgate.data(), dup.data(), quarter.data(), gate.data(), quarter.data(),
                       args);
      Ref64Table().gated_forward(ref_ctx.get(), out_r.data(), gate_r.data(), quarter_r.data(), args);
      Ref64Table().gated_backward(ref_ctx.get(), dgate_r.data(), dup_r.data(), quarter_r.data(),
                                  gate_r.data(), quarter_r.data(), args);
      const std::string of = " of " + std::to_string(far);
      result.Add("out" + of, out, out_r, ActTolerance(t));
      result.Add("dgate" + of, dgate, dgate_r, ActTolerance(t));
      result.Add("dup" + of, dup, dup_r, ActTolerance(t));
    }
  }
  // Infinity is itself; its derivative, a product of that and nothing, is not defined.
  const auto gates = values(INFINITY, 0x1p-10);
  const Tensor gate(t.act, gates);
  Tensor out(t.act, count);
  t.gated_forward(ctx.get(), out.data(), gate.data(), quarter.data(), args);
  std::vector<double> found = out.Values();
  for (size_t i = 0; i < found.size(); i += 2)
    result.AddScalar("out of infinity", found[i] == INFINITY ? 1 : 0, 1, 0);
  return result.Result();
}

// Ordinary numbers with these bits, which are no numbers in bf16 or fp16, at every ninth place: small, large,
// negative, and what memory full of ones has.
void SetNoNumbers(const Tensor& tensor, int64_t first) {
  constexpr uint16_t kBits[] = {0x7FFF, 0xFFFF, 0x7FC0, 0xFFC0, 0x7F81, 0xFFFE};
  auto* const words = static_cast<uint16_t*>(tensor.data());
  for (int64_t i = first, n = 0; i < tensor.count(); i += 9, ++n) words[i] = kBits[n % 6];
}
// Where it must be no number, and nowhere else.
void AddNoNumbers(Comparison& result, const std::string& name, const Tensor& got,
                  const std::function<bool(int64_t)>& wanted) {
  const std::vector<double> values = got.Values();
  int64_t wrong = 0, first = 0;
  for (int64_t i = got.count() - 1; i >= 0; --i) {
    if (std::isnan(values[static_cast<size_t>(i)]) == wanted(i)) continue;
    ++wrong;
    first = i;
  }
  result.AddScalar(name + ", wrong from " + std::to_string(first) + " on", static_cast<double>(wrong), 0, 0);
}

// What is no number stays so and spoils nothing beside it, however its bits are rounded.
Outcome NoNumber(const KernelTable& t, int threads, int64_t count) {
  if (t.act != DType::kBF16 && t.act != DType::kF16) return {};
  TestContext ctx(threads, 64);
  Comparison result;
  const Tensor a(t.act, Normal(count, 1)), b(t.act, Normal(count, 2)), c(t.act, Normal(count, 3));
  SetNoNumbers(a, 2);
  SetNoNumbers(b, 6);
  const auto of_a = [](int64_t i) { return i >= 2 && (i - 2) % 9 == 0; };
  const auto either = [&](int64_t i) { return of_a(i) || (i >= 6 && (i - 6) % 9 == 0); };
  const Tensor sum(t.act, count);
  t.add(ctx.get(), sum.data(), a.data(), b.data(), count);
  AddNoNumbers(result, "sum", sum, either);
  for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
    const Tensor out(t.act, count), dgate(t.act, count), dup(t.act, count);
    const GatedArgs args{.width = count, .activation = activation};
    t.gated_forward(ctx.get(), out.data(), a.data(), b.data(), args);
    AddNoNumbers(result, "gated", out, either);
    t.gated_backward(ctx.get(), dgate.data(), dup.data(), c.data(), a.data(), b.data(), args);
    AddNoNumbers(result, "dgate", dgate, either);
    AddNoNumbers(result, "dup", dup, of_a);
  }
  return result.Result();
}

// Weights of norms that are no numbers spoil their column, numbers of a row the row.
Outcome NoNumberNorm(const KernelTable& t, int threads, int64_t dim, DType weight_type) {
  if (t.act != DType::kBF16 && t.act != DType::kF16) return {};
  TestContext ctx(threads, 64);
  constexpr int64_t kRows = 3;
  const Tensor x(t.act, Normal(kRows * dim, 1)), dy(t.act, Normal(kRows * dim, 2));
  const Tensor y(t.act, kRows * dim), dx(t.act, kRows * dim), rstd(t.real, kRows);
  const Tensor weights(weight_type, Normal(dim, 3));
  const ParamView view{weights.data(), weight_type};
  const int64_t spoiled = dim / 2;
  std::memset(static_cast<char*>(weights.data()) + spoiled * DTypeBytes(weight_type), 0xFF,
              static_cast<size_t>(DTypeBytes(weight_type)));
  static_cast<uint16_t*>(x.data())[dim] = 0xFFFF;  // the second row's first
  t.rmsnorm_forward(ctx.get(), y.data(), rstd.data(), x.data(), view, kRows, dim, 1e-5f, 0);
  Comparison result;
  AddNoNumbers(result, "y", y, [&](int64_t i) { return i % dim == spoiled || i / dim == 1; });
  t.rmsnorm_backward(ctx.get(), dx.data(), false, dy.data(), x.data(), view, rstd.data(), kRows, dim, 0);
  AddNoNumbers(result, "dx", dx, [](int64_t) { return true; });  // of a row's mean
  return result.Result();
}

}  // namespace

std::vector<Case> ElementwiseExtremesCases() {
  std::vector<Case> cases;
  for (const auto& [activation, name] :
       {std::pair<Activation, const char*>{Activation::kSilu, "silu"}, {Activation::kGeluTanh, "gelu"}}) {
    cases.push_back({std::string("gated far ") + name,
                     [activation = activation](const KernelTable& t, int threads) {
                       return GatedFar(t, threads, 21, activation);
                     }});
  }
  for (const int64_t count : {7, 100}) {
    cases.push_back({"no number count=" + std::to_string(count), [count](const KernelTable& t, int threads) {
                       return NoNumber(t, threads, count);
                     }});
  }
  for (const DType type : {DType::kBF16, DType::kF32}) {
    cases.push_back({std::string("no number rmsnorm ") + (type == DType::kF32 ? "f32" : "bf16"),
                     [type](const KernelTable& t, int threads) {
                       return NoNumberNorm(t, threads, 77, type);
                     }});
  }
  return cases;
}

}  // namespace nibble::kernels::check

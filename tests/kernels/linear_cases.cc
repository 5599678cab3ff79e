// decode_weight, linear_forward, linear_backward.
#include <cmath>

#include "kernels/cpu/workspace.h"
#include "kernels/cuda/workspace.h"
#include "kernels/tables.h"
#include "tests/kernels/harness.h"
#include "tests/kernels/weights.h"

namespace nibble::kernels::check {
namespace {

struct LinearShape {
  int64_t m, k, n, r;
  QuantType type = QuantType::kNF4;
  int64_t block = 64;
  bool nested = true;
  bool bias = false;
  float dropout = 0;
  bool accumulate = false;
};

std::string Name(const std::string& op, const LinearShape& s) {
  static const char* const types[] = {"f32", "bf16", "nf4", "fp4", "int4", "int8"};
  std::string name = op + " m=" + std::to_string(s.m) + " k=" + std::to_string(s.k) +
                     " n=" + std::to_string(s.n) + " r=" + std::to_string(s.r) + " " +
                     types[static_cast<int>(s.type)];
  if (IsQuantized(s.type)) name += " block=" + std::to_string(s.block);
  if (s.nested) name += " nested";
  if (s.bias) name += " bias";
  if (s.dropout > 0) name += " dropout=" + std::to_string(s.dropout).substr(0, 4);
  if (s.accumulate) name += " accumulate";
  return name;
}

// Everything one linear touches, in one table's types.
struct Setup {
  Setup(const KernelTable& table, const LinearShape& s, const TestWeight& weight, DType weight_act)
      : values(DType::kF32, weight.Values(weight_act)),
        x(table.act, Normal(s.m * s.k, 2)),
        a(table.act, Normal(s.r * s.k, 3, 0.3)),
        b(table.act, Normal(s.n * s.r, 4, 0.3)),
        u(table.act, Normal(s.m * s.r, 5)),
        bias(DType::kF32, Normal(s.n, 6)),
        dy(table.act, Normal(s.m * s.n, 7)),
        y(table.act, s.m * s.n),
        dx(table.act, Normal(s.m * s.k, 8)),
        da(table.real, Normal(s.r * s.k, 9)),
        db(table.real, Normal(s.n * s.r, 10)) {
    args.m = s.m;
    args.w = weight.view();
    // The reference multiplies with what the tested table decodes to, so that only products differ.
    if (table.act != weight_act) {
      args.w = WeightView{};
      args.w.type = QuantType::kF32;
      args.w.n = s.n;
      args.w.k = s.k;
      args.w.data = values.data();
    }
    if (s.bias) args.bias = {bias.data(), DType::kF32};
    lora.r = s.r;
    lora.scale = 1.5f;
    lora.a = a.data();
    lora.b = b.data();
    lora.u = u.data();
    lora.da = da.data();
    lora.db = db.data();
    lora.dropout = {11, 22, s.dropout};
    if (s.r > 0) args.lora = &lora;
    WorkspaceShape shape;
    shape.m = s.m;
    shape.k = s.k;
    shape.n = s.n;
    shape.r = s.r;
    workspace = shape;
    cuda = IsCuda(table);
  }
  int64_t WorkspaceBytes(int threads) const {
    WorkspaceShape shape = workspace;
    shape.threads = threads;
    return cuda ? cuda_workspace::LinearOwnBytes(shape) : LinearWorkspaceBytes(shape);
  }
  Tensor values, x, a, b, u, bias, dy, y, dx, da, db;
  LoraArgs lora;
  LinearArgs args;
  WorkspaceShape workspace;
  bool cuda;
};

Outcome RunForward(const KernelTable& table, int threads, const LinearShape& s) {
  const TestWeight weight(s.type, s.n, s.k, s.block, s.nested, 1);
  Setup got(table, s, weight, table.act), want(Ref64Table(), s, weight, table.act);
  TestContext ctx(threads, got.WorkspaceBytes(threads)), ref(1, want.WorkspaceBytes(1));
  table.linear_forward(ctx.get(), got.y.data(), got.x.data(), got.args);
  Ref64Table().linear_forward(ref.get(), want.y.data(), want.x.data(), want.args);
  Comparison result;
  result.Add("y", got.y, want.y, ActTolerance(table));
  if (s.r > 0) result.Add("u", got.u, want.u, ActTolerance(table));
  result.Guard("workspace", ctx.Intact());
  return result.Result();
}

Outcome RunBackward(const KernelTable& table, int threads, const LinearShape& s) {
  const TestWeight weight(s.type, s.n, s.k, s.block, s.nested, 1);
  Setup got(table, s, weight, table.act), want(Ref64Table(), s, weight, table.act);
  TestContext ctx(threads, got.WorkspaceBytes(threads)), ref(1, want.WorkspaceBytes(1));
  table.linear_backward(ctx.get(), got.dx.data(), s.accumulate, got.dy.data(), got.x.data(), got.args);
  Ref64Table().linear_backward(ref.get(), want.dx.data(), s.accumulate, want.dy.data(), want.x.data(),
                               want.args);
  // dy B is rounded to act before it is multiplied again.
  const double tolerance = (s.r > 0 && DTypeBytes(table.act) == 2 ? 2 : 1) * ActTolerance(table);
  Comparison result;
  result.Add("dx", got.dx, want.dx, tolerance);
  if (s.r > 0) {
    result.Add("da", got.da, want.da, tolerance);
    result.Add("db", got.db, want.db, tolerance);
  }
  result.Guard("workspace", ctx.Intact());
  return result.Result();
}

// Bit for bit.
Outcome RunDecode(const KernelTable& table, int threads, const LinearShape& s) {
  const TestWeight weight(s.type, s.n, s.k, s.block, s.nested, 1);
  const int64_t first = s.n / 3, rows = s.n - first;
  const std::vector<double> all = weight.Values(table.act);
  const Tensor want(DType::kF64, {all.begin() + first * s.k, all.end()});
  Tensor got(table.act, rows * s.k);
  TestContext ctx(threads, threads * kThreadBytes);
  table.decode_weight(ctx.get(), got.data(), weight.view(), first, rows);
  Comparison result;
  result.Add("w", got, want, 1e-12);
  result.Guard("workspace", ctx.Intact());
  return result.Result();
}

}  // namespace

std::vector<Case> LinearCases() {
  const QuantType nf4 = QuantType::kNF4;
  const std::vector<LinearShape> shapes = {
      {1, 64, 32, 0},
      {1, 1, 1, 0, nf4, 64, false},
      {12, 64, 32, 0, nf4, 64, false},
      {13, 67, 33, 3, nf4, 64, true, true},
      {100, 192, 192, 16},
      {37, 192, 512, 8, nf4, 64, true, false, 0.1f, true},
      {50, 512, 192, 16, nf4, 64, true, true, 0.5f},
      {25, 130, 70, 33, nf4, 32, true, false, 0, true},
      {7, 4099, 40, 5, nf4, 64, true},
      {5, 40, 4099, 5, nf4, 64, true, false, 0.2f},
      {30, 256, 300, 1, nf4, 128, false},
      {9, 300, 48, 2, nf4, 4096, true},
      {64, 96, 96, 16, QuantType::kBF16},
      {11, 63, 65, 4, QuantType::kBF16, 64, false, true},
      {11, 63, 65, 4, QuantType::kF32, 64, false, true},
      {20, 128, 96, 8, QuantType::kFP4},
      {20, 128, 96, 8, QuantType::kINT4, 64, false},
      {20, 128, 96, 8, QuantType::kINT8},
      {21, 77, 51, 0, QuantType::kINT8, 62, false, false, 0, true},
      {130, 576, 200, 16},
      {1, 576, 200, 16, nf4, 64, true, true},
      {3, 200, 576, 16, nf4, 64, true, true},
      {8, 96, 37, 5, QuantType::kFP4, 32, false, true},
      {3, 9000, 40, 200},
      {200, 4200, 40, 4},
      // One token has a path of its own.
      {1, 192, 70, 8},
      {1, 1088, 37, 3, nf4, 64, true, true},
      {1, 128, 41, 0, nf4, 128, false},
      {1, 96, 33, 20, QuantType::kBF16},
      {1, 64, 50, 4, QuantType::kFP4},
      {1, 320, 21, 0, QuantType::kINT4, 64, false},
      {1, 100, 30, 2, QuantType::kINT8},
      {1, 192, 70, 8, nf4, 64, true, false, 0.1f},
  };
  std::vector<Case> cases;
  for (const LinearShape& s : shapes) {
    cases.push_back({Name("linear_forward", s),
                     [s](const KernelTable& t, int threads) { return RunForward(t, threads, s); }});
    cases.push_back({Name("linear_backward", s),
                     [s](const KernelTable& t, int threads) { return RunBackward(t, threads, s); }});
    cases.push_back({Name("decode_weight", s),
                     [s](const KernelTable& t, int threads) { return RunDecode(t, threads, s); }});
  }
  return cases;
}

}  // namespace nibble::kernels::check

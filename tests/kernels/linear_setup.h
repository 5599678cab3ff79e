// What the cases of linear layers share: shapes, and everything one layer touches.
#pragma once

#include <string>
#include <vector>

#include "kernels/cpu/workspace.h"
#include "kernels/cuda/workspace.h"
#include "tests/kernels/harness.h"
#include "tests/kernels/weights.h"

namespace nibble::kernels::check {

constexpr double kSameBits = 1e-12;  // as a tolerance

struct LinearShape {
  int64_t m, k, n, r;
  QuantType type = QuantType::kNF4;
  int64_t block = 64;
  bool nested = true;
  bool bias = false;
  float dropout = 0;
  bool accumulate = false;
  bool tiles = false;  // of tables that read them
};

inline std::string Name(const std::string& op, const LinearShape& s) {
  static const char* const types[] = {"f32", "bf16", "nf4", "fp4", "int4", "int8"};
  std::string name = op + " m=" + std::to_string(s.m) + " k=" + std::to_string(s.k) +
                     " n=" + std::to_string(s.n) + " r=" + std::to_string(s.r) + " " +
                     types[static_cast<int>(s.type)];
  if (IsQuantized(s.type)) name += " block=" + std::to_string(s.block);
  if (s.nested) name += " nested";
  if (s.bias) name += " bias";
  if (s.dropout > 0) name += " dropout=" + std::to_string(s.dropout).substr(0, 4);
  if (s.accumulate) name += " accumulate";
  if (s.tiles) name += " tiles";
  return name;
}

inline TestWeight WeightOf(const LinearShape& s, bool tiles, uint64_t seed = 1) {
  return TestWeight(s.type, s.n, s.k, s.block, s.nested, seed,
                    tiles ? WeightOrder::kTiles : WeightOrder::kFlat);
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

// Parts of LinearCases: linear_group_cases.cc, linear_extremes_cases.cc.
std::vector<Case> LinearGroupCases();
std::vector<Case> LinearExtremesCases();

}  // namespace nibble::kernels::check

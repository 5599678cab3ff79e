// decode_weight, linear_forward, linear_backward, and the same of several parts.
#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "kernels/tables.h"
#include "tests/kernels/linear_setup.h"

namespace nibble::kernels::check {
namespace {

Outcome RunForward(const KernelTable& table, int threads, const LinearShape& s) {
  if (s.tiles && IsCuda(table)) return {};
  const TestWeight weight = WeightOf(s, s.tiles), flat = WeightOf(s, false);
  Setup got(table, s, weight, table.act), want(Ref64Table(), s, flat, table.act);
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
  if (s.tiles && IsCuda(table)) return {};
  const TestWeight weight = WeightOf(s, s.tiles), flat = WeightOf(s, false);
  Setup got(table, s, weight, table.act), want(Ref64Table(), s, flat, table.act);
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
  if (s.tiles && IsCuda(table)) return {};
  const TestWeight weight = WeightOf(s, s.tiles), flat = WeightOf(s, false);
  const int64_t first = s.n / 3, rows = s.n - first;
  const std::vector<double> all = flat.Values(table.act);
  const Tensor want(DType::kF64, {all.begin() + first * s.k, all.end()});
  Tensor got(table.act, rows * s.k);
  TestContext ctx(threads, threads * kThreadBytes);
  table.decode_weight(ctx.get(), got.data(), weight.view(), first, rows);
  Comparison result;
  result.Add("w", got, want, kSameBits);
  result.Guard("workspace", ctx.Intact());
  return result.Result();
}

// Tiles give, bit for bit, what the flat order gives.
Outcome RunOrders(const KernelTable& table, int threads, const LinearShape& s) {
  if (IsCuda(table)) return {};
  const TestWeight tiles = WeightOf(s, true), flat = WeightOf(s, false);
  Setup got(table, s, tiles, table.act), want(table, s, flat, table.act);
  TestContext ctx(threads, got.WorkspaceBytes(threads));
  for (Setup* setup : {&got, &want}) {
    table.linear_forward(ctx.get(), setup->y.data(), setup->x.data(), setup->args);
    table.linear_backward(ctx.get(), setup->dx.data(), s.accumulate, setup->dy.data(), setup->x.data(),
                          setup->args);
  }
  Comparison result;
  result.Add("y", got.y, want.y, kSameBits);
  result.Add("dx", got.dx, want.dx, kSameBits);
  if (s.r > 0) {
    result.Add("u", got.u, want.u, kSameBits);
    result.Add("da", got.da, want.da, kSameBits);
    result.Add("db", got.db, want.db, kSameBits);
  }
  result.Guard("workspace", ctx.Intact());
  return result.Result();
}

// Rows with one element pick one row or column of the weight, so products show what they decode on their
// way, into panels or registers: three times a decoded value is exact in fp32, and rounds otherwise when
// what is multiplied differs in its last bit or was not rounded. The other cases' tolerance is wider than
// that. What is in fixed point multiplies weights of 13 bits and not what it decodes: then they are equal
// but for rounding, which is checked twice, the second time without what large weights excuse of small ones.
void CheckHeldBits(Comparison& result, const Tensor& got, const Tensor& want) {
  const std::vector<double> a = got.Values(), b = want.Values();
  double largest = 0;
  for (const double value : b) largest = std::max(largest, std::fabs(value));
  for (size_t i = 0; i < b.size(); ++i) {
    const double bound = 0x1p-7 * std::fabs(b[i]) + 0x1p-13 * largest;  // one bf16; half of 1 in 2^12
    if (!(std::fabs(a[i] - b[i]) <= bound)) result.AddScalar("held " + std::to_string(i), a[i], b[i], 1e-9);
  }
}

Outcome RunPicked(const KernelTable& table, int threads, const LinearShape& s) {
  if (s.tiles && IsCuda(table)) return {};
  const TestWeight weight = WeightOf(s, s.tiles), flat = WeightOf(s, false);
  const std::vector<double> decoded = flat.Values(table.act);
  const Setup setup(table, s, weight, table.act);
  TestContext ctx(threads, setup.WorkspaceBytes(threads));
  Comparison result;
  for (const bool backward : {false, true}) {
    const int64_t depth = backward ? s.n : s.k, width = backward ? s.k : s.n;
    for (int64_t batch = 0; batch < 3; ++batch) {
      std::vector<double> rows(static_cast<size_t>(s.m * depth)), picked;
      for (int64_t i = 0; i < s.m; ++i) {
        const int64_t at = (batch * s.m + i) * 37 % depth;
        rows[static_cast<size_t>(i * depth + at)] = 3;
        for (int64_t j = 0; j < width; ++j)
          picked.push_back(3 * decoded[static_cast<size_t>(backward ? at * s.k + j : j * s.k + at)]);
      }
      const Tensor in(table.act, rows), want(table.act, picked);
      Tensor out(table.act, s.m * width);
      if (backward) {
        table.linear_backward(ctx.get(), out.data(), false, in.data(), nullptr, setup.args);
      } else {
        table.linear_forward(ctx.get(), out.data(), in.data(), setup.args);
      }
      const bool fixed = MultipliesInFixedPoint(table) ||
                         (!backward && s.m == 1 && MultipliesOneRowInFixedPoint(table, setup.args.w));
      result.Add(backward ? "rows" : "columns", out, want, fixed ? ActTolerance(table) : kSameBits);
      if (fixed) CheckHeldBits(result, out, want);
    }
  }
  result.Guard("workspace", ctx.Intact());
  return result.Result();
}

std::vector<Case> PickedCases() {
  const QuantType nf4 = QuantType::kNF4;
  const std::vector<LinearShape> shapes = {
      {48, 192, 96, 0},
      {48, 192, 96, 0, nf4, 64, false},
      {48, 67, 33, 0},
      {25, 130, 70, 0, nf4, 32},
      {48, 256, 300, 0, nf4, 128, false},
      {9, 300, 48, 0, nf4, 4096},
      {30, 96, 96, 0, QuantType::kBF16, 64, false},
      {30, 63, 65, 0, QuantType::kF32, 64, false},
      {48, 128, 96, 0, QuantType::kFP4},
      {48, 128, 96, 0, QuantType::kINT4, 64, false},
      {48, 128, 96, 0, QuantType::kINT8},
      {21, 77, 51, 0, QuantType::kINT8, 62, false},
      {20, 4200, 40, 0},
      {20, 40, 4200, 0},
      {1, 1088, 37, 0},
      {1, 128, 41, 0, nf4, 128, false},
      {1, 96, 33, 0, QuantType::kBF16, 64, false},
      {1, 64, 50, 0, QuantType::kFP4},
      {1, 320, 21, 0, QuantType::kINT4, 64, false},
      {1, 100, 30, 0, QuantType::kINT8},
      {48, 192, 96, 0, nf4, 64, true, false, 0, false, true},
      {48, 320, 41, 0, nf4, 64, false, false, 0, false, true},
      {20, 4160, 45, 0, nf4, 64, true, false, 0, false, true},
      {20, 128, 4200, 0, nf4, 64, false, false, 0, false, true},
      {48, 192, 70, 0, QuantType::kFP4, 64, true, false, 0, false, true},
      {48, 192, 70, 0, QuantType::kINT4, 64, false, false, 0, false, true},
      {48, 192, 70, 0, QuantType::kINT8, 64, false, false, 0, false, true},
      {1, 1088, 55, 0, nf4, 64, true, false, 0, false, true},
      {1, 192, 64, 0, nf4, 64, false, false, 0, false, true},
      {1, 192, 34, 0, QuantType::kINT8, 64, false, false, 0, false, true},
      {1, 15424, 19, 0, nf4, 64, true, false, 0, false, true},  // 16 rows have more scales than wait ready
      {1, 30784, 9, 0},                                         // and 8 rows
  };
  std::vector<Case> cases;
  for (const LinearShape& s : shapes) {
    cases.push_back({Name("linear_picks", s),
                     [s](const KernelTable& t, int threads) { return RunPicked(t, threads, s); }});
  }
  return cases;
}

// Parts together are, bit for bit, the parts one after the other, of the flat order.
Outcome RunParts(const KernelTable& table, int threads, const std::vector<LinearShape>& shapes,
                 bool backward) {
  if (table.linear_forward_parts == nullptr) return {};  // a device's; the engine then takes turns
  const TestWeight weight = WeightOf(shapes[0], shapes[0].tiles), flat = WeightOf(shapes[0], false);
  std::vector<std::unique_ptr<Setup>> together, apart;
  std::vector<WorkspaceShape> needs;
  for (const LinearShape& s : shapes) {
    together.push_back(std::make_unique<Setup>(table, s, weight, table.act));
    apart.push_back(std::make_unique<Setup>(table, s, flat, table.act));
    needs.push_back(together.back()->workspace);
    needs.back().threads = threads;
  }
  const auto count = static_cast<int64_t>(shapes.size());
  TestContext ctx(threads, LinearPartsWorkspaceBytes(needs.data(), count));
  std::vector<LinearPart> parts;
  for (size_t i = 0; i < shapes.size(); ++i) {
    Setup& own = *together[i];
    Setup& other = *apart[i];
    TestContext alone(threads, other.WorkspaceBytes(threads));
    if (backward) {
      // The last one's input gradient is not wanted, as in the lowest layer.
      void* dx = i + 1 == shapes.size() ? nullptr : own.dx.data();
      parts.push_back({dx, shapes[i].accumulate, own.dy.data(), own.x.data(), own.args});
      table.linear_backward(alone.get(), dx == nullptr ? nullptr : other.dx.data(), shapes[i].accumulate,
                            other.dy.data(), other.x.data(), other.args);
    } else {
      parts.push_back({own.y.data(), false, own.x.data(), nullptr, own.args});
      table.linear_forward(alone.get(), other.y.data(), other.x.data(), other.args);
    }
  }
  (backward ? table.linear_backward_parts : table.linear_forward_parts)(ctx.get(), parts.data(), count);
  Comparison result;
  for (size_t i = 0; i < shapes.size(); ++i) {
    const std::string of = " of part " + std::to_string(i);
    if (backward) {
      result.Add("dx" + of, together[i]->dx, apart[i]->dx, kSameBits);
      if (shapes[i].r > 0) result.Add("da" + of, together[i]->da, apart[i]->da, kSameBits);
      if (shapes[i].r > 0) result.Add("db" + of, together[i]->db, apart[i]->db, kSameBits);
    } else {
      result.Add("y" + of, together[i]->y, apart[i]->y, kSameBits);
      if (shapes[i].r > 0) result.Add("u" + of, together[i]->u, apart[i]->u, kSameBits);
    }
  }
  result.Guard("workspace", ctx.Intact());
  return result.Result();
}

std::vector<Case> PartsCases() {
  // Rows, ranks and dropout of each part; every shape is of one weight.
  struct Rows {
    int64_t m, r;
    float dropout;
  };
  const std::vector<std::vector<Rows>> groups = {
      {{13, 3, 0}, {64, 16, 0.1f}, {1, 4, 0}, {7, 0, 0}},
      {{50, 8, 0}, {1, 0, 0}},
      {{3, 33, 0.5f}},
      std::vector<Rows>(19, Rows{5, 2, 0.2f})};
  const LinearShape weights[] = {{0, 192, 70, 0},
                                 {0, 67, 33, 0, QuantType::kNF4, 64, true, true},
                                 {0, 4200, 40, 0},
                                 {0, 40, 4200, 0},
                                 {0, 96, 48, 0, QuantType::kBF16},
                                 {0, 128, 96, 0, QuantType::kINT8},
                                 {0, 256, 88, 0, QuantType::kNF4, 64, true, false, 0, false, true}};
  std::vector<Case> cases;
  for (const LinearShape& weight : weights) {
    for (const std::vector<Rows>& group : groups) {
      if (&weight != weights && &group != &groups[0]) continue;
      std::vector<LinearShape> shapes;
      for (const Rows& rows : group) {
        shapes.push_back(weight);
        shapes.back().m = rows.m;
        shapes.back().r = rows.r;
        shapes.back().dropout = rows.dropout;
        shapes.back().accumulate = rows.m % 2 == 1;
      }
      const std::string of = std::to_string(shapes.size()) + " parts of";
      for (const bool backward : {false, true}) {
        const std::string op = backward ? "linear_backward_parts " : "linear_forward_parts ";
        cases.push_back({op + Name(of, shapes[0]), [=](const KernelTable& t, int threads) {
                           return RunParts(t, threads, shapes, backward);
                         }});
      }
    }
  }
  return cases;
}

}  // namespace

std::vector<Case> LinearCases() {
  const QuantType nf4 = QuantType::kNF4;
  std::vector<LinearShape> shapes = {
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
      // Rows that share sets of a cache are copied: of activations, and of gradients.
      {26, 2048, 40, 4, nf4, 64, true, true},
      {26, 40, 2048, 4},
      {25, 8192, 33, 2},
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
  // Whole groups of rows and less, blocks up to and beyond what is fetched at a time, a cut depth.
  std::vector<LinearShape> tiles = {
      {40, 192, 96, 8, nf4, 64, true, true},
      {37, 320, 41, 3, nf4, 64, true, false, 0.1f, true},
      {14, 64, 7, 2, nf4, 64, false},
      {24, 4160, 45, 4},
      {24, 128, 4200, 4, nf4, 64, false},
      {20, 192, 70, 0, QuantType::kFP4},
      {20, 192, 70, 0, QuantType::kINT4, 64, false},
      {20, 192, 70, 4, QuantType::kINT8, 64, false},
      // One token.
      {1, 1088, 55, 3, nf4, 64, true, true},
      {1, 192, 64, 0, nf4, 64, false},
      {1, 192, 34, 0, QuantType::kINT8, 64, false},
  };
  std::vector<Case> cases = PartsCases();
  for (LinearShape& s : tiles) {
    cases.push_back({Name("linear_orders", s),
                     [s](const KernelTable& t, int threads) { return RunOrders(t, threads, s); }});
    s.tiles = true;
  }
  shapes.insert(shapes.end(), tiles.begin(), tiles.end());
  for (const LinearShape& s : shapes) {
    cases.push_back({Name("linear_forward", s),
                     [s](const KernelTable& t, int threads) { return RunForward(t, threads, s); }});
    cases.push_back({Name("linear_backward", s),
                     [s](const KernelTable& t, int threads) { return RunBackward(t, threads, s); }});
    cases.push_back({Name("decode_weight", s),
                     [s](const KernelTable& t, int threads) { return RunDecode(t, threads, s); }});
  }
  for (auto part : {PickedCases(), LinearGroupCases(), LinearExtremesCases()})
    for (Case& c : part) cases.push_back(std::move(c));
  return cases;
}

}  // namespace nibble::kernels::check

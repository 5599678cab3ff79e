// linear_group_forward and linear_group_backward: against the reference, and against their layers
// one by one.
#include <algorithm>
#include <memory>
#include <string_view>

#include "kernels/tables.h"
#include "tests/kernels/linear_setup.h"

namespace nibble::kernels::check {
namespace {

// Layers of one input, with outputs of their own or as columns of one array. A shape of r 0 has no
// adapter.
struct GroupShape {
  std::vector<LinearShape> of;
  bool columns = false;
};

std::string GroupName(const std::string& op, const GroupShape& s) {
  std::string name = Name(op, s.of[0]);
  for (size_t i = 1; i < s.of.size(); ++i)
    name += " + n=" + std::to_string(s.of[i].n) + " r=" + std::to_string(s.of[i].r) +
            (s.of[i].bias ? " bias" : "");
  return name + (s.columns ? " columns" : "");
}

struct GroupSetup {
  GroupSetup(const KernelTable& table, const GroupShape& s, DType weight_act, bool reference) {
    WorkspaceShape shape;
    shape.m = s.of[0].m;
    shape.k = s.of[0].k;
    int64_t all = 0, n[kMostGrouped] = {}, slices = 0;
    for (size_t i = 0; i < s.of.size(); ++i) {
      const LinearShape& one = s.of[i];
      weights.push_back(
          std::make_unique<TestWeight>(WeightOf(one, one.tiles && !reference, 1 + i)));
      layers.push_back(std::make_unique<Setup>(table, one, *weights[i], weight_act));
      layers[i]->lora.dropout.stream += i;
      group.linear[i] = layers[i]->args;
      n[i] = one.n;
      all += one.n;
      shape.r = std::max(shape.r, one.r);
      slices = std::max(slices, layers[i]->WorkspaceBytes(1));
    }
    group.count = static_cast<int>(s.of.size());
    bytes = IsCuda(table) ? cuda_workspace::LinearGroupOwnBytes(shape, n, group.count,
                                                                !s.columns && all > n[0], false)
                          : slices;
    if (s.columns) group.stride = all;
    columns = std::make_unique<Tensor>(table.act, Normal(shape.m * all, 12));
  }
  // Forward to y, going back from dy.
  void Point(const KernelTable& table, bool backward) {
    int64_t offset = 0;
    for (int i = 0; i < group.count; ++i) {
      const Setup& layer = *layers[static_cast<size_t>(i)];
      group.y[i] = backward ? layer.dy.data() : layer.y.data();
      if (group.stride != 0)
        group.y[i] = static_cast<char*>(columns->data()) + offset * DTypeBytes(table.act);
      offset += group.linear[i].w.n;
    }
  }
  std::vector<std::unique_ptr<TestWeight>> weights;
  std::vector<std::unique_ptr<Setup>> layers;
  std::unique_ptr<Tensor> columns;
  LinearGroup group;
  int64_t bytes = 0;
};

Outcome RunGroup(const KernelTable& table, int threads, const GroupShape& s, bool backward) {
  if (table.linear_group_forward == nullptr)
    return {};  // the engine then gives it the layers one by one
  if (s.of[0].tiles && IsCuda(table)) return {};
  GroupSetup got(table, s, table.act, false), want(Ref64Table(), s, table.act, true);
  got.Point(table, backward);
  want.Point(Ref64Table(), backward);
  TestContext ctx(threads, got.bytes), ref(1, want.bytes);
  Setup &first = *got.layers[0], &first_want = *want.layers[0];
  if (backward) {
    table.linear_group_backward(ctx.get(), first.dx.data(), first.x.data(), got.group);
    Ref64Table().linear_group_backward(ref.get(), first_want.dx.data(), first_want.x.data(),
                                       want.group);
  } else {
    table.linear_group_forward(ctx.get(), first.x.data(), got.group);
    Ref64Table().linear_group_forward(ref.get(), first_want.x.data(), want.group);
  }
  const double tolerance = 2 * ActTolerance(table);
  Comparison result;
  if (backward) result.Add("dx", first.dx, first_want.dx, tolerance);
  if (!backward && s.columns) result.Add("y", *got.columns, *want.columns, tolerance);
  for (size_t i = 0; i < s.of.size(); ++i) {
    const Setup &mine = *got.layers[i], &theirs = *want.layers[i];
    const std::string number = " " + std::to_string(i);
    if (!backward && !s.columns) result.Add("y" + number, mine.y, theirs.y, tolerance);
    if (s.of[i].r == 0) continue;
    if (!backward) result.Add("u" + number, mine.u, theirs.u, ActTolerance(table));
    if (backward) result.Add("da" + number, mine.da, theirs.da, tolerance);
    if (backward) result.Add("db" + number, mine.db, theirs.db, tolerance);
  }
  result.Guard("workspace", ctx.Intact());
  return result.Result();
}

// Whether the table's large products are our own, with one order of sums whatever stands beside an
// output. The vendor's library chooses an algorithm by the whole shape.
bool HasOwnProducts(const KernelTable& table) {
  return std::string_view(table.name) == "cuda-emulated" ||
         std::string_view(table.body).find("own products") != std::string_view::npos;
}

// A group against its layers one by one, of the same table. Adapters' products are each layer's
// own, so theirs are the same bits. The outputs are where products are ours and both round alike:
// columns of one array, and layers with neither adapter nor bias. Otherwise, and in dx, which is
// rounded once here and once per layer there, they differ by roundings.
Outcome RunMerged(const KernelTable& table, int threads, const GroupShape& s) {
  if (!IsCuda(table) || s.of[0].tiles) return {};
  GroupSetup merged(table, s, table.act, false), apart(table, s, table.act, false);
  const double tolerance = 2 * ActTolerance(table);
  Comparison result;
  const Setup &first = *merged.layers[0], &first_apart = *apart.layers[0];
  for (const bool backward : {false, true}) {
    merged.Point(table, backward);
    TestContext ctx(threads, merged.bytes);
    if (backward)
      table.linear_group_backward(ctx.get(), first.dx.data(), first.x.data(), merged.group);
    else
      table.linear_group_forward(ctx.get(), first.x.data(), merged.group);
    result.Guard("workspace", ctx.Intact());
    const std::vector<double> columns = merged.columns->Values();
    int64_t offset = 0;
    for (size_t i = 0; i < s.of.size(); ++i) {
      const Setup &mine = *merged.layers[i], &alone = *apart.layers[i];
      const int64_t m = s.of[i].m, n = s.of[i].n, r = s.of[i].r;
      const std::string number = " " + std::to_string(i);
      // This layer's part of the array of all.
      std::vector<double> part;
      if (s.columns)
        for (int64_t row = 0; row < m; ++row)
          for (int64_t column = 0; column < n; ++column)
            part.push_back(
                columns[static_cast<size_t>(row * merged.group.stride + offset + column)]);
      offset += n;
      TestContext one(threads, alone.WorkspaceBytes(threads));
      if (backward) {
        const Tensor dy(table.act, s.columns ? part : alone.dy.Values());
        table.linear_backward(one.get(), first_apart.dx.data(), i > 0, dy.data(), alone.x.data(),
                              alone.args);
        if (r > 0) result.Add("da" + number, mine.da, alone.da, kSameBits);
        if (r > 0) result.Add("db" + number, mine.db, alone.db, kSameBits);
        continue;
      }
      table.linear_forward(one.get(), alone.y.data(), alone.x.data(), alone.args);
      const bool rounds_alike = s.columns || (r == 0 && !s.of[i].bias);
      const double of_y = HasOwnProducts(table) && rounds_alike ? kSameBits : tolerance;
      if (s.columns)
        result.Add("y" + number, Tensor(table.act, part), alone.y, of_y);
      else
        result.Add("y" + number, mine.y, alone.y, of_y);
      if (r > 0) result.Add("u" + number, mine.u, alone.u, kSameBits);
    }
  }
  result.Add("dx", first.dx, first_apart.dx, tolerance);
  return result.Result();
}

std::vector<GroupShape> GroupShapes() {
  const QuantType nf4 = QuantType::kNF4, bf16 = QuantType::kBF16;
  return {
      {{{40, 192, 128, 8}, {40, 192, 32, 8}, {40, 192, 32, 8}}},
      {{{40, 192, 128, 8, nf4, 64, true, false, 0.1f},
        {40, 192, 32, 8, nf4, 64, true, false, 0.1f},
        {40, 192, 32, 8, nf4, 64, true, false, 0.1f}}},
      // Some have an adapter, some a bias.
      {{{21, 67, 33, 3, nf4, 64, true, true},
        {21, 67, 10, 0},
        {21, 67, 70, 3, nf4, 64, true, true}}},
      {{{9, 128, 24, 0}, {9, 128, 40, 0}}},
      {{{130, 64, 200, 16}, {130, 64, 200, 16}}, true},
      {{{35, 96, 88, 33, nf4, 64, true, false, 0.3f}, {35, 96, 88, 33, nf4, 64, true, false, 0.3f}},
       true},
      {{{20, 130, 70, 4, QuantType::kINT8}, {20, 130, 50, 4, QuantType::kFP4, 32, false}}, true},
      {{{12, 64, 32, 0}, {12, 64, 48, 2, nf4, 64, true, true}}, true},
      {{{30, 96, 64, 16, bf16}, {30, 96, 32, 16, bf16}}},
      {{{30, 128, 70, 4, nf4, 64, true, true, 0, false, true},
        {30, 128, 48, 0, nf4, 64, false, false, 0, false, true}}},
  };
}

}  // namespace

std::vector<Case> LinearGroupCases() {
  std::vector<Case> cases;
  for (const GroupShape& s : GroupShapes()) {
    cases.push_back({GroupName("linear_group_forward", s), [s](const KernelTable& t, int threads) {
                       return RunGroup(t, threads, s, false);
                     }});
    cases.push_back({GroupName("linear_group_backward", s), [s](const KernelTable& t, int threads) {
                       return RunGroup(t, threads, s, true);
                     }});
    cases.push_back({GroupName("linear_group_merged", s),
                     [s](const KernelTable& t, int threads) { return RunMerged(t, threads, s); }});
  }
  return cases;
}

}  // namespace nibble::kernels::check

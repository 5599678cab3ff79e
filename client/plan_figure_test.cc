// The figure of a plan: what the curve says, and what is drawn of it.
#include "client/plan_figure.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_join.h"

namespace nibble::client {
namespace {

using testing::HasSubstr;
using testing::Not;

v1::MemoryLayout Layout() {
  v1::MemoryLayout layout;
  layout.set_operations(10);
  layout.mutable_plan()->set_total_bytes(1000);
  layout.mutable_plan()->set_base_bytes(400);
  layout.mutable_plan()->set_persistent_bytes(200);
  layout.mutable_plan()->set_step_bytes(300);
  layout.mutable_plan()->set_fixed_bytes(100);
  const auto add = [&](const char* name, const char* category, bool persistent, int64_t offset,
                       int64_t bytes, int first, int last) {
    auto* b = layout.add_buffers();
    b->set_name(name);
    b->set_category(category);
    b->set_persistent(persistent);
    b->set_offset(offset);
    b->set_size_bytes(bytes);
    b->set_first_use(first);
    b->set_last_use(last);
  };
  add("adapters.master", "adapters", true, 0, 120, 0, 0);
  add("optimizer.m", "optimizer", true, 120, 60, 0, 0);
  add("layer0.x", "activations", false, 0, 100, 0, 8);
  add("layer0.q", "activations", false, 100, 150, 4, 6);
  add("workspace.5", "workspace", false, 250, 40, 5, 5);
  const std::pair<const char*, int> phases[] = {{"forward layer 0", 0}, {"loss", 3},
                                                {"recompute layer 0", 4}, {"backward layer 0", 5},
                                                {"optimizer", 8},       {"evaluate layer 0", 9}};
  for (const auto& [name, first] : phases) {
    auto* phase = layout.add_phases();
    phase->set_name(name);
    phase->set_first_use(first);
  }
  return layout;
}

TEST(PlanCurve, AddsUpWhatLivesAtEveryOperation) {
  const PlanCurve curve = CurveOf(Layout());
  EXPECT_EQ(curve.ConstantBytes(), 400 + 200 + 100);
  EXPECT_EQ(curve.LayerBytes(Layer::kTables, 0), 20) << "of the persistent region, in no buffer";
  EXPECT_THAT(curve.activation_bytes,
              testing::ElementsAre(100, 100, 100, 100, 250, 250, 250, 100, 100, 0));
  EXPECT_EQ(curve.workspace_bytes[5], 40);
  EXPECT_EQ(curve.peak, 5);
  EXPECT_EQ(curve.peak_phase, "backward layer 0");
  EXPECT_EQ(curve.BytesAt(5), 990);
  std::vector<std::string> names;
  for (const auto& span : curve.spans) names.push_back(span.name);
  EXPECT_EQ(absl::StrJoin(names, " "), "forward loss backward optimizer evaluation");
  EXPECT_EQ(curve.spans[2].first, 4);
  EXPECT_EQ(curve.spans[2].last, 7);
}

TEST(PlanCurve, ActivationsMayBePersistent) {
  v1::MemoryLayout layout = Layout();
  layout.mutable_plan()->set_persistent_bytes(300);
  layout.mutable_plan()->set_step_bytes(200);
  layout.mutable_buffers(2)->set_persistent(true);  // layer0.x, of a job that may step with others
  layout.mutable_buffers(2)->set_offset(200);
  const PlanCurve curve = CurveOf(layout);
  EXPECT_EQ(curve.ConstantBytes(), CurveOf(Layout()).ConstantBytes());
  EXPECT_EQ(curve.activation_bytes, CurveOf(Layout()).activation_bytes);
}

TEST(PlotPlan, MarksThePeakAndNamesEveryLayer) {
  const auto lines = PlotPlan(CurveOf(Layout()), 80, 10, {.color = false, .unicode = false});
  ASSERT_GT(lines.size(), 10u);
  EXPECT_THAT(lines[0], HasSubstr("peak 990 B in backward layer 0 v"));
  const std::string all = absl::StrJoin(lines, "\n");
  for (const char* part : {"base 400 B", "adapters 120 B", "activations 250 B", "workspace 40 B",
                           "1000 B reserved", "10 operations"}) {
    EXPECT_THAT(all, HasSubstr(part));
  }
  for (const std::string& line : lines) EXPECT_LE(DisplayWidth(line), 80) << line;
  EXPECT_TRUE(PlotPlan(CurveOf(v1::MemoryLayout()), 80, 10, {}).empty());
}

TEST(PlanSvg, IsOneDocumentWithEscapedTexts) {
  const std::string svg = PlanSvg(Layout(), "a <b> & c", "sub");
  EXPECT_THAT(svg, testing::StartsWith("<svg "));
  EXPECT_THAT(svg, testing::EndsWith("</svg>\n"));
  EXPECT_THAT(svg, HasSubstr("a &lt;b&gt; &amp; c"));
  EXPECT_THAT(svg, HasSubstr("peak 990 B in backward layer 0"));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_EQ(PlanSvg(v1::MemoryLayout(), "t", "s"), "");
}

}  // namespace
}  // namespace nibble::client

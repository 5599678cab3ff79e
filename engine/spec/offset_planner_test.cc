#include "engine/spec/offset_planner.h"

#include "base/random.h"
#include "gtest/gtest.h"

namespace nibble::spec {
namespace {

TEST(PlanOffsets, ReusesWhatIsFree) {
  const OffsetPlan plan = PlanOffsets({{100, 0, 1}, {100, 2, 3}, {64, 1, 2}}, 64);
  EXPECT_EQ(plan.offsets[0], plan.offsets[1]);
  EXPECT_EQ(plan.total_bytes, 192);
  EXPECT_EQ(plan.lower_bound_bytes, 192);
  EXPECT_EQ(plan.peak_use, 1);
}

TEST(PlanOffsets, EmptyIsNothing) { EXPECT_EQ(PlanOffsets({}, 64).total_bytes, 0); }

TEST(PlanOffsets, RandomPlansAreValidAndTight) {
  Random random(7);
  for (int round = 0; round < 50; ++round) {
    std::vector<LiveBuffer> buffers;
    for (int i = 0; i < 120; ++i) {
      const auto first = static_cast<int32_t>(random.Below(100));
      buffers.push_back(
          {random.Between(1, 5000), first, first + static_cast<int32_t>(random.Below(12))});
    }
    const OffsetPlan plan = PlanOffsets(buffers, 64);
    EXPECT_GE(plan.total_bytes, plan.lower_bound_bytes);
    EXPECT_LE(plan.total_bytes, plan.lower_bound_bytes * 5 / 4);
    for (size_t i = 0; i < buffers.size(); ++i) {
      EXPECT_EQ(plan.offsets[i] % 64, 0);
      EXPECT_LE(plan.offsets[i] + buffers[i].size_bytes, plan.total_bytes);
      for (size_t j = 0; j < i; ++j) {
        if (buffers[i].last_use < buffers[j].first_use ||
            buffers[j].last_use < buffers[i].first_use) {
          continue;
        }
        EXPECT_TRUE(plan.offsets[i] + buffers[i].size_bytes <= plan.offsets[j] ||
                    plan.offsets[j] + buffers[j].size_bytes <= plan.offsets[i]);
      }
    }
  }
}

}  // namespace
}  // namespace nibble::spec

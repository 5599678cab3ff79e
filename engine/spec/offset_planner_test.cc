#include "engine/spec/offset_planner.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

#include "base/random.h"
#include "engine/spec/round.h"
#include "gtest/gtest.h"

namespace nibble::spec {
namespace {

bool Meet(const LiveBuffer& a, const LiveBuffer& b) {
  return a.last_use >= b.first_use && a.first_use <= b.last_use;
}

// The same plan by comparing each buffer with all that are placed: what PlanOffsets has to find faster.
OffsetPlan PlanByComparing(const std::vector<LiveBuffer>& buffers, int64_t alignment) {
  const auto life = [](const LiveBuffer& b) { return int64_t{b.last_use} - b.first_use + 1; };
  const auto area = [&](const LiveBuffer& b) {
    return static_cast<double>(b.size_bytes) * static_cast<double>(life(b));
  };
  using Less = std::function<bool(const LiveBuffer&, const LiveBuffer&)>;
  const Less orders[] = {
      [](const LiveBuffer& a, const LiveBuffer& b) { return a.size_bytes > b.size_bytes; },
      [&](const LiveBuffer& a, const LiveBuffer& b) { return life(a) > life(b); },
      [&](const LiveBuffer& a, const LiveBuffer& b) { return area(a) > area(b); },
      [](const LiveBuffer& a, const LiveBuffer& b) { return a.first_use < b.first_use; }};
  OffsetPlan best;
  best.total_bytes = std::numeric_limits<int64_t>::max();
  for (const Less& less : orders) {
    std::vector<size_t> order(buffers.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return less(buffers[a], buffers[b]); });
    std::vector<int64_t> offsets(buffers.size());
    int64_t total = 0;
    for (size_t done = 0; done < order.size(); ++done) {
      const LiveBuffer& buffer = buffers[order[done]];
      const auto rounded = [&](size_t i) { return RoundUp(buffers[i].size_bytes, alignment); };
      std::vector<std::pair<int64_t, int64_t>> busy;
      for (size_t i = 0; i < done; ++i) {
        if (Meet(buffer, buffers[order[i]]))
          busy.push_back({offsets[order[i]], offsets[order[i]] + rounded(order[i])});
      }
      std::sort(busy.begin(), busy.end());
      const int64_t size = rounded(order[done]);
      int64_t begin = 0;
      for (const auto& [from, to] : busy) {
        if (from - begin >= size) break;
        begin = std::max(begin, to);
      }
      offsets[order[done]] = begin;
      total = std::max(total, begin + size);
    }
    if (total < best.total_bytes) {
      best.total_bytes = total;
      best.offsets = offsets;
    }
  }
  return best;
}

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

// Lives of a moment, of most of a step and of anything between; sizes of which many are equal.
std::vector<LiveBuffer> RandomLives(Random& random) {
  const auto last = static_cast<int32_t>(random.Between(1, 3000));
  std::vector<LiveBuffer> buffers;
  for (int64_t i = random.Between(1, 400); i > 0; --i) {
    const auto first = static_cast<int32_t>(random.Below(static_cast<uint64_t>(last) + 1));
    const int64_t life = random.Chance(0.6) ? random.Between(0, 30) : random.Between(0, 3000);
    const int64_t size = random.Chance(0.7) ? 512 * random.Between(1, 6) : random.Between(1, 9000);
    buffers.push_back({size, first, static_cast<int32_t>(std::min<int64_t>(last, first + life))});
  }
  return buffers;
}

TEST(PlanOffsets, FindsTheSameOffsetsAsComparingWithEverybody) {
  Random random(21);
  for (int round = 0; round < 150; ++round) {
    const std::vector<LiveBuffer> buffers = RandomLives(random);
    const OffsetPlan plan = PlanOffsets(buffers, 64), compared = PlanByComparing(buffers, 64);
    EXPECT_EQ(plan.total_bytes, compared.total_bytes) << round;
    ASSERT_EQ(plan.offsets, compared.offsets) << round;
  }
}

TEST(PlanOffsets, EnoughChangesNothingWithinIt) {
  Random random(22);
  constexpr int64_t kPage = 4096;
  const auto pages = [](int64_t bytes) { return (bytes + kPage - 1) / kPage; };
  for (int round = 0; round < 150; ++round) {
    const std::vector<LiveBuffer> buffers = RandomLives(random);
    const OffsetPlan best = PlanOffsets(buffers, 64), enough = PlanOffsets(buffers, 64, kPage);
    EXPECT_EQ(pages(best.total_bytes), pages(enough.total_bytes));
    EXPECT_EQ(best.lower_bound_bytes, enough.lower_bound_bytes);
    EXPECT_EQ(best.peak_use, enough.peak_use);
  }
}

}  // namespace
}  // namespace nibble::spec

#include "engine/data/packing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "base/random.h"

namespace nibble::engine {
namespace {

using ::testing::ElementsAre;

TEST(EpochOrder, IsAPermutationKeyedBySeedAndEpoch) {
  const auto order = EpochOrder(42, 0, 1000);
  auto sorted = order;
  std::sort(sorted.begin(), sorted.end());
  for (int32_t i = 0; i < 1000; ++i) EXPECT_EQ(sorted[i], i);
  EXPECT_EQ(order, EpochOrder(42, 0, 1000));
  EXPECT_NE(order, EpochOrder(42, 1, 1000));
  EXPECT_NE(order, EpochOrder(43, 0, 1000));
  EXPECT_NE(order, sorted);
}

std::vector<int32_t> RandomLengths(int count, int32_t most) {
  Random random(1);
  std::vector<int32_t> lengths;
  for (int i = 0; i < count; ++i) lengths.push_back(static_cast<int32_t>(1 + random.Below(most)));
  return lengths;
}

TEST(PackRows, FillsRowsWithoutOverflowAndUsesEveryExampleOnce) {
  const auto lengths = RandomLengths(5000, 300);
  const auto order = EpochOrder(1, 0, 5000);
  const EpochRows rows = PackRows(lengths, order, 512, true);
  std::vector<int> used(lengths.size());
  int64_t tokens = 0;
  for (int64_t r = 0; r < rows.count(); ++r) {
    int32_t sum = 0;
    for (const int32_t example : rows.Row(r)) {
      ++used[example];
      sum += lengths[example];
    }
    EXPECT_GT(sum, 0);
    EXPECT_LE(sum, 512);
    tokens += sum;
  }
  EXPECT_TRUE(std::all_of(used.begin(), used.end(), [](int n) { return n == 1; }));
  EXPECT_GT(static_cast<double>(tokens), 0.97 * 512 * static_cast<double>(rows.count()));
  EXPECT_EQ(PackRows(lengths, order, 512, false).count(), 5000);
}

TEST(PackRows, FirstFitInTheOrderOfOpening) {
  const std::vector<int32_t> lengths = {6, 5, 4, 5, 10};
  const std::vector<int32_t> order = {0, 1, 2, 3, 4};
  const EpochRows rows = PackRows(lengths, order, 10, true);
  ASSERT_EQ(rows.count(), 3);
  EXPECT_THAT(rows.Row(0), ElementsAre(0, 2));
  EXPECT_THAT(rows.Row(1), ElementsAre(1, 3));
  EXPECT_THAT(rows.Row(2), ElementsAre(4));
}

spec::TrainSpec Spec(bool packing) {
  spec::TrainSpec spec;
  spec.sequence_len = 512;
  spec.micro_batch_size = 3;
  spec.gradient_accumulation_steps = 2;
  spec.num_epochs = 2.5;
  spec.sample_packing = packing;
  return spec;
}

TEST(StepSchedule, EveryEpochUsesEveryExampleOnce) {
  const auto lengths = RandomLengths(400, 300);
  for (const bool packing : {false, true}) {
    StepSchedule schedule(lengths, Spec(packing));
    std::vector<std::vector<int>> used(3, std::vector<int>(lengths.size()));
    double done = 0;
    for (int64_t step = 1; step <= schedule.total_steps(); ++step) {
      const auto at = schedule.At(step);
      EXPECT_GT(at.epoch_done, done);
      done = at.epoch_done;
      EXPECT_LE(at.batches.size(), 2u);
      for (const auto& batch : at.batches) {
        EXPECT_LE(batch.size(), 3u);
        for (const auto& row : batch) {
          for (const int32_t example : row) ++used[at.epoch][example];
        }
      }
    }
    EXPECT_TRUE(std::all_of(used[0].begin(), used[0].end(), [](int n) { return n == 1; }));
    EXPECT_TRUE(std::all_of(used[1].begin(), used[1].end(), [](int n) { return n == 1; }));
    EXPECT_NEAR(done, 2.5, 0.05);
    if (!packing) {
      EXPECT_EQ(schedule.steps_per_epoch(), 67);
      EXPECT_EQ(schedule.total_steps(), 67 + 67 + 34);
    }
  }
}

TEST(StepSchedule, AStepDependsOnNothingButItsNumber) {
  const auto lengths = RandomLengths(100, 300);
  for (const bool packing : {false, true}) {
    spec::TrainSpec spec = Spec(packing);
    spec.max_steps = 200;
    StepSchedule forward(lengths, spec), jumping(lengths, spec);
    EXPECT_EQ(forward.total_steps(), 200);
    for (int64_t step = 1; step < 150; ++step) forward.At(step);
    EXPECT_EQ(forward.At(150).batches, jumping.At(150).batches);
    EXPECT_EQ(jumping.At(3).batches, forward.At(3).batches);
    EXPECT_NE(jumping.At(3).batches, forward.At(4).batches);
  }
}

TEST(StepSchedule, OneExampleIsEnough) {
  StepSchedule schedule({7}, Spec(true));
  EXPECT_EQ(schedule.total_steps(), 3);
  EXPECT_EQ(schedule.At(3).batches.size(), 1u);
}

}  // namespace
}  // namespace nibble::engine

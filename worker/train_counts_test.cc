#include "worker/train_counts.h"

#include <cmath>

#include "gtest/gtest.h"

namespace nibble::worker {
namespace {

EngineStep Step(double loss, int64_t tokens, int64_t targets, int64_t us) {
  EngineStep step;
  step.metric.loss = loss;
  step.metric.gradient_norm = 1;
  step.metric.tokens = tokens;
  step.metric.target_tokens = targets;
  step.metric.step_time_us = us;
  step.metric.phase_us = {us / 2, 7, 0, 0, 0, 0};
  return step;
}

TEST(TrainCounts, AddsUpSteps) {
  TrainCounts counts;
  EngineStep fused = Step(2.5, 100, 40, 20'000);
  fused.metric.jobs = 3;
  counts.Count(fused, 0);
  counts.Count(Step(std::nan(""), 50, 50, 400'000'000), 0);
  EXPECT_EQ(counts.steps, 2);
  EXPECT_EQ(counts.fused_steps, 1);
  EXPECT_EQ(counts.nonfinite_steps, 1);
  EXPECT_EQ(counts.target_tokens, 90);
  EXPECT_EQ(counts.context_tokens, 60);
  EXPECT_EQ(counts.phase_us[0], 200'010'000);
  EXPECT_EQ(counts.phase_us[1], 14);
  EXPECT_EQ(counts.step_time.bucket(1), 1);                                // up to 0.03 s
  EXPECT_EQ(counts.step_time.bucket(DurationCounts::kBounds.size()), 1);   // above all bounds
  EXPECT_DOUBLE_EQ(counts.step_time.sum_seconds(), 400.02);
}

TEST(TrainCounts, TimesCheckpointsFromTheirPhase) {
  TrainCounts counts;
  const AttemptKey key{"job", 1};
  counts.Count(EngineCheckpoint{.key = key}, 10);   // its beginning was not seen
  counts.Count(EnginePhase{.key = key, .phase = Phase::kCheckpointing}, 1'000'000);
  counts.Count(EnginePhase{.key = key, .phase = Phase::kTraining}, 2'000'000);
  counts.Count(EngineCheckpoint{.key = key}, 3'500'000);
  EXPECT_DOUBLE_EQ(counts.checkpoint_time.sum_seconds(), 2.5);
  counts.Count(UploadFailed{}, 0);
  counts.Count(EngineNoRoom{.key = key}, 0);
  EXPECT_EQ(counts.checkpoint_failures, 2);
  counts.Count(EnginePhase{.key = key, .phase = Phase::kCheckpointing}, 4'000'000);
  counts.Forget(key);  // its engine died
  counts.Count(EngineCheckpoint{.key = key}, 9'000'000);
  EXPECT_DOUBLE_EQ(counts.checkpoint_time.sum_seconds(), 2.5);
}

}  // namespace
}  // namespace nibble::worker

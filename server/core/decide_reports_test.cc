// What workers report of attempts that go well: fences, results, checkpoints, numerics, CHECKs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "base/error.h"
#include "server/core/testing/running_job.h"

namespace nibble::core {
namespace {

using ::testing::HasSubstr;
using testing::Driver;
using testing::kMB;
using testing::ReasonOf;
using testing::RunningTest;

TEST_F(RunningTest, FinishesWithOneResult) {
  EXPECT_EQ(state(), JobState::kRunning);
  const Fence fence = d_.FenceOf("j");
  const ReportFinished finished{fence, 9, d_.Upload("adapter"), "completed"};
  d_.Must(finished);
  EXPECT_EQ(state(), JobState::kSucceeded);
  EXPECT_EQ(d_.state().adapters.at("j").files, finished.files);
  const int64_t sequence = d_.job("j").last_sequence;
  d_.Must(finished);  // a repeat
  EXPECT_EQ(d_.job("j").last_sequence, sequence);
  EXPECT_EQ(ReasonOf(d_.Do(Failed("INTERNAL", false))), Reason::kStaleAttempt);
  EXPECT_EQ(ReasonOf(d_.Do(CancelJob{"j"})), Reason::kJobNotCancellable);
  EXPECT_EQ(ReasonOf(d_.Do(PauseJob{"j"})), Reason::kJobNotPausable);
}

TEST_F(RunningTest, BytesThatAreNotHereCannotBeReferredTo) {
  const std::vector<FileRef> files = {{"adapter", std::string(64, 'e'), 7}};
  EXPECT_EQ(ReasonOf(d_.Do(ReportFinished{d_.FenceOf("j"), 9, files, ""})), Reason::kBlobNotFound);
  EXPECT_EQ(ReasonOf(d_.Do(ReportCheckpoint{d_.FenceOf("j"), 9, files, "m", 0})),
            Reason::kBlobNotFound);
  EXPECT_EQ(state(), JobState::kRunning);
}

TEST_F(RunningTest, EveryPartOfTheFenceCounts) {
  const Fence good = d_.FenceOf("j");
  Fence bad = good;
  bad.epoch = 2;
  EXPECT_EQ(ReasonOf(d_.Do(ReportReleased{bad, 0})), Reason::kStaleAttempt);
  bad = good;
  bad.worker_id = "w2";
  EXPECT_EQ(ReasonOf(d_.Do(ReportReleased{bad, 0})), Reason::kStaleAttempt);
  bad = good;
  bad.incarnation = "i2";
  EXPECT_EQ(ReasonOf(d_.Do(ReportReleased{bad, 0})), Reason::kStaleAttempt);
  bad = good;
  bad.token = "x";
  EXPECT_EQ(ReasonOf(d_.Do(ReportReleased{bad, 0})), Reason::kStaleAttempt);
  EXPECT_TRUE(d_.Do(ReportReleased{good, 0}).ok());
}

TEST_F(RunningTest, CheckpointsGoForwardAndTheNewestAreKept) {
  d_.core().options.poison_workers = 99;
  for (int64_t step = 1; step <= 5; ++step) {
    d_.Must(ReportCheckpoint{d_.FenceOf("j"), step, d_.Upload("c"), "m" + std::to_string(step), 0});
  }
  ASSERT_EQ(d_.job("j").checkpoints.size(), 3u);
  EXPECT_EQ(d_.job("j").checkpoints.front().step, 3);
  EXPECT_EQ(ReasonOf(d_.Do(ReportCheckpoint{d_.FenceOf("j"), 5, d_.Upload("c"), "other", 0})),
            Reason::kCheckpointInvalid);
  d_.Must(ReportCheckpoint{d_.FenceOf("j"), 5, d_.Upload("c"), "m5", 0});  // a repeat
  // One that cannot be resumed from gives way to the one before.
  d_.Must(Failed("STORE_UNAVAILABLE", true));
  d_.Advance(30 * kSecondUs);
  d_.Must(Synchronize(d_.SyncOf("w1")));
  d_.Place();
  EXPECT_EQ(attempt(2).resume_step, 5);
  d_.Must(Failed("CHECKPOINT_INVALID", false));
  d_.Advance(30 * kSecondUs);
  d_.Must(Synchronize(d_.SyncOf("w1")));
  d_.Place();
  EXPECT_EQ(attempt(3).resume_step, 4);
}

// Of another version, say, that reads the data otherwise: refused one by one, each would cost a retry.
TEST_F(RunningTest, WhereNoCheckpointWillDoTheJobBeginsAnewAtOnce) {
  for (int64_t step = 1; step <= 3; ++step)
    d_.Must(ReportCheckpoint{d_.FenceOf("j"), step, d_.Upload("c"), "m" + std::to_string(step), 0});
  d_.Must(Failed("STORE_UNAVAILABLE", true));
  d_.Advance(30 * kSecondUs);
  d_.Must(Synchronize(d_.SyncOf("w1")));
  d_.Place();
  ASSERT_EQ(attempt(2).resume_step, 3);
  const int32_t retries = d_.job("j").infra_retries;
  ReportFailed stranger = Failed("CHECKPOINT_INVALID", true);
  stranger.all_checkpoints = true;
  d_.Must(stranger);
  EXPECT_TRUE(d_.job("j").checkpoints.empty());
  EXPECT_EQ(d_.job("j").infra_retries, retries + 1);
  d_.Advance(60 * kSecondUs);
  d_.Must(Synchronize(d_.SyncOf("w1")));
  d_.Place();
  EXPECT_EQ(attempt(3).resume_step, 0);
  EXPECT_EQ(d_.job("j").progress.step, 0);
}

TEST_F(RunningTest, CheckpointsEndWithASuccess) {
  const std::vector<FileRef> files = d_.Upload("state");
  d_.Must(ReportCheckpoint{d_.FenceOf("j"), 5, files, "m", 1.0});
  EXPECT_TRUE(ReferencedBlobs(d_.state()).contains(files[0].sha256));
  d_.Must(ReportFinished{d_.FenceOf("j"), 9, d_.Upload("adapter"), "completed"});
  EXPECT_TRUE(d_.job("j").checkpoints.empty());
  EXPECT_FALSE(ReferencedBlobs(d_.state()).contains(files[0].sha256));
}

TEST_F(RunningTest, CheckpointsEndWithAFailure) {
  d_.Must(ReportCheckpoint{d_.FenceOf("j"), 5, d_.Upload("state"), "m", 1.0});
  d_.Must(Failed("LOSS_NOT_FINITE", false));
  EXPECT_TRUE(ReferencedBlobs(d_.state()).empty());
}

TEST_F(RunningTest, NumericsAreFixedByTheFirstAttempt) {
  d_.Must(ReportPlan{d_.FenceOf("j"), 40, "{}", "n1"});
  EXPECT_EQ(ReasonOf(d_.Do(ReportPlan{d_.FenceOf("j"), 40, "{}", "n2"})), Reason::kNumericsChanged);
  d_.Must(DrainWorker{"w1"});
  d_.Must(ReportReleased{d_.FenceOf("j"), 1});
  EXPECT_EQ(state(), JobState::kQueued);
  RegisterWorker other = Driver::WorkerOf("w2", "i1", 1'000 * kMB);
  other.devices[0].profile.build = "build-2";
  d_.Must(other);
  d_.Place();
  EXPECT_EQ(state(), JobState::kQueued);
  EXPECT_THAT(d_.Why("j"),
              HasSubstr("numerics"));
  d_.Must(UndrainWorker{"w1"});
  d_.Place();
  EXPECT_EQ(attempt(2).worker_id, "w1");
}

TEST(Check, RunsForAJobThatMustWaitAndTellsItsSteps) {
  Driver d;
  d.AddWorker("w1", 125 * kMB);  // one job at a time
  d.Must(Driver::JobOf("a"));
  d.Place();
  d.Must(Driver::JobOf("b"));
  d.Place();
  ASSERT_EQ(d.state().checks.size(), 1u);
  d.Place();
  const std::string check = d.state().checks.begin()->second;
  EXPECT_EQ(d.job(check).state, JobState::kStarting);
  d.Must(ReportCheck{d.FenceOf(check), "{\"tokens\":5}", 77});
  EXPECT_EQ(d.job(check).state, JobState::kSucceeded);
  EXPECT_EQ(d.job("b").progress.planned_steps, 77);
  // The next one with the same data knows at once.
  d.Must(Driver::JobOf("c"));
  EXPECT_EQ(d.job("c").progress.planned_steps, 77);
  EXPECT_EQ(d.Must(ValidateDataset{"data", "", "base", Driver::JobOf("x").spec}), check);
}

TEST(Check, DataWithNothingToLearnFailsTheJobsThatWaitForIt) {
  Driver d;
  const std::string check = d.Must(ValidateDataset{"data", "", "base", Driver::JobOf("x").spec});
  d.Must(Driver::JobOf("a"));
  d.Must(PauseJob{"a"});
  d.AddWorker("w1");
  d.Place();
  d.Must(
      ReportFailed{d.FenceOf(check), "NO_SUPERVISED_TOKENS", "no row has an answer", false, false});
  EXPECT_EQ(d.job("a").state, JobState::kFailed);
  const auto refused = d.Do(Driver::JobOf("b"));
  EXPECT_EQ(ReasonOf(refused), Reason::kNoSupervisedTokens);
  EXPECT_THAT(std::string(refused.status().message()),
              "datasets/data cannot be trained on: no row has an answer");
  ASSERT_EQ(StatusViolations(refused.status()).size(), 1u);
  EXPECT_EQ(StatusViolations(refused.status())[0].field, "spec.dataset");
  // Who polls hears of it instead of starting another.
  EXPECT_EQ(d.Must(ValidateDataset{"data", "", "base", Driver::JobOf("x").spec}), check);
}

}  // namespace
}  // namespace nibble::core

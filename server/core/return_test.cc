// Workers that are silent and come back, or do not; servers that start again.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "server/core/testing/running_job.h"

namespace nibble::core {
namespace {

using ::testing::HasSubstr;
using testing::Driver;
using testing::kMB;
using testing::ReasonOf;
using testing::RunningTest;

TEST_F(RunningTest, AnOlderListingFreesNothing) {
  Synchronize early = d_.SyncOf("w1");
  early.attempts.clear();
  early.known_revision = attempt(1).assign_revision - 1;  // sent before it heard of the attempt
  d_.Must(early);
  EXPECT_EQ(attempt(1).state, AttemptState::kActive);
  early.known_revision = attempt(1).assign_revision;
  d_.Must(early);
  EXPECT_EQ(attempt(1).state, AttemptState::kLost);
  EXPECT_FALSE(attempt(1).holds_bytes);
}

TEST_F(RunningTest, LeasesTurnSuspectThenLost) {
  d_.Advance(41 * kSecondUs);
  d_.Must(Tick{});
  const Worker& worker = d_.state().workers.at("w1");
  EXPECT_EQ(HealthOf(worker, d_.core().options, d_.Now().monotonic_us), WorkerHealth::kSuspect);
  EXPECT_EQ(state(), JobState::kRunning);
  d_.Advance(80 * kSecondUs);
  d_.Must(Tick{});
  EXPECT_EQ(attempt(1).state, AttemptState::kLost);
  EXPECT_EQ(state(), JobState::kQueued);
  EXPECT_EQ(d_.job("j").infra_retries, 1);
  EXPECT_TRUE(attempt(1).holds_bytes);  // it may still run there
  EXPECT_EQ(ReasonOf(d_.Do(ReportReleased{d_.FenceOf("j"), 1})), Reason::kStaleAttempt);
  d_.Must(Synchronize(d_.SyncOf("w1")));
  EXPECT_FALSE(attempt(1).holds_bytes);
  EXPECT_FALSE(d_.state().workers.at("w1").lost);
}

// T9: back before anybody else got the job, it goes on with what it has in memory.
TEST_F(RunningTest, AWorkerThatComesBackGoesOnInMemory) {
  const int64_t step = d_.job("j").progress.step;
  Synchronize listing = d_.SyncOf("w1");
  ASSERT_EQ(listing.attempts.size(), 1u);
  listing.attempts[0].intact = true;
  d_.Advance(130 * kSecondUs);
  d_.Must(Tick{});
  ASSERT_EQ(state(), JobState::kQueued);
  EXPECT_EQ(d_.job("j").infra_retries, 1);
  d_.Must(listing);
  EXPECT_EQ(state(), JobState::kStarting);
  EXPECT_EQ(attempt(1).state, AttemptState::kLost);
  EXPECT_FALSE(attempt(1).holds_bytes);
  EXPECT_EQ(attempt(2).continues_epoch, 1);
  EXPECT_TRUE(attempt(2).holds_bytes);
  EXPECT_EQ(attempt(2).plan, attempt(1).plan);
  EXPECT_EQ(d_.job("j").infra_retries, 0);
  EXPECT_EQ(d_.job("j").progress.step, step);
  // The answer was lost: it lists the first key still, and nothing changes.
  d_.Must(listing);
  EXPECT_EQ(attempt(2).state, AttemptState::kActive);
  // Lost once more before the worker has learned its new key.
  d_.Advance(130 * kSecondUs);
  d_.Must(Tick{});
  EXPECT_EQ(attempt(2).state, AttemptState::kLost);
  d_.Must(listing);
  EXPECT_EQ(attempt(3).continues_epoch, 1);
  EXPECT_FALSE(attempt(2).holds_bytes);
  d_.Must(ReportProgress{d_.FenceOf("j"), {}});
}

TEST_F(RunningTest, NothingIsGivenBackThatIsNotIntactOrNoLongerFree) {
  Synchronize listing = d_.SyncOf("w1");
  d_.Advance(130 * kSecondUs);
  d_.Must(Tick{});
  d_.Must(listing);  // not intact
  EXPECT_EQ(state(), JobState::kQueued);
  listing.attempts[0].intact = true;
  Synchronize leaving = listing;
  leaving.draining = true;
  d_.Must(leaving);
  EXPECT_EQ(state(), JobState::kQueued);
  d_.Must(PauseJob{"j"});
  d_.Must(listing);
  EXPECT_EQ(state(), JobState::kPaused);
  EXPECT_EQ(d_.job("j").epoch, 1);
}

TEST_F(RunningTest, ANewProcessOfTheWorkerLosesTheOldOnesAttemptsAtOnce) {
  d_.AddWorker("w1", 1'000 * kMB, "i2");
  EXPECT_EQ(attempt(1).state, AttemptState::kLost);
  EXPECT_FALSE(attempt(1).holds_bytes);
  // A late message of the old process neither registers nor renews.
  EXPECT_EQ(ReasonOf(d_.Do(Driver::WorkerOf("w1", "i1", 5))), Reason::kStaleAttempt);
  Synchronize old = d_.SyncOf("w1");
  old.incarnation = "i1";
  EXPECT_EQ(ReasonOf(d_.Do(old)), Reason::kStaleAttempt);
  EXPECT_EQ(d_.state().workers.at("w1").incarnation, "i2");
}

TEST_F(RunningTest, ARestartOfTheServerGivesFreshLeases) {
  d_.Advance(3'600 * kSecondUs);
  d_.Must(ServerStart{"ignored"});
  d_.Must(Tick{});
  EXPECT_EQ(state(), JobState::kRunning);
  EXPECT_EQ(d_.state().generation, 2);
  EXPECT_EQ(d_.state().timeline, "timeline-1");
  d_.Must(ServerStart{"timeline-2", true});
  EXPECT_EQ(attempt(1).state, AttemptState::kLost);
}

TEST(Rollback, NothingIsPlacedByADatabaseThatWentBack) {
  Driver d;
  RegisterWorker worker = Driver::WorkerOf("w1", "i1", 1'000 * kMB);
  worker.generation_seen = 7;
  worker.timeline_seen = "timeline-1";
  d.Must(worker);
  d.Must(Driver::JobOf("j"));
  d.Place();
  EXPECT_EQ(d.job("j").state, JobState::kQueued);
  EXPECT_THAT(d.Why("j"),
              HasSubstr("rolled back"));
}

}  // namespace
}  // namespace nibble::core

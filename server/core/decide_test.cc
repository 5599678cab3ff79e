// The life of a job, one transition at a time.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "server/core/testing/driver.h"

namespace nibble::core {
namespace {

using testing::Driver;
using ::testing::HasSubstr;
using testing::kMB;

Reason ReasonOf(const absl::StatusOr<std::string>& answer) { return StatusReason(answer.status()); }

// A worker with a job that trains.
class RunningTest : public ::testing::Test {
 protected:
  void SetUp() override {
    d_.AddWorker("w1");
    d_.Must(Driver::JobOf("j"));
    d_.Place();
    Progress(1);
  }
  void Progress(int64_t step) {
    ReportProgress report;
    report.fence = d_.FenceOf("j");
    report.head.step = step;
    d_.Must(report);
  }
  ReportFailed Failed(const std::string& reason, bool infrastructure) {
    return {d_.FenceOf("j"), reason, "because", infrastructure, false};
  }
  JobState state() const { return d_.job("j").state; }
  const Attempt& attempt(int64_t epoch) const { return d_.job("j").attempts.at(epoch); }

  Driver d_;
};

TEST(CreateJob, IsQueuedOnceHoweverOftenItIsAskedFor) {
  Driver d;
  CreateJob create = Driver::JobOf("a");
  create.request_id = "r";
  EXPECT_EQ(d.Must(create), "a");
  create.job_id = "b";
  EXPECT_EQ(d.Must(create), "a");
  EXPECT_EQ(d.state().jobs.size(), 1u);
  create.body_sha256 = "other";
  EXPECT_EQ(ReasonOf(d.Do(create)), Reason::kRequestIdReused);
  EXPECT_EQ(d.job("a").state, JobState::kQueued);
  // Another tenant's ids are its own.
  create.tenant = "other";
  EXPECT_EQ(d.Must(create), "b");
}

// A request names the job it made, no other that has taken its id since, and is forgotten when that is gone.
TEST(CreateJob, ARequestOfADeletedJobNamesNobodyElses) {
  Driver d;
  CreateJob first = Driver::JobOf("a"), second = Driver::JobOf("a");
  first.request_id = "r1";
  second.request_id = "r2";
  d.Must(first);
  EXPECT_TRUE(d.state().requests_by_age.empty());  // nothing for the ticks to look at while its job is there
  d.Must(CancelJob{"a"});
  d.Must(DeleteJob{"a"});
  EXPECT_EQ(ReasonOf(d.Do(first)), Reason::kJobNotFound);
  d.Must(second);
  const auto repeated = d.Do(first);
  EXPECT_EQ(ReasonOf(repeated), Reason::kJobNotFound);
  EXPECT_THAT(std::string(repeated.status().message()), HasSubstr("which was deleted; use a fresh one"));
  EXPECT_EQ(d.Must(second), "a");
  d.Advance(d.core().options.request_id_ttl_us - 1);
  d.Must(core::Tick{});
  EXPECT_EQ(d.state().requests.size(), 2u);
  d.Advance(1);
  d.Must(core::Tick{});
  ASSERT_EQ(d.state().requests.size(), 1u);
  EXPECT_EQ(d.state().requests.begin()->second.request_id, "r2");
}

TEST(CreateJob, RefusesWhatIsNotThere) {
  Driver d;
  CreateJob create = Driver::JobOf("a");
  create.model_id = "missing";
  EXPECT_EQ(ReasonOf(d.Do(create)), Reason::kBaseModelNotFound);
  create = Driver::JobOf("a");
  create.dataset_id = "missing";
  EXPECT_EQ(ReasonOf(d.Do(create)), Reason::kDatasetNotFound);
  create = Driver::JobOf("..");
  EXPECT_EQ(ReasonOf(d.Do(create)), Reason::kNameInvalid);
  d.Must(Driver::JobOf("a"));
  EXPECT_EQ(ReasonOf(d.Do(Driver::JobOf("a"))), Reason::kJobExists);
}

TEST(CreateJob, SaysByHowManyBytesItCannotFitAndWhatWouldHelp) {
  Driver d;
  CreateJob create = Driver::JobOf("a");
  create.spec.micro_batch_size = 8;
  create.spec.sequence_len = 4'000;  // step 32 MB
  d.AddWorker("small", 140 * kMB);   // needs 10 + 100 + 10 + 32 = 152
  const absl::Status status = d.Do(create).status();
  EXPECT_EQ(StatusReason(status), Reason::kExceedsDeviceMemory);
  const auto metadata = StatusMetadata(status);
  EXPECT_EQ(metadata.at("shortfall_bytes"), "12000000");
  EXPECT_EQ(metadata.at("device"), "small/cpu0");
  EXPECT_EQ(metadata.at("suggestion_1"),
            "training.micro_batch_size=4 training.gradient_accumulation_steps=8");
  EXPECT_EQ(metadata.at("suggestion_2"), "data.sequence_len=2240");
  EXPECT_THAT(std::string(status.message()), HasSubstr("gradient_accumulation_steps 8"));
  // With no device known nothing can be said, so it waits.
  Driver none;
  EXPECT_TRUE(none.Do(create).ok());
}

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

TEST_F(RunningTest, CancelWinsOverALateResult) {
  const Fence fence = d_.FenceOf("j");
  d_.Must(CancelJob{"j"});
  EXPECT_EQ(state(), JobState::kCancelling);
  EXPECT_EQ(
      DesiredFor(d_.state(), d_.state().workers.at("w1"), d_.core().options).assignments[0].want,
      Want::kStop);
  d_.Must(ReportFinished{fence, 9, d_.Upload("adapter"), "completed"});
  EXPECT_EQ(state(), JobState::kCancelled);
  EXPECT_TRUE(d_.state().adapters.empty());
}

TEST_F(RunningTest, CancelIsForcedWhenTheWorkerDoesNotLetGo) {
  d_.Must(CancelJob{"j"});
  d_.Advance(59 * kSecondUs);
  d_.Must(Synchronize(d_.SyncOf("w1")));
  d_.Must(Tick{});
  EXPECT_EQ(state(), JobState::kCancelling);
  d_.Advance(2 * kSecondUs);
  const Synchronize still_listed = d_.SyncOf("w1");
  d_.Must(Tick{});
  EXPECT_EQ(state(), JobState::kCancelled);
  // Its bytes are not free before the worker says so.
  d_.Must(still_listed);
  EXPECT_TRUE(attempt(1).holds_bytes);
  EXPECT_EQ(ReasonOf(d_.Do(DeleteJob{"j"})), Reason::kResourceInUse);
  d_.Must(Synchronize(d_.SyncOf("w1")));
  EXPECT_FALSE(attempt(1).holds_bytes);
  d_.Must(DeleteJob{"j"});
  EXPECT_TRUE(d_.state().jobs.empty());
}

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

TEST_F(RunningTest, PausesWithACheckpointAndGoesOnFromIt) {
  d_.Must(PauseJob{"j"});
  EXPECT_EQ(state(), JobState::kPausing);
  EXPECT_EQ(
      DesiredFor(d_.state(), d_.state().workers.at("w1"), d_.core().options).assignments[0].want,
      Want::kRelease);
  d_.Must(ReportCheckpoint{d_.FenceOf("j"), 5, d_.Upload("c"), "m", 0});
  d_.Must(ReportReleased{d_.FenceOf("j"), 5});
  EXPECT_EQ(state(), JobState::kPaused);
  EXPECT_EQ(attempt(1).state, AttemptState::kReleased);
  d_.Must(ResumeJob{"j"});
  d_.Place();
  EXPECT_EQ(state(), JobState::kStarting);
  EXPECT_EQ(attempt(2).resume_step, 5);
  EXPECT_EQ(d_.job("j").infra_retries, 0);
}

TEST_F(RunningTest, ResumeDuringPausingTakesEffectOnceReleased) {
  d_.Must(PauseJob{"j"});
  d_.Must(ResumeJob{"j"});
  EXPECT_EQ(state(), JobState::kPausing);
  d_.Must(ReportReleased{d_.FenceOf("j"), 1});
  EXPECT_EQ(state(), JobState::kQueued);
}

TEST_F(RunningTest, FinishingWhilePausingIsSuccess) {
  d_.Must(PauseJob{"j"});
  d_.Must(ReportFinished{d_.FenceOf("j"), 9, d_.Upload("adapter"), "completed"});
  EXPECT_EQ(state(), JobState::kSucceeded);
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

TEST_F(RunningTest, RetriesBackOffAndEnd) {
  d_.core().options.poison_workers = 99;
  int64_t previous_us = 0;
  for (int i = 0; i < d_.core().options.max_infra_retries; ++i) {
    d_.Must(Failed("STORE_UNAVAILABLE", true));
    ASSERT_EQ(state(), JobState::kQueued);
    const int64_t backoff_us = d_.job("j").not_before_us - d_.Now().monotonic_us;
    EXPECT_GE(backoff_us, previous_us);
    previous_us = backoff_us;
    d_.Must(Synchronize(d_.SyncOf("w1")));
    d_.Place();
    EXPECT_EQ(state(), JobState::kQueued);  // not yet
    d_.Advance(backoff_us);
    d_.Must(Synchronize(d_.SyncOf("w1")));
    // The lease ran out in between, which is no attempt's fault.
    d_.Must(Driver::WorkerOf("w1", "i1", 1'000 * kMB));
    d_.Place();
    ASSERT_EQ(state(), JobState::kStarting);
  }
  EXPECT_EQ(previous_us, d_.core().options.backoff_max_us);
  d_.Must(Failed("STORE_UNAVAILABLE", true));
  EXPECT_EQ(state(), JobState::kFailed);
  EXPECT_EQ(d_.job("j").error_reason, "STORE_UNAVAILABLE");
}

TEST_F(RunningTest, AFullDiskIsWaitedForAndSpendsNoRetry) {
  for (int i = 0; i < 2 * d_.core().options.max_infra_retries; ++i) {
    d_.Must(
        ReportFailed{d_.FenceOf("j"), "STORAGE_FULL", "write /data/x: no space left", true, false});
    ASSERT_EQ(state(), JobState::kQueued);
    EXPECT_THAT(d_.Why("j"), ::testing::AllOf(HasSubstr("another try after STORAGE_FULL"),
                                              HasSubstr("/data/x")));
    d_.Must(Synchronize(d_.SyncOf("w1")));
    d_.Place();
    EXPECT_EQ(state(), JobState::kQueued) << "not at once";
    d_.Advance(d_.core().options.backoff_max_us / 2);
    d_.Must(Synchronize(d_.SyncOf("w1")));
    d_.Must(Driver::WorkerOf("w1", "i1", 1'000 * kMB));
    d_.Place();
    ASSERT_EQ(state(), JobState::kStarting);
  }
  EXPECT_EQ(d_.job("j").infra_retries, 0);
}

TEST_F(RunningTest, ARetrySaysWhatItFollows) {
  const std::string killed = "the engine was ended by signal 9";
  d_.Must(ReportFailed{d_.FenceOf("j"), "OUT_OF_MEMORY", killed, true, false});
  EXPECT_THAT(d_.Why("j"), ::testing::AllOf(HasSubstr("retry 1 of 10 after OUT_OF_MEMORY"),
                                            HasSubstr("signal 9")));
}

TEST_F(RunningTest, ANeighboursFaultCostsNothing) {
  d_.Must(ReportFailed{d_.FenceOf("j"), "ENGINE_FAILED", "", true, true});
  EXPECT_EQ(state(), JobState::kQueued);
  EXPECT_EQ(d_.job("j").infra_retries, 0);
  EXPECT_LE(d_.job("j").not_before_us, d_.Now().monotonic_us);
}

TEST_F(RunningTest, TheSecondFaultOfItsOwnMakesItRunAlone) {
  d_.Must(Failed("ENGINE_FAILED", true));
  EXPECT_FALSE(d_.job("j").run_alone);
  d_.Advance(10 * kSecondUs);
  d_.Must(Synchronize(d_.SyncOf("w1")));
  d_.Place();
  d_.Must(Failed("ENGINE_FAILED", true));
  EXPECT_TRUE(d_.job("j").run_alone);
}

TEST(Poison, ThreeDifferentWorkersSoonAfterTheStart) {
  Driver d;
  for (const char* id : {"w1", "w2", "w3"}) d.AddWorker(id);
  d.Must(Driver::JobOf("j"));
  for (int i = 0; i < 3; ++i) {
    for (const char* id : {"w1", "w2", "w3"}) d.Must(Synchronize(d.SyncOf(id)));
    d.Place();
    ASSERT_EQ(d.job("j").state, JobState::kStarting) << i;
    d.Must(ReportFailed{d.FenceOf("j"), "ENGINE_FAILED", "died", true, false});
    d.Advance(20 * kSecondUs);
  }
  EXPECT_EQ(d.job("j").state, JobState::kFailed);
  EXPECT_EQ(d.job("j").error_reason, "POISON");
}

TEST_F(RunningTest, AFaultOfItsOwnMakingIsFinal) {
  d_.Must(Failed("LOSS_NOT_FINITE", false));
  EXPECT_EQ(state(), JobState::kFailed);
  EXPECT_EQ(d_.job("j").error_reason, "LOSS_NOT_FINITE");
  d_.Must(ReportFailed{d_.FenceOf("j"), "LOSS_NOT_FINITE", "", false, false});  // a repeat
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

TEST(Things, InUseCannotBeDeleted) {
  Driver d;
  d.Must(Driver::JobOf("a"));
  EXPECT_EQ(ReasonOf(d.Do(DeleteModel{"base"})), Reason::kResourceInUse);
  EXPECT_EQ(ReasonOf(d.Do(DeleteDataset{"data"})), Reason::kResourceInUse);
  EXPECT_EQ(ReasonOf(d.Do(DeleteJob{"a"})), Reason::kJobNotTerminal);
  d.Must(CancelJob{"a"});
  d.Must(DeleteModel{"base"});
  d.Must(DeleteDataset{"data"});
  EXPECT_EQ(ReasonOf(d.Do(DeleteDataset{"data"})), Reason::kDatasetNotFound);
}

TEST(Things, BlobsAreForgottenOnlyUnreferencedAndUnpinned) {
  Driver d;
  const std::string used(64, 'a'), unused(64, 'b');
  d.Must(RecordBlob{used, 3});
  d.Must(RecordBlob{unused, 3});
  CreateDataset dataset;
  dataset.dataset = {"set", "default", "", used, 3, 1, "text", "", 0};
  d.Must(dataset);
  d.Must(ForgetBlobs{{used, unused}});
  EXPECT_EQ(d.state().blobs.size(), 2u);  // pinned
  d.Advance(25 * 3600 * kSecondUs);
  d.Must(ForgetBlobs{{used, unused}});
  EXPECT_EQ(d.state().blobs.size(), 1u);
  EXPECT_EQ(d.state().blobs.count(used), 1u);
}

TEST(Things, WhoHasSentABlobIsKnownAsLongAsItIsThere) {
  Driver d;
  const std::string sha256(64, 'a');
  d.Must(RecordBlob{sha256, 3, "ours"});
  d.TakeRecords();
  d.Must(RecordBlob{sha256, 3, "ours"});  // again: nothing new
  d.Must(RecordBlob{sha256, 3});          // a worker's
  EXPECT_TRUE(d.TakeRecords().empty());
  d.Must(RecordBlob{sha256, 3, "theirs"});
  EXPECT_EQ(d.TakeRecords().at(0).type, "blob.shown");
  EXPECT_EQ(d.state().blobs.at(sha256).projects, (std::set<std::string>{"ours", "theirs"}));
  d.Advance(25 * 3600 * kSecondUs);
  d.Must(ForgetBlobs{{sha256}});
  d.Must(RecordBlob{sha256, 3, "theirs"});
  EXPECT_EQ(d.state().blobs.at(sha256).projects, (std::set<std::string>{"theirs"}));
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

TEST(Update, EtagGuards) {
  Driver d;
  d.Must(Driver::JobOf("j"));
  UpdateJob update;
  update.job_id = "j";
  update.priority = 5;
  update.etag = "old";
  EXPECT_EQ(ReasonOf(d.Do(update)), Reason::kEtagMismatch);
  update.etag = Etag(d.job("j"));
  d.Must(update);
  EXPECT_EQ(d.job("j").priority, 5);
  update.priority = 5'000;
  update.etag.clear();
  EXPECT_EQ(ReasonOf(d.Do(update)), Reason::kSpecInvalid);
}

TEST(Events, AreDensePerJobAndInAll) {
  Driver d;
  d.AddWorker("w1");
  for (const char* id : {"a", "b"}) d.Must(Driver::JobOf(id));
  d.Place();
  d.Must(CancelJob{"a"});
  int64_t number = 0;
  std::map<std::string, int64_t> sequences;
  for (const EventRecord& record : d.records()) {
    EXPECT_EQ(record.number, ++number);
    if (!record.job_id.empty()) {
      EXPECT_EQ(record.sequence, ++sequences[record.job_id]);
    }
    EXPECT_FALSE(record.message.empty()) << record.type;
  }
  EXPECT_EQ(number, d.state().last_event_number);
}

}  // namespace
}  // namespace nibble::core

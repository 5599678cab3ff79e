// What users ask of jobs: creating, cancelling, pausing, resuming, updating.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
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

// The engine would refuse the rows when the job's turn comes.
TEST(CreateJob, RefusesAFormatThatTheRowsAreNot) {
  Driver d;
  CreateDataset chat;
  chat.dataset.id = "chat";
  chat.dataset.path = "/chat.jsonl";
  chat.dataset.formats = {"messages"};
  d.Must(chat);
  chat.dataset.id = "alpaca";
  chat.dataset.path = "/alpaca.jsonl";
  chat.dataset.formats = {"alpaca", "text"};
  d.Must(chat);
  const auto create = [&](const std::string& dataset, const std::string& eval, const std::string& format) {
    CreateJob job = Driver::JobOf("j" + std::to_string(d.state().jobs.size()));
    job.dataset_id = dataset;
    job.eval_dataset_id = eval;
    job.spec.format = format;
    return d.Do(job);
  };
  const auto refused = create("chat", "", "text");
  EXPECT_EQ(ReasonOf(refused), Reason::kDatasetSchemaMismatch);
  EXPECT_EQ(StatusViolations(refused.status()).at(0).field, "spec.data.format");
  EXPECT_EQ(refused.status().message(),
            "spec.data.format is \"text\", but the rows of datasets/chat are messages; use auto, which "
            "goes by the rows, or a data set of such rows");
  EXPECT_THAT(std::string(create("alpaca", "", "sharegpt").status().message()),
              HasSubstr("datasets/alpaca are alpaca and text;"));
  EXPECT_THAT(std::string(create("chat", "alpaca", "messages").status().message()),
              HasSubstr("datasets/alpaca are"));
  EXPECT_EQ(ReasonOf(d.Do(ValidateDataset{"chat", "", "base", [] {
                       spec::TrainSpec spec;
                       spec.format = "alpaca";
                       return spec;
                     }()})),
            Reason::kDatasetSchemaMismatch);
  EXPECT_TRUE(create("chat", "", "messages").ok());
  EXPECT_TRUE(create("chat", "alpaca", "auto").ok());
  EXPECT_TRUE(create("alpaca", "", "text").ok());
  // One of before anybody looked.
  EXPECT_TRUE(create("data", "", "messages").ok());
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

TEST(UpdateJob, AChangedPriorityIsAnotherDesiredSet) {
  Driver d;
  d.AddWorker("w1");
  d.Must(Driver::JobOf("j"));
  d.Place();
  const auto desired = [&] { return DesiredFor(d.state(), d.state().workers.at("w1"), d.core().options); };
  const int64_t before = desired().revision;
  UpdateJob update;
  update.job_id = "j";
  update.display_name = "another";
  d.Must(update);
  EXPECT_EQ(desired().revision, before) << "no worker needs to hear of a name";
  update.priority = 5;
  d.Must(update);
  EXPECT_EQ(desired().revision, before + 1);
  ASSERT_EQ(desired().assignments.size(), 1u);
  EXPECT_EQ(desired().assignments[0].job->priority, 5);
  EXPECT_EQ(desired().assignments[0].want, Want::kRun);
  EXPECT_EQ(d.job("j").attempts.at(1).state, AttemptState::kActive);
  d.Must(update);
  EXPECT_EQ(desired().revision, before + 1);
}

// How a job ran is history once it has ended; what it is called is not.
TEST(UpdateJob, OfAFinishedJobOnlyWhatItIsFoundBy) {
  Driver d;
  d.Must(Driver::JobOf("j"));
  d.Must(CancelJob{"j"});
  UpdateJob update;
  update.job_id = "j";
  update.display_name = "kept";
  update.labels = std::map<std::string, std::string>{{"team", "a"}};
  update.priority = d.job("j").priority;  // as it is: nothing to refuse
  d.Must(update);
  EXPECT_EQ(d.job("j").display_name, "kept");
  EXPECT_EQ(d.records().back().message, "updated: priority 0, labels: 1");
  update.display_name = "not this";
  update.priority = 7;
  const auto refused = d.Do(update).status();
  EXPECT_EQ(StatusReason(refused), Reason::kJobNotResumable) << refused;
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("jobs/j is CANCELLED and does not run again: priority says how it runs"));
  update.priority.reset();
  update.allow_numerics_change = true;
  EXPECT_THAT(std::string(d.Do(update).status().message()), HasSubstr("allow_numerics_change says"));
  EXPECT_EQ(d.job("j").display_name, "kept") << "all of it or nothing";
  EXPECT_EQ(d.job("j").priority, 0);
}

}  // namespace
}  // namespace nibble::core

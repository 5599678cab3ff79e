// One suite over both stores, then what only the real one can do: survive.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "server/core/testing/driver.h"
#include "server/store/history.h"
#include "server/store/memory_store.h"
#include "server/store/row_writer.h"
#include "server/store/schema.h"
#include "server/store/sqlite_store.h"
#include "server/store/testing/rows.h"

namespace nibble::store {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using core::testing::Driver;
using testing::CommitTo;
using testing::ExpectSame;

// A store that can be closed and opened again over the same bytes.
struct Twin {
  std::string name;
  std::function<std::shared_ptr<Store>(const std::string& dir)> open;
  std::function<std::shared_ptr<MetricStore>(const std::string& dir)> open_metrics;
};

// Without it GoogleTest prints the bytes.
void PrintTo(const Twin& twin, std::ostream* out) { *out << twin.name; }

class StoreTest : public ::testing::TestWithParam<Twin> {
 protected:
  void SetUp() override { Open(); }
  void Open() {
    store_.reset();
    store_ = GetParam().open(dir_.path());
  }
  absl::Status Commit(Driver& driver) { return CommitTo(*store_, driver); }
  void CommitAndCompare(Driver& driver) {
    ASSERT_TRUE(Commit(driver).ok());
    ExpectSame(driver.state(), store_->Load().value());
    Open();
    ExpectSame(driver.state(), store_->Load().value());
  }

  TempDir dir_;
  std::shared_ptr<Store> store_;
};

TEST_P(StoreTest, StartsEmpty) {
  const core::State state = store_->Load().value();
  EXPECT_EQ(state.generation, 0);
  EXPECT_TRUE(state.jobs.empty());
}

// Changed, deleted and taken again in one turn: what the dead one said has sequence numbers of the new one.
TEST_P(StoreTest, AnIdTakenAgainInTheSameTurnHasNoEventsOfTheOneBefore) {
  Driver driver;
  driver.Must(Driver::JobOf("a"));
  ASSERT_TRUE(Commit(driver).ok());
  driver.Must(core::CancelJob{"a"});
  core::UpdateJob update;
  update.job_id = "a";
  update.display_name = "once more";
  driver.Must(update);
  driver.Must(core::DeleteJob{"a"});
  driver.Must(Driver::JobOf("a"));
  driver.Must(core::PauseJob{"a"});
  CommitAndCompare(driver);
  // And one that began and ended within the turn.
  driver.Must(core::CancelJob{"a"});
  driver.Must(core::DeleteJob{"a"});
  driver.Must(Driver::JobOf("a"));
  driver.Must(core::CancelJob{"a"});
  driver.Must(core::DeleteJob{"a"});
  driver.Must(Driver::JobOf("a"));
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(Commit(driver).ok()) << i;
    update.display_name = absl::StrCat("name ", i);
    driver.Must(update);
  }
  CommitAndCompare(driver);
  const auto events = store_->ReadEvents("a", 0, 100).value();
  ASSERT_EQ(events.size(), 6u);
  for (size_t i = 0; i < events.size(); ++i) EXPECT_EQ(events[i].sequence, static_cast<int64_t>(i) + 1);
}

TEST_P(StoreTest, BringsBackAWholeLife) {
  Driver driver;
  driver.AddWorker("w1");
  CommitAndCompare(driver);
  core::CreateJob create = Driver::JobOf("job-1");
  create.request_id = "request-1";
  create.labels = {{"team", "a"}};
  create.user_spec = std::string("\x00\xff\x80 not text", 12);
  create.spec.learning_rate = 1.0 / 3;
  driver.Must(create);
  driver.Place();
  core::Job& placed = driver.mutable_state().jobs.at("job-1");
  placed.plan.choices = {spec::Recompute::kKeepGemmOutputs, spec::BaseCache::kAhead,
                         /*paged_optimizer=*/false, /*offload_activations=*/true, /*cuda_graphs=*/true};
  placed.attempts.at(1).plan.choices = {spec::Recompute::kFull, spec::BaseCache::kOff, true, false, false};
  CommitAndCompare(driver);
  driver.Must(core::ReportPlan{driver.FenceOf("job-1"), 40, "{}", "numerics"});
  core::ReportProgress progress;
  progress.fence = driver.FenceOf("job-1");
  progress.head.step = 3;
  progress.head.loss = std::numeric_limits<double>::infinity();
  driver.Must(progress);
  driver.Must(core::ReportCheckpoint{driver.FenceOf("job-1"), 3, driver.Upload("a"), "m", 0.5});
  ASSERT_TRUE(Commit(driver).ok());
  driver.Must(
      core::ReportFailed{driver.FenceOf("job-1"), "ENGINE_FAILED", "cut \xc3", true, false});
  driver.Advance(60 * core::kSecondUs);
  driver.Must(core::Synchronize(driver.SyncOf("w1")));
  driver.Place();
  ASSERT_TRUE(Commit(driver).ok());
  driver.Must(
      core::ReportFinished{driver.FenceOf("job-1"), 40, driver.Upload("adapter"), "completed"});
  ASSERT_TRUE(Commit(driver).ok());
  const core::State state = store_->Load().value();
  EXPECT_EQ(state.jobs.at("job-1").state, core::JobState::kSucceeded);
  EXPECT_EQ(state.jobs.at("job-1").user_spec, create.user_spec);
  EXPECT_EQ(state.jobs.at("job-1").spec, driver.job("job-1").spec);
  EXPECT_EQ(state.jobs.at("job-1").spec.learning_rate, create.spec.learning_rate);
  EXPECT_EQ(state.jobs.at("job-1").attempts.at(1).state, core::AttemptState::kFailed);
  EXPECT_EQ(state.adapters.at("job-1").files.size(), 1u);
  EXPECT_TRUE(state.CheckInvariants(driver.core().options).ok());
}

TEST_P(StoreTest, KeepsWhatAnUpdateChangedOfTheSpec) {
  Driver driver;
  core::CreateJob create = Driver::JobOf("job-1");
  create.user_spec = "as given";
  driver.Must(create);
  driver.Must(Driver::JobOf("job-2"));
  CommitAndCompare(driver);
  core::UpdateJob update;
  update.job_id = "job-1";
  update.allow_numerics_change = true;
  driver.Must(update);
  CommitAndCompare(driver);
  const core::State state = store_->Load().value();
  EXPECT_TRUE(state.jobs.at("job-1").spec.allow_numerics_change);
  EXPECT_EQ(state.jobs.at("job-1").user_spec, "as given");
  EXPECT_FALSE(state.jobs.at("job-2").spec.allow_numerics_change);
}

TEST_P(StoreTest, KnowsWhoHasSentABlob) {
  Driver driver;
  const std::string sha256(64, 'a');
  driver.Must(core::RecordBlob{sha256, 7});
  CommitAndCompare(driver);
  driver.Must(core::RecordBlob{sha256, 7, "theirs"});
  CommitAndCompare(driver);
  driver.Must(core::RecordBlob{sha256, 7, "ours"});
  CommitAndCompare(driver);
  EXPECT_EQ(store_->Load().value().blobs.at(sha256).projects, (std::set<std::string>{"ours", "theirs"}));
}

TEST_P(StoreTest, EventsAreReadInOrderAndGoWithTheirJob) {
  Driver driver;
  driver.Must(Driver::JobOf("job-1"));
  driver.Must(core::PauseJob{"job-1"});
  driver.Must(core::CancelJob{"job-1"});
  ASSERT_TRUE(Commit(driver).ok());
  const auto events = store_->ReadEvents("job-1", 0, 100).value();
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[0].type, "job.queued");
  EXPECT_EQ(events[0].fields.at("model"), "base");
  EXPECT_EQ(events[1].state, core::JobState::kPaused);
  EXPECT_EQ(events[2].sequence, 3);
  EXPECT_EQ(store_->ReadEvents("job-1", 1, 1).value()[0].type, "job.paused");
  driver.Must(core::DeleteJob{"job-1"});
  ASSERT_TRUE(Commit(driver).ok());
  EXPECT_TRUE(store_->ReadEvents("job-1", 0, 100).value().empty());
  ExpectSame(driver.state(), store_->Load().value());
}

TEST_P(StoreTest, OldEventsAreForgottenALittleAtATime) {
  Driver driver;
  driver.Must(Driver::JobOf("job-1"));
  const auto before = static_cast<int64_t>(driver.records().size());
  driver.Advance(core::kSecondUs);
  const int64_t cut_unix_us = driver.Now().unix_us;
  driver.Must(core::PauseJob{"job-1"});
  driver.Must(core::ResumeJob{"job-1"});
  ASSERT_TRUE(Commit(driver).ok());
  int64_t removed = 0;
  for (int64_t i = 0; i < before; ++i) {
    const int64_t now = store_->PruneEvents(cut_unix_us, 1).value();
    EXPECT_LE(now, 1);
    removed += now;
  }
  EXPECT_GE(before, 1);
  EXPECT_EQ(removed, before);
  EXPECT_EQ(store_->PruneEvents(cut_unix_us, 100).value(), 0);
  const auto events = store_->ReadEvents("job-1", 0, 100).value();
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].sequence, 2);
  ExpectSame(driver.state(), store_->Load().value());
}

TEST_P(StoreTest, MetricsKeepTheHighestEpochAndTakeLateEvaluations) {
  const auto metrics = GetParam().open_metrics(dir_.path());
  StepMetric m;
  m.tokens = 10;
  for (int64_t step = 1; step <= 5; ++step) {
    m.step = step;
    m.epoch = 1;
    m.loss = static_cast<double>(step);
    ASSERT_TRUE(metrics->Append("job", {m, m}).ok());
  }
  m.step = 3;
  m.epoch = 2;
  m.loss = 30;
  m.phase_us = {5, 4, 3, 2, 1, 0};
  ASSERT_TRUE(metrics->Append("job", {m}).ok());
  m.loss = 99;  // a repeat changes nothing
  ASSERT_TRUE(metrics->Append("job", {m}).ok());
  StepMetric eval;
  eval.step = 3;
  eval.epoch = 2;
  eval.eval_loss = 0.25;
  ASSERT_TRUE(metrics->Append("job", {eval}).ok());
  StepMetric nan;
  nan.step = 6;
  nan.epoch = 1;
  nan.tokens = 1;
  nan.loss = std::numeric_limits<double>::quiet_NaN();
  ASSERT_TRUE(metrics->Append("job", {nan}).ok());
  const auto rows = metrics->Read("job", 1, 0, 0).value();
  ASSERT_EQ(rows.size(), 5u);
  EXPECT_EQ(rows[1].step, 3);
  EXPECT_EQ(rows[1].epoch, 2);
  EXPECT_EQ(rows[1].loss, 30);
  EXPECT_EQ(rows[1].phase_us, (spec::StepPhaseTimes{5, 4, 3, 2, 1, 0}));
  EXPECT_EQ(rows[0].phase_us, spec::StepPhaseTimes{});
  EXPECT_EQ(rows[1].eval_loss, 0.25);
  EXPECT_TRUE(std::isnan(rows[4].loss));
  EXPECT_EQ(metrics->Read("job", 1, 4, 0).value().size(), 3u);
  for (const char* id : {"a", "z", "m"}) ASSERT_TRUE(metrics->Append(id, {nan}).ok());
  EXPECT_EQ(metrics->JobIds("", 10).value(), (std::vector<std::string>{"a", "job", "m", "z"}));
  EXPECT_EQ(metrics->JobIds("a", 2).value(), (std::vector<std::string>{"job", "m"}));
  EXPECT_TRUE(metrics->JobIds("z", 10).value().empty());
  EXPECT_TRUE(metrics->DeleteJob("job").ok());
  EXPECT_TRUE(metrics->Read("job", 0, 0, 0).value().empty());
}

// An attempt that resumes where an evaluation is due reports it under its own epoch.
TEST_P(StoreTest, AnEvaluationOfALaterAttemptKeepsTheStep) {
  const auto metrics = GetParam().open_metrics(dir_.path());
  StepMetric step;
  step.step = 30;
  step.epoch = 1;
  step.tokens = 10;
  step.loss = 0.5;
  StepMetric eval;
  eval.step = 30;
  eval.epoch = 2;
  eval.eval_loss = 0.25;
  ASSERT_TRUE(metrics->Append("job", {step, eval}).ok());
  const auto rows = metrics->Read("job", 0, 0, 0).value();
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].tokens, 10);
  EXPECT_EQ(rows[0].loss, 0.5);
  EXPECT_EQ(rows[0].eval_loss, 0.25);
}

TEST_P(StoreTest, ThinningKeepsTheEndsAndEvaluations) {
  const auto metrics = GetParam().open_metrics(dir_.path());
  std::vector<StepMetric> series(1'000);
  for (size_t i = 0; i < series.size(); ++i) {
    series[i].step = static_cast<int64_t>(i) + 1;
    series[i].tokens = 1;
    if (i == 555) series[i].eval_loss = 1;
  }
  ASSERT_TRUE(metrics->Append("job", series).ok());
  const auto rows = metrics->Read("job", 0, 0, 50).value();
  EXPECT_LE(rows.size(), 53u);
  EXPECT_GE(rows.size(), 50u);
  EXPECT_EQ(rows.front().step, 1);
  EXPECT_EQ(rows.back().step, 1'000);
  EXPECT_TRUE(
      std::any_of(rows.begin(), rows.end(), [](const StepMetric& m) { return m.step == 556; }));
}

// The memory twin forgets when it is closed, so it is kept by directory.
std::shared_ptr<Store> OpenMemory(const std::string& dir) {
  static auto* stores = new std::map<std::string, std::shared_ptr<MemoryStore>>;
  auto& store = (*stores)[dir];
  if (store == nullptr) store = std::make_shared<MemoryStore>();
  return store;
}

INSTANTIATE_TEST_SUITE_P(
    Twins, StoreTest,
    ::testing::Values(Twin{"memory", OpenMemory,
                           [](const std::string&) {
                             return std::make_shared<MemoryMetricStore>();
                           }},
                      Twin{"sqlite",
                           [](const std::string& dir) -> std::shared_ptr<Store> {
                             return OpenSqliteStore(dir).value();
                           },
                           [](const std::string& dir) -> std::shared_ptr<MetricStore> {
                             return OpenSqliteMetricStore(dir).value();
                           }}),
    [](const ::testing::TestParamInfo<Twin>& info) { return info.param.name; });

TEST(MemoryStore, FaultsBeforeAndAfter) {
  MemoryStore store;
  Driver driver;
  MemoryStore::Fault fault = MemoryStore::Fault::kFailBefore;
  store.SetFaults([&] { return fault; });
  EXPECT_FALSE(store.Commit(driver.state(), driver.records()).ok());
  EXPECT_EQ(store.Load().value().generation, 0);
  fault = MemoryStore::Fault::kFailAfter;
  EXPECT_FALSE(store.Commit(driver.state(), driver.records()).ok());
  EXPECT_EQ(store.Load().value().generation, 1);
}

TEST(SqliteStore, RefusesFilesThatAreNotOursOrTooNew) {
  TempDir dir;
  {
    Database db = Database::Open(dir.Join("state.db"), Database::Mode::kReadWrite).value();
    ASSERT_TRUE(db.Execute("CREATE TABLE x (y)").ok());
  }
  EXPECT_EQ(StatusReason(OpenSqliteStore(dir.path()).status()), Reason::kStoreUnavailable);
  TempDir later;
  ASSERT_TRUE(OpenSqliteStore(later.path()).ok());
  {
    Database db = Database::Open(later.Join("state.db"), Database::Mode::kReadWrite).value();
    ASSERT_TRUE(db.Execute("PRAGMA user_version=99").ok());
  }
  const absl::Status status = OpenSqliteStore(later.path()).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("of version 99"));
}

TEST(SqliteStore, ADamagedFileIsNamedWithWhatToDo) {
  for (const bool cut : {false, true}) {
    const TempDir dir;
    ASSERT_TRUE(OpenSqliteStore(dir.path()).ok() && OpenSqliteMetricStore(dir.path()).ok());
    for (const char* name : {"state.db", "metrics.db"}) {
      const std::string path = dir.Join(name);
      if (cut) {
        const int64_t size = *FileSizeBytes(path);
        ASSERT_GT(size, 8192);
        ASSERT_EQ(::truncate(path.c_str(), size - 4096), 0);
      } else {
        ASSERT_TRUE(WriteFileAtomic(path, std::string(20'000, 'x')).ok());
      }
    }
    const absl::Status state = OpenSqliteStore(dir.path()).status();
    EXPECT_EQ(StatusReason(state), Reason::kStoreUnavailable);
    EXPECT_THAT(std::string(state.message()),
                AllOf(HasSubstr(dir.Join("state.db") + " is damaged"),
                      HasSubstr("restore")));
    if (cut) continue;  // a loss curve may not reach the end
    EXPECT_THAT(std::string(OpenSqliteMetricStore(dir.path()).status().message()),
                AllOf(HasSubstr(dir.Join("metrics.db") + " is damaged"),
                      HasSubstr("move it away")));
  }
}

// As version 1 wrote it: the spec in `body`, and what the user gave in a column of `jobs`.
TEST(SqliteStore, AFileOfTheFirstVersionKeepsItsJobs) {
  TempDir dir;
  Driver driver;
  driver.AddWorker("w1");
  core::CreateJob create = Driver::JobOf("job-1");
  create.user_spec = std::string("\x00\xff as given", 11);
  create.spec.learning_rate = 1.0 / 3;
  driver.Must(create);
  const core::Job& job = driver.state().jobs.at("job-1");
  {
    Database db = Database::Open(dir.Join("state.db"), Database::Mode::kReadWrite).value();
    ASSERT_TRUE(db.Execute(StateSchema().migrations[0]).ok());
    ASSERT_TRUE(db.Execute(absl::StrCat("PRAGMA user_version=1; PRAGMA application_id=",
                                        StateSchema().application_id))
                    .ok());
    Statement put = db.Prepare("INSERT INTO jobs VALUES('job-1',1,'default','QUEUED',0,?1,?2)").value();
    std::string spec;
    AppendQuoted(spec, spec::TrainSpecToJson(job.spec));
    put.BindBlob(1, create.user_spec);
    put.Bind(2, absl::StrCat(
                    R"({"id":"job-1","uid":"","tenant":"default","kind":1,"number":1,"priority":3,)",
                    R"("state":"QUEUED","model_id":"base","dataset_id":"rows","labels":{"team":"a"},)",
                    R"("progress":{"loss":null,"step":2},"epoch":0,"last_sequence":1,"spec":)", spec,
                    R"(,"create_unix_us":7,"check_key":"k"})"));
    ASSERT_TRUE(put.Run().ok());
    ASSERT_TRUE(db.Execute("INSERT INTO blobs VALUES('digest',5)").ok());
  }
  for (int open = 0; open < 2; ++open) {
    auto store = OpenSqliteStore(dir.path()).value();
    core::State state = store->Load().value();
    EXPECT_EQ(state.blobs.at("digest"), (core::Blob{"digest", 5, 0, {}}));
    core::Job& read = state.jobs.at("job-1");
    EXPECT_EQ(read.user_spec, create.user_spec);
    EXPECT_EQ(read.spec, job.spec);
    EXPECT_EQ(read.labels.at("team"), "a");
    EXPECT_EQ(read.progress.step, 2);
    EXPECT_EQ(read.create_unix_us, 7);
    // A change later on leaves what it was created with alone.
    EXPECT_EQ(read.priority, open == 0 ? 3 : 9);
    read.priority = 9;
    state.touched.jobs = {"job-1"};
    ASSERT_TRUE(store->Commit(state, {}).ok());
  }
  EXPECT_TRUE(FileExists(dir.Join("state.db.v1")));
}

// An id may be used again in the transaction that deletes it.
TEST_P(StoreTest, AJobThatTakesTheIdOfADeletedOneIsItself) {
  Driver driver;
  core::CreateJob create = Driver::JobOf("job-1");
  create.user_spec = "the first";
  driver.Must(create);
  driver.Must(core::CancelJob{"job-1"});
  ASSERT_TRUE(Commit(driver).ok());
  driver.Must(core::DeleteJob{"job-1"});
  create.user_spec = "the second";
  create.spec.seed = 7;
  driver.Must(create);
  CommitAndCompare(driver);
  EXPECT_EQ(store_->Load().value().jobs.at("job-1").user_spec, "the second");
}

TEST(SqliteStore, AnOlderServerCannotWriteAnyMore) {
  TempDir dir;
  auto store = OpenSqliteStore(dir.path()).value();
  Driver old_server;
  ASSERT_TRUE(store->Commit(old_server.state(), old_server.TakeRecords()).ok());
  core::State newer = store->Load().value();
  newer.generation = 2;
  newer.touched.meta = true;
  ASSERT_TRUE(store->Commit(newer, {}).ok());
  old_server.Must(Driver::JobOf("job-1"));
  EXPECT_EQ(StatusReason(store->Commit(old_server.state(), old_server.TakeRecords())),
            Reason::kStoreUnavailable);
  EXPECT_TRUE(store->Load().value().jobs.empty());
}

TEST(SqliteStore, TheFileItselfRefusesASecondActiveAttempt) {
  TempDir dir;
  auto store = OpenSqliteStore(dir.path()).value();
  Driver driver;
  driver.AddWorker("w1");
  driver.Must(Driver::JobOf("job-1"));
  driver.Place();
  ASSERT_TRUE(store->Commit(driver.state(), driver.TakeRecords()).ok());
  core::State broken = driver.state();
  broken.jobs.at("job-1").attempts[2] = broken.jobs.at("job-1").attempts.at(1);
  broken.jobs.at("job-1").attempts[2].epoch = 2;
  broken.touched = {};
  broken.touched.attempts = {{"job-1", 2}};
  EXPECT_FALSE(store->Commit(broken, {}).ok());
  EXPECT_EQ(store->Load().value().jobs.at("job-1").attempts.size(), 1u);
}

TEST(SqliteHistory, ReadsBesideTheWriter) {
  TempDir dir;
  auto store = OpenSqliteStore(dir.path()).value();
  auto metrics = OpenSqliteMetricStore(dir.path()).value();
  Driver driver;
  driver.Must(Driver::JobOf("job-1"));
  ASSERT_TRUE(store->Commit(driver.state(), driver.TakeRecords()).ok());
  auto history = OpenSqliteHistory(dir.path()).value();
  EXPECT_EQ(history->Events("job-1", 0, 1, 10).value().size(), 1u);
  driver.Must(core::PauseJob{"job-1"});
  driver.Must(core::ResumeJob{"job-1"});
  ASSERT_TRUE(store->Commit(driver.state(), driver.TakeRecords()).ok());
  EXPECT_EQ(history->Events("job-1", 1, 3, 10).value().size(), 2u);
  EXPECT_EQ(history->AllEvents(0, 10).value()[0].type, "server.started");
  StepMetric m;
  m.step = 1;
  ASSERT_TRUE(metrics->Append("job-1", {m}).ok());
  EXPECT_EQ(history->Metrics("job-1", 0, 0, 0).value().size(), 1u);
  ASSERT_TRUE(BackupDatabases(dir.path(), dir.Join("copy")).ok());
  auto copy = OpenSqliteStore(dir.Join("copy")).value();
  ExpectSame(driver.state(), copy->Load().value());
  EXPECT_FALSE(BackupDatabases(dir.path(), dir.Join("copy")).ok());
  // When all is forgotten who goes on from the first hears of it, and who has heard all does not.
  ASSERT_GT(store->PruneEvents(std::numeric_limits<int64_t>::max(), 100).value(), 0);
  EXPECT_EQ(StatusReason(history->Events("job-1", 1, 3, 10).status()), Reason::kSequenceExpired);
  EXPECT_TRUE(history->Events("job-1", 3, 3, 10).ok());
  EXPECT_TRUE(history->Events("job-1", 0, 3, 10).ok());
}

TEST(SqliteMetricStore, ManyWritersOneThread) {
  TempDir dir;
  auto metrics = OpenSqliteMetricStore(dir.path()).value();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int64_t step = 1; step <= 50; ++step) {
        StepMetric m;
        m.step = step;
        m.tokens = 1;
        ASSERT_TRUE(metrics->Append("job-" + std::to_string(t), {m}).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int t = 0; t < 4; ++t)
    EXPECT_EQ(metrics->Read("job-" + std::to_string(t), 0, 0, 0).value().size(), 50u);
}

// The child commits jobs and says so only afterwards; it is killed at a random moment. What it said
// must be there.
TEST(SqliteStore, KilledInTheMiddleLosesNothingAcknowledged) {
  TempDir dir;
  Random random(SystemEntropy());
  int64_t acknowledged = 0;
  for (int round = 0; round < 5; ++round) {
    int fds[2];
    ASSERT_EQ(pipe(fds), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      close(fds[0]);
      auto store = OpenSqliteStore(dir.path()).value();
      core::State state = store->Load().value();
      core::Core core{{}, core::Planner(core::testing::CheapSpecFunctions())};
      Driver driver;
      for (int64_t n = state.last_job_number + 1;; ++n) {
        core::JobQueued queued;
        queued.job_id = queued.job.id = "job-" + std::to_string(n);
        queued.job.number = n;
        std::vector<core::EventRecord> records;
        core::Apply(&state, {driver.Now(), queued}, &records);
        if (!store->Commit(state, records).ok()) _exit(1);
        state.touched = {};
        if (write(fds[1], &n, sizeof n) != sizeof n) _exit(1);
      }
    }
    close(fds[1]);
    const int64_t enough = acknowledged + random.Between(5, 40);
    int64_t n = 0;
    while (acknowledged < enough && read(fds[0], &n, sizeof n) == sizeof n) acknowledged = n;
    kill(child, SIGKILL);
    while (read(fds[0], &n, sizeof n) == sizeof n) acknowledged = n;
    close(fds[0]);
    int status = 0;
    waitpid(child, &status, 0);
    const core::State state = OpenSqliteStore(dir.path()).value()->Load().value();
    EXPECT_GE(state.last_job_number, acknowledged);
    EXPECT_EQ(static_cast<int64_t>(state.jobs.size()), state.last_job_number);
    EXPECT_EQ(state.last_event_number, state.last_job_number);
  }
}

}  // namespace
}  // namespace nibble::store

// What only the real store can do: refuse files that are not its own, migrate, be read beside, survive.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "server/core/testing/driver.h"
#include "server/store/history.h"
#include "server/store/row_writer.h"
#include "server/store/schema.h"
#include "server/store/sqlite.h"
#include "server/store/sqlite_store.h"
#include "server/store/testing/rows.h"

namespace nibble::store {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using core::testing::Driver;
using testing::ExpectSame;

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
    ASSERT_TRUE(db.Execute(R"(INSERT INTO datasets VALUES('rows','digest',
                              '{"id":"rows","sha256":"digest","rows":2,"format":"text"}'))")
                    .ok());
  }
  for (int open = 0; open < 2; ++open) {
    auto store = OpenSqliteStore(dir.path()).value();
    core::State state = store->Load().value();
    EXPECT_EQ(state.blobs.at("digest"), (core::Blob{"digest", 5, 0, {}}));
    EXPECT_EQ(state.datasets.at("rows").format, "text");
    EXPECT_TRUE(state.datasets.at("rows").formats.empty());
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

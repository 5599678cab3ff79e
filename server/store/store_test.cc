// One suite over both stores of the state.
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "server/core/testing/driver.h"
#include "server/store/memory_store.h"
#include "server/store/sqlite_store.h"
#include "server/store/testing/rows.h"

namespace nibble::store {
namespace {

using core::testing::Driver;
using testing::CommitTo;
using testing::ExpectSame;

// A store that can be closed and opened again over the same bytes.
struct Twin {
  std::string name;
  std::function<std::shared_ptr<Store>(const std::string& dir)> open;
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

TEST_P(StoreTest, KeepsWhatTheRowsOfADataSetAre) {
  Driver driver;
  core::CreateDataset create;
  create.dataset.id = "alpaca";
  create.dataset.path = "/alpaca.jsonl";
  create.dataset.formats = {"alpaca", "text"};
  driver.Must(create);
  CommitAndCompare(driver);
  EXPECT_EQ(store_->Load().value().datasets.at("alpaca").formats, create.dataset.formats);
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
  placed.attempts.at(1).plan.choices = {spec::Recompute::kFull, spec::BaseCache::kOff, true, false, false, 5};
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

// The memory twin forgets when it is closed, so it is kept by directory.
std::shared_ptr<Store> OpenMemory(const std::string& dir) {
  static auto* stores = new std::map<std::string, std::shared_ptr<MemoryStore>>;
  auto& store = (*stores)[dir];
  if (store == nullptr) store = std::make_shared<MemoryStore>();
  return store;
}

INSTANTIATE_TEST_SUITE_P(Twins, StoreTest,
                         ::testing::Values(Twin{"memory", OpenMemory},
                                           Twin{"sqlite",
                                                [](const std::string& dir) -> std::shared_ptr<Store> {
                                                  return OpenSqliteStore(dir).value();
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

}  // namespace
}  // namespace nibble::store

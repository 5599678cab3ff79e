// The single writer and its store: commits that fail, restarts, another server, what is kept for how long.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "server/testing/loop_test.h"

namespace nibble {
namespace {

using core::testing::Driver;

// A renewal alone writes nothing, but what is written says when, and an orderly end does.
TEST_F(ControlLoopTest, WhenAWorkerWasLastSeenOutlivesTheServer) {
  AddThings();
  const auto seen = [&] { return loop_->state().workers.at("w1").last_seen_unix_us; };
  const int64_t registered_us = seen();
  int commits = 0;
  store_.SetFaults([&] { return ++commits, store::MemoryStore::Fault::kNone; });
  for (int i = 0; i < 5; ++i) {
    clock_.AdvanceUs(30 * core::kSecondUs);
    PostSync(0);
  }
  EXPECT_EQ(commits, 0);
  const int64_t last_us = seen();
  EXPECT_EQ(last_us, registered_us + 150 * core::kSecondUs);
  Open();  // as after a crash: what is in the row
  EXPECT_EQ(seen(), registered_us);
  PostSync(0);
  loop_->RunThread();
  loop_->Stop();
  clock_.AdvanceUs(3'600 * core::kSecondUs);
  Open();
  EXPECT_EQ(seen(), last_us) << "not when the server started";
  // Seen for longer than a row may be out of date: written with the next change of anything.
  for (int i = 0; i < 40; ++i) {
    clock_.AdvanceUs(30 * core::kSecondUs);
    PostSync(0);
  }
  const int64_t later_us = seen();
  Post(Driver::JobOf("a"));
  Post(core::CancelJob{"a"});
  loop_->RunOnce(0);
  Open();
  EXPECT_LE(later_us - seen(), 600 * core::kSecondUs);
  EXPECT_LT(last_us, seen());
  // Lost: since when is kept, too.
  PostSync(0);
  const int64_t before_us = seen();
  clock_.AdvanceUs(130 * core::kSecondUs);
  loop_->RunOnce(0);
  ASSERT_TRUE(loop_->state().workers.at("w1").lost);
  const int64_t lost_us = clock_.NowUnixUs();
  clock_.AdvanceUs(3'600 * core::kSecondUs);
  Open();
  EXPECT_EQ(seen(), before_us);
  EXPECT_EQ(loop_->state().workers.at("w1").lost_unix_us, lost_us);
}

TEST_F(ControlLoopTest, ALongHistoryIsReadBeforeLeasesBegin) {
  AddThings();
  load_us_ = 60 * core::kSecondUs;
  sleep_us_ = core::CoreOptions().sleep_us;
  Open();
  loop_->RunOnce(0);
  EXPECT_EQ(loop_->state().workers.at("w1").renewed_us, clock_.NowMonotonicUs());
  EXPECT_NE(store_.events().back().type, "server.slept") << store_.events().back().message;
}

TEST_F(ControlLoopTest, AFailedCommitAnswersNobodyYesAndTheStateIsReadAgain) {
  AddThings();
  for (const auto fault :
       {store::MemoryStore::Fault::kFailBefore, store::MemoryStore::Fault::kFailAfter}) {
    const std::string id = fault == store::MemoryStore::Fault::kFailBefore ? "before" : "after";
    syncs_.clear();
    PostSync(loop_->state().workers.at("w1").revision);
    EXPECT_TRUE(syncs_.empty());
    int commits = 0;
    store_.SetFaults([&] { return commits++ == 0 ? fault : store::MemoryStore::Fault::kNone; });
    const int64_t revision = loop_->state().workers.at("w1").revision;
    const int64_t loads = store_.loads();
    auto watcher = hub_.Subscribe(id, nullptr);
    statuses_.clear();
    Post(Driver::JobOf(id));
    loop_->RunOnce(0);
    ASSERT_EQ(statuses_.size(), 1u);
    EXPECT_EQ(StatusReason(statuses_[0]), Reason::kStoreUnavailable);
    EXPECT_EQ(loop_->state().jobs.count(id),
              fault == store::MemoryStore::Fault::kFailAfter ? 1u : 0u);
    EXPECT_GT(loop_->state().workers.at("w1").revision, revision);
    EXPECT_EQ(loop_->state().workers.at("w1").renewed_us, clock_.NowMonotonicUs());
    EXPECT_EQ(store_.loads(), loads) << "what the commit was to write is read again, not everything";
    EXPECT_TRUE(watcher->Take().cut);
    EXPECT_EQ(syncs_.size(), 1u);  // a held call goes on from what was read
    store_.SetFaults(nullptr);
  }
  EXPECT_TRUE(loop_->serving());
}

// Of a job that has told its last step and uploads its result they would be what is shown for good.
TEST_F(ControlLoopTest, AFailedCommitForgetsNoSteps) {
  AddThings();
  Post(Driver::JobOf("a"));
  loop_->RunOnce(0);
  const core::State& state = loop_->state();
  const std::string token = core::AttemptToken(loop_->core().options, state, "a", 1, "w1", "i1");
  for (const int64_t step : {1, 5}) {
    core::ReportProgress report;
    report.fence = {"a", 1, "w1", "i1", token};
    report.head.step = step;
    report.head.trained_tokens = 100 * step;
    report.head.loss = 3.0 - 0.1 * static_cast<double>(step);
    Post(report);
    loop_->RunOnce(0);
  }
  ASSERT_EQ(state.jobs.at("a").progress.step, 5);
  ASSERT_LT(store_.rows().jobs.at("a").progress.step, 5);
  for (const bool reload : {false, true}) {
    store_.SetFaults([] { return store::MemoryStore::Fault::kFailBefore; });
    store_.FailReads(/*reread=*/reload, false);
    core::UpdateJob update;
    update.job_id = "a";
    update.priority = 3;
    statuses_.clear();
    Post(update);
    loop_->RunOnce(0);
    ASSERT_FALSE(statuses_.at(0).ok());
    const core::Job& job = loop_->state().jobs.at("a");
    EXPECT_EQ(job.priority, 0);
    EXPECT_EQ(job.progress.step, 5) << reload;
    EXPECT_EQ(job.progress.trained_tokens, 500);
    EXPECT_EQ(job.progress.loss, 2.5);
  }
}

// It was told sets of higher revisions than a worker that is new: those it would take for old ones.
TEST_F(ControlLoopTest, AWorkerWhoseDeletionFailedIsNotToldOlderRevisions) {
  AddThings();
  for (const bool reload : {false, true}) {
    for (const char* id : {"a", "b", "c"}) {
      Post(Driver::JobOf(absl::StrCat(id, reload)));
      loop_->RunOnce(0);
      Post(core::CancelJob{absl::StrCat(id, reload)});
      loop_->RunOnce(0);
    }
    clock_.AdvanceUs(130 * core::kSecondUs);
    loop_->RunOnce(0);
    ASSERT_TRUE(loop_->state().workers.at("w1").lost);
    const int64_t told = loop_->state().workers.at("w1").revision;
    int commits = 0;
    store_.SetFaults([&] {
      return commits++ == 0 ? store::MemoryStore::Fault::kFailBefore : store::MemoryStore::Fault::kNone;
    });
    store_.FailReads(/*reread=*/reload, false);
    statuses_.clear();
    Post(core::DeleteWorker{"w1"});
    loop_->RunOnce(0);
    EXPECT_EQ(StatusReason(statuses_.at(0)), Reason::kStoreUnavailable);
    store_.SetFaults(nullptr);
    store_.FailReads(false, false);
    ASSERT_EQ(loop_->state().workers.count("w1"), 1u);
    EXPECT_GT(loop_->state().workers.at("w1").revision, told);
    Post(Driver::WorkerOf("w1", "i1", 1'000 * core::testing::kMB));
    loop_->RunOnce(0);
  }
}

// What cannot be read row by row is read as a whole, and who was first in line still is. When not even that
// can be read the process is to end; should it go on, it answers again once the disk does.
TEST_F(ControlLoopTest, AfterAFailedCommitRowsThatCannotBeReadEndTheServer) {
  AddThings();
  Post(core::DrainWorker{"w1"});
  Post(Driver::JobOf("waits"));
  loop_->RunOnce(0);
  ASSERT_EQ(loop_->state().jobs.at("waits").state, core::JobState::kQueued);
  const int64_t queued_us = loop_->state().jobs.at("waits").queued_us;
  clock_.AdvanceUs(100 * core::kSecondUs);
  PostSync(0);
  store_.SetFaults([] { return store::MemoryStore::Fault::kFailBefore; });
  const auto change = [&](int32_t priority) {
    core::UpdateJob update;
    update.job_id = "waits";
    update.priority = priority;
    statuses_.clear();
    Post(update);
    loop_->RunOnce(0);
  };
  for (const bool load_too : {false, true}) {
    store_.FailReads(/*reread=*/true, load_too);
    const int64_t loads = store_.loads();
    change(7);
    EXPECT_EQ(StatusReason(statuses_.at(0)), Reason::kStoreUnavailable);
    EXPECT_EQ(store_.loads(), loads + 1);
    EXPECT_EQ(loop_->serving(), !load_too);
    EXPECT_EQ(fatal_.size(), load_too ? 1u : 0u);
    if (load_too) break;
    EXPECT_EQ(loop_->state().jobs.at("waits").priority, 0);
    EXPECT_EQ(loop_->state().jobs.at("waits").queued_us, queued_us);
    EXPECT_TRUE(loop_->state().CheckInvariants(loop_->core().options).ok());
  }
  store_.SetFaults(nullptr);
  change(8);
  EXPECT_EQ(StatusReason(statuses_.at(0)), Reason::kStoreUnavailable) << "it does not know what it serves";
  store_.FailReads(false, false);
  change(9);
  EXPECT_TRUE(statuses_.at(0).ok()) << statuses_.at(0);
  EXPECT_EQ(store_.rows().jobs.at("waits").priority, 9);
}

// Whose rows are no longer its own must not read them and go on: it would write over the other's.
TEST_F(ControlLoopTest, ASecondServerOnTheSameDataEndsTheFirst) {
  AddThings();
  ControlLoop::Options options;
  options.core.token_secret = "secret";
  ControlLoop second(options, core::testing::CheapSpecFunctions(), &store_, &hub_, &clock_);
  ASSERT_TRUE(second.Start().ok());
  store_.SetFaults([] { return store::MemoryStore::Fault::kFailBefore; });  // as SqliteStore refuses it
  Post(Driver::JobOf("a"));
  loop_->RunOnce(0);
  EXPECT_FALSE(loop_->serving());
  ASSERT_EQ(fatal_.size(), 1u);
  EXPECT_THAT(fatal_[0].ToString(), testing::HasSubstr("another server, of generation 2"));
  store_.SetFaults(nullptr);
  Post(Driver::JobOf("b"));
  loop_->RunOnce(0);
  EXPECT_EQ(StatusReason(statuses_.at(1)), Reason::kStoreUnavailable);
  EXPECT_TRUE(store_.rows().jobs.empty());
}

TEST_F(ControlLoopTest, ARestartGoesOnFromTheStore) {
  AddThings();
  Post(Driver::JobOf("a"));
  loop_->RunOnce(0);
  Open();
  EXPECT_EQ(loop_->state().generation, 2);
  EXPECT_EQ(loop_->state().jobs.at("a").state, core::JobState::kStarting);
  EXPECT_TRUE(loop_->state().CheckInvariants(loop_->core().options).ok());
}

// Looked at every ten minutes, whatever else happens; a day older than the 90 that are kept is too old.
TEST_F(ControlLoopTest, EventsAreKeptForNinetyDaysAndNoLonger) {
  constexpr int64_t kDayUs = int64_t{24} * 3600 * 1'000'000;
  retain_events_us_ = 90 * kDayUs;
  Open();
  AddThings();
  Post(Driver::JobOf("old"));
  loop_->RunOnce(0);
  // Of the oldest event that is kept. Others come later: its worker falls silent.
  const auto first = [&] { return store_.ReadEvents("old", 0, 1).value().at(0).sequence; };
  ASSERT_EQ(first(), 1);
  clock_.AdvanceUs(89 * kDayUs);
  Post(Driver::JobOf("young"));
  loop_->RunOnce(0);
  EXPECT_EQ(first(), 1) << "too young";
  clock_.AdvanceUs(kDayUs / 24 * 23);
  loop_->RunOnce(0);
  EXPECT_EQ(first(), 1) << "an hour too young";
  clock_.AdvanceUs(kDayUs / 24 + 60'000'000);
  loop_->RunOnce(0);
  EXPECT_GT(first(), 1);
  EXPECT_GT(store_.ReadEvents("young", 0, 100).value().size(), 0u);
  EXPECT_NE(loop_->state().FindJob("old"), nullptr) << "the job itself stays";
}

}  // namespace
}  // namespace nibble

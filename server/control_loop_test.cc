// The single writer: batches, answers, holds, sleep, and the hub behind it.
#include <gtest/gtest.h>

#include <thread>

#include "base/error.h"
#include "server/testing/loop_test.h"

namespace nibble {
namespace {

using core::testing::Driver;

TEST_F(ControlLoopTest, AnswersAfterTheCommitAndARefusalTouchesNothing) {
  AddThings();
  Post(Driver::JobOf("a"));
  Post(Driver::JobOf("a"));
  EXPECT_TRUE(statuses_.empty());
  loop_->RunOnce(0);
  ASSERT_EQ(statuses_.size(), 2u);
  EXPECT_TRUE(statuses_[0].ok());
  EXPECT_EQ(ids_[0], "a");
  EXPECT_EQ(StatusReason(statuses_[1]), Reason::kJobExists);
  // Placed in the same turn, and on disk.
  EXPECT_EQ(store_.rows().jobs.at("a").state, core::JobState::kStarting);
}

// Stopped with everything on its machine, or suspended: what could not be heard is held against nobody.
TEST_F(ControlLoopTest, WhatTheServerSleptThroughIsNotSilence) {
  sleep_us_ = core::CoreOptions().sleep_us;
  Open();
  AddThings();
  Post(Driver::JobOf("a"));
  PostSync(0);
  ASSERT_EQ(loop_->state().jobs.at("a").state, core::JobState::kStarting);
  const auto lost = [&] { return loop_->state().workers.at("w1").lost; };
  const auto pass = [&](int64_t seconds) {
    for (int64_t i = 0; i < seconds; ++i) {
      clock_.AdvanceUs(core::kSecondUs);
      loop_->RunOnce(0);
    }
  };
  pass(100);  // of 120
  clock_.AdvanceUs(3'600 * core::kSecondUs);
  loop_->RunOnce(0);
  EXPECT_FALSE(lost()) << "it slept, and so may the worker have";
  EXPECT_EQ(store_.events().back().type, "server.slept");
  EXPECT_EQ(store_.events().back().fields.at("slept_us"), "3600000000");
  pass(18);
  EXPECT_FALSE(lost());
  pass(4);
  EXPECT_TRUE(lost()) << "what it was silent for before counts";
  EXPECT_EQ(loop_->state().jobs.at("a").infra_retries, 1);
}

// And a disk that hangs for less than that is no sleep: nothing is given away a little at a time.
TEST_F(ControlLoopTest, ASlowTurnIsNoSleep) {
  sleep_us_ = core::CoreOptions().sleep_us;
  Open();
  AddThings();
  for (int i = 0; i < 10; ++i) {
    clock_.AdvanceUs(sleep_us_ - 1);
    loop_->RunOnce(0);
  }
  EXPECT_TRUE(loop_->state().workers.at("w1").lost);
}

// Leases and forced cancels go by the monotonic clock alone, whatever the wall clock says.
class WallClockTest : public ControlLoopTest, public ::testing::WithParamInterface<int64_t> {};

TEST_P(WallClockTest, AJumpMovesNoDeadline) {
  AddThings();
  Post(Driver::JobOf("a"));
  PostSync(0);
  Post(core::CancelJob{"a"});
  loop_->RunOnce(0);
  ASSERT_EQ(loop_->state().jobs.at("a").state, core::JobState::kCancelling);
  clock_.skew_us = GetParam() * 86'400 * core::kSecondUs;
  const auto pass = [&](int64_t seconds) {
    clock_.AdvanceUs(seconds * core::kSecondUs);
    loop_->RunOnce(0);
  };
  pass(59);
  EXPECT_EQ(loop_->state().jobs.at("a").state, core::JobState::kCancelling);
  pass(2);
  EXPECT_EQ(loop_->state().jobs.at("a").state, core::JobState::kCancelled);
  pass(58);
  EXPECT_FALSE(loop_->state().workers.at("w1").lost);
  clock_.skew_us = 0;
  pass(2);
  EXPECT_TRUE(loop_->state().workers.at("w1").lost);
}

INSTANTIATE_TEST_SUITE_P(Days, WallClockTest, ::testing::Values(400, -400));

// Whoever stops it should not have to wait for the end of a hold.
TEST_F(ControlLoopTest, AWorkerThatLeavesIsAnsweredAtOnce) {
  AddThings();
  core::Synchronize sync;
  sync.worker_id = "w1";
  sync.incarnation = "i1";
  sync.known_revision = loop_->state().workers.at("w1").revision;
  const auto post = [&] {
    const auto reply = [this](absl::Status status, const ControlLoop::Outcome&) {
      syncs_.push_back(std::move(status));
    };
    ASSERT_TRUE(loop_->PostSynchronize(sync, reply));
    loop_->RunOnce(0);
  };
  sync.draining = true;
  post();
  EXPECT_EQ(syncs_.size(), 1u);
  sync.attempts.push_back({"a", 1, "cpu0"});
  post();
  EXPECT_EQ(syncs_.size(), 1u) << "it would call again and again while that runs";
}

TEST_F(ControlLoopTest, HoldsASynchronizeUntilSomethingChanges) {
  AddThings();
  PostSync(0);
  ASSERT_EQ(syncs_.size(), 1u);  // it knew an older set
  PostSync(revision_);
  EXPECT_EQ(syncs_.size(), 1u);
  clock_.AdvanceUs(9'000'000);
  loop_->RunOnce(0);
  EXPECT_EQ(syncs_.size(), 1u);
  clock_.AdvanceUs(1'000'000);
  loop_->RunOnce(0);
  EXPECT_EQ(syncs_.size(), 2u);
  PostSync(revision_);
  Post(Driver::JobOf("a"));
  loop_->RunOnce(0);
  ASSERT_EQ(syncs_.size(), 3u);
  // A newer call answers the older one.
  PostSync(revision_);
  PostSync(revision_);
  EXPECT_EQ(syncs_.size(), 4u);
  loop_->Stop();
  EXPECT_EQ(syncs_.size(), 5u);
  for (const absl::Status& status : syncs_) EXPECT_TRUE(status.ok());
}

TEST_F(ControlLoopTest, AHeldCallOfASupersededProcessLearnsNothing) {
  AddThings();
  PostSync(0);
  PostSync(revision_);
  Post(Driver::WorkerOf("w1", "i2", 1'000 * core::testing::kMB));
  loop_->RunOnce(0);
  ASSERT_EQ(syncs_.size(), 2u);
  EXPECT_EQ(StatusReason(syncs_[1]), Reason::kStaleAttempt);
}

TEST_F(ControlLoopTest, ManyThreadsCall) {
  AddThings();
  loop_->RunThread();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 25; ++i) {
        const std::string id = "job-" + std::to_string(t) + "-" + std::to_string(i);
        EXPECT_EQ(loop_->Call(Driver::JobOf(id)).value(), id);
        bool found = false;
        EXPECT_TRUE(loop_->ReadAndWait(
            [&](const ControlLoop::Outcome& o) { found = o.state.FindJob(id) != nullptr; }));
        EXPECT_TRUE(found);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  loop_->Stop();
  EXPECT_EQ(loop_->state().jobs.size(), 100u + loop_->state().checks.size());
  EXPECT_EQ(StatusReason(loop_->Call(core::Tick{}).status()), Reason::kShuttingDown);
}

TEST(WatchHub, DeliversInOrderAndCutsTheSlow) {
  WatchHub hub(3, 2);
  int wakes = 0;
  auto watcher = hub.Subscribe("a", [&] { ++wakes; });
  auto everything = hub.Subscribe("", nullptr);
  const auto record = [](const std::string& job, int64_t sequence) {
    core::EventRecord r;
    r.job_id = job;
    r.sequence = sequence;
    return r;
  };
  hub.PublishEvents({record("a", 1), record("b", 1), record("a", 2)});
  EXPECT_EQ(wakes, 1);
  WatchHub::Taken taken = watcher->Take();
  ASSERT_EQ(taken.events.size(), 2u);
  EXPECT_EQ(taken.events[1].sequence, 2);
  EXPECT_FALSE(taken.cut);
  EXPECT_EQ(everything->Take().events.size(), 3u);
  for (int64_t s = 3; s < 9; ++s) hub.PublishEvents({record("a", s)});
  taken = watcher->Take();
  EXPECT_TRUE(taken.cut);
  EXPECT_EQ(taken.events.size(), 3u);
  hub.PublishEvents({record("a", 9)});
  EXPECT_TRUE(watcher->Take().events.empty());
  auto again = hub.Subscribe("a", nullptr);
  store::StepMetric m;
  for (m.step = 1; m.step <= 5; ++m.step) hub.PublishMetrics("a", {m});
  taken = again->Take();
  ASSERT_EQ(taken.metrics.size(), 2u);
  EXPECT_EQ(taken.metrics.back().step, 5);
  hub.Close();
  EXPECT_TRUE(again->Take().cut);
  EXPECT_TRUE(hub.Subscribe("a", nullptr)->Take().cut);
}

}  // namespace
}  // namespace nibble

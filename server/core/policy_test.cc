// Rules of order (docs/scheduling.md) that only show when several things hold at one time.
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "server/core/schedule_pass.h"
#include "server/core/testing/contest.h"

namespace nibble::core {
namespace {

using testing::CallWithout;
using testing::Driver;
using testing::kHourUs;
using testing::kMB;
using testing::kMinuteUs;
using testing::Lasting;
using testing::Of;
using testing::WorkerOfJob;

// What is brief goes before the shares of projects, where a twentieth of the fleet has room for it.
TEST(Order, AFewMinutesOfWorkGoBeforeTheShares) {
  for (const int devices : {24, 12}) {
    Driver d;
    d.core().options.max_attempts_per_device = 1;
    d.core().options.preempt_work_ratio = 0;
    d.Must(ServerStart{"timeline-1"});
    for (int i = 0; i < devices; ++i) d.AddWorker(absl::StrCat("w", i));
    for (int i = 0; i + 1 < devices; ++i) d.Must(Of("greedy", Lasting(absl::StrCat("a", i), 10 * kHourUs)));
    d.Place();
    d.Must(Of("greedy", Lasting("minutes", 5 * kMinuteUs)));
    d.Must(Of("poor", Lasting("hours", 5 * kHourUs)));
    d.Place();
    EXPECT_EQ(WorkerOfJob(d, "minutes") != "", devices == 24) << devices;
    EXPECT_EQ(WorkerOfJob(d, "hours") != "", devices == 12) << devices;
  }
}

// A worker on which the job failed soon after its start comes last, whatever kind of device it has.
TEST(Order, WhereAJobFailedComesLast) {
  Driver d;
  d.AddWorker("w1");
  RegisterWorker other = Driver::WorkerOf("w2", "i1", 1'000 * kMB);
  other.devices[0].profile.threads = 7;  // another kind
  d.Must(Driver::JobOf("j"));
  d.Place();
  ASSERT_EQ(WorkerOfJob(d, "j"), "w1");
  d.Must(other);
  d.Must(ReportFailed{d.FenceOf("j"), "ENGINE_FAILED", "died", true, false});
  ASSERT_EQ(d.job("j").poisoned_workers.count("w1"), 1u);
  CallWithout(d, "w1", "j");
  d.Advance(kMinuteUs);
  d.Must(Synchronize(d.SyncOf("w1")));
  d.Must(Synchronize(d.SyncOf("w2")));
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "j"), "w2");
}

// So does one whose disk or files failed it: an idle worker with a bad disk would else use up the retries of
// all that waits. It is no POISON, and where there is no other worker it is tried there again.
TEST(Order, WhereAJobsFilesFailedComesLast) {
  Driver d;
  d.AddWorker("w1");
  d.Must(Driver::JobOf("j"));
  d.Place();
  const auto fail = [&](const char* reason) {
    const std::string worker = WorkerOfJob(d, "j");
    d.Must(ReportFailed{d.FenceOf("j"), reason, "read tokens: Input/output error", true, false});
    CallWithout(d, worker, "j");
    d.Advance(kMinuteUs);
    for (const auto& [id, w] : d.state().workers) d.Must(Synchronize(d.SyncOf(id)));
    d.Place();
    return WorkerOfJob(d, "j");
  };
  EXPECT_EQ(fail("INTERNAL"), "w1");
  d.AddWorker("w2");
  EXPECT_EQ(fail("INTERNAL"), "w2");
  EXPECT_TRUE(d.job("j").poisoned_workers.empty());
  // What is as bad everywhere counts against nobody.
  d.AddWorker("w3");
  EXPECT_EQ(fail("CHECKPOINT_INVALID"), "w2");
}

// What a project held of the memory counts for a while after it has let go.
TEST(Order, MemoryThatWasHeldCounts) {
  Driver d;
  d.core().options.max_attempts_per_device = 1;
  d.Must(ServerStart{"timeline-1"});
  d.AddWorker("large", 400 * kMB);
  d.AddWorker("small", 130 * kMB);
  CreateJob wide = Of("a", Lasting("wide", 10 * kHourUs));
  wide.spec.lora_r = 200;  // 320 of 530 MB; the other has 121, and each has half of the devices' time
  d.Must(wide);
  d.Must(Of("b", Lasting("narrow", 10 * kHourUs)));
  d.Place();
  ASSERT_EQ(WorkerOfJob(d, "wide"), "large");
  ASSERT_EQ(WorkerOfJob(d, "narrow"), "small");
  for (int i = 0; i < 20; ++i) {
    d.Advance(kMinuteUs / 2);
    for (const char* worker : {"large", "small"}) d.Must(Synchronize(d.SyncOf(worker)));
  }
  d.Must(DrainWorker{"small"});
  d.Must(CancelJob{"wide"});
  d.Must(CancelJob{"narrow"});
  CallWithout(d, "large", "wide");
  CallWithout(d, "small", "narrow");
  d.Must(Of("a", Lasting("next-of-a", 10 * kHourUs)));
  d.Must(Of("b", Lasting("next-of-b", 10 * kHourUs)));
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "next-of-b"), "large");
  EXPECT_EQ(WorkerOfJob(d, "next-of-a"), "");
}

// A twentieth of the fleet's time is for brief jobs, those that run and those just placed together:
// two devices of 40.
TEST(Order, BriefJobsHaveNoMoreThanTheirPart) {
  for (const bool at_once : {true, false}) {
    Driver d;
    d.core().options.max_attempts_per_device = 1;
    d.core().options.preempt_work_ratio = 0;
    d.Must(ServerStart{"timeline-1"});
    for (int i = 0; i < 40; ++i) d.AddWorker(absl::StrCat("w", i));
    for (int i = 0; i < 37; ++i) d.Must(Of("greedy", Lasting(absl::StrCat("a", i), 10 * kHourUs)));
    d.Place();
    for (const char* id : {"b0", "b1", "b2"}) {
      d.Must(Of("greedy", Lasting(id, 5 * kMinuteUs)));
      if (!at_once && id != std::string_view("b2")) d.Place();
    }
    d.Must(Of("poor", Lasting("hours", 5 * kHourUs)));
    d.Place();
    EXPECT_NE(WorkerOfJob(d, "b1"), "") << at_once;
    EXPECT_EQ(WorkerOfJob(d, "b2"), "") << at_once;
    EXPECT_NE(WorkerOfJob(d, "hours"), "") << at_once;
  }
}

// Half of the devices with little memory, or a quarter with much: time is what the first has more of, now and
// for a while after it has let go.
TEST(Order, TimeThatIsOrWasHeldCounts) {
  for (const bool let_go : {false, true}) {
    SCOPED_TRACE(let_go);
    Driver d;
    d.core().options.max_attempts_per_device = 1;
    d.Must(ServerStart{"timeline-1"});
    const auto jobs = {std::pair{"narrow-1", "a"}, {"narrow-2", "a"}, {"wide", "b"}};
    for (const auto& [id, project] : jobs) {
      CreateJob create = Of(project, Lasting(id, 10 * kHourUs));
      create.spec.lora_r = id[0] == 'w' ? 200 : 1;
      d.AddWorker(absl::StrCat("of-", id));
      d.Must(create);
      d.Place();
      ASSERT_EQ(WorkerOfJob(d, id), absl::StrCat("of-", id));
    }
    for (int i = 0; i < 10; ++i) {
      d.Advance(kMinuteUs / 2);
      for (const auto& [id, project] : jobs) d.Must(Synchronize(d.SyncOf(absl::StrCat("of-", id))));
    }
    for (const auto& [id, project] : jobs) {
      d.Must(DrainWorker{absl::StrCat("of-", id)});
      if (!let_go) continue;
      d.Must(CancelJob{id});
      CallWithout(d, absl::StrCat("of-", id), id);
    }
    d.AddWorker("free");
    d.Must(Of("a", Lasting("next-of-a", 10 * kHourUs)));
    d.Must(Of("b", Lasting("next-of-b", 10 * kHourUs)));
    d.Place();
    EXPECT_EQ(WorkerOfJob(d, "next-of-b"), "free");
  }
}

// After some windows nobody asks any more who had the fleet: the name decides.
TEST(Order, WhatWasHeldLongAgoIsForgotten) {
  Driver d;
  d.core().options.max_attempts_per_device = 1;
  d.Must(ServerStart{"timeline-1"});
  d.AddWorker("w1");
  d.Must(Of("a", Lasting("long-ago", 10 * kHourUs)));
  d.Place();
  for (int i = 0; i < 20; ++i) {
    d.Advance(kMinuteUs / 2);
    d.Must(Synchronize(d.SyncOf("w1")));
  }
  d.Must(CancelJob{"long-ago"});
  CallWithout(d, "w1", "long-ago");
  d.Advance(10 * d.core().options.share_window_us);
  d.Must(Synchronize(d.SyncOf("w1")));
  d.Must(Of("a", Lasting("of-a", 10 * kHourUs)));
  d.Must(Of("b", Lasting("of-b", 10 * kHourUs)));
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "of-a"), "w1");
}

// At two thirds of its bound on waiting a job comes first whatever its project has; not before.
TEST(Order, TheBoundOnWaitingGoesBeforeTheShares) {
  for (const int64_t waited_us : {16 * kHourUs - kMinuteUs, 16 * kHourUs + kMinuteUs}) {
    Driver d;
    d.core().options.max_attempts_per_device = 1;
    d.core().options.preempt_work_ratio = 0;
    d.Must(ServerStart{"timeline-1"});
    d.AddWorker("w1");
    d.Must(Of("greedy", Lasting("hog", kHourUs)));
    d.Place();
    d.Must(Of("greedy", Lasting("old", 20 * kHourUs)));  // more than the hog has left, which stays for that
    d.Advance(waited_us);
    d.Must(Synchronize(d.SyncOf("w1")));
    d.AddWorker("w2");
    d.Must(Of("poor", Lasting("new", 5 * kHourUs)));
    d.Place();
    EXPECT_EQ(WorkerOfJob(d, waited_us > 16 * kHourUs ? "old" : "new"), "w2") << waited_us;
  }
}

const Board::Waiting& WaitingOf(const Driver& d, const std::string& id) {
  return d.state().board.waiting().at(d.job(id).number);
}

// Ten times the measured duration, on the short side, where that is more than a day; a guess counts
// for nothing.
TEST(Order, TheBoundFollowsWhatWasMeasured) {
  Driver d;
  d.Must(Lasting("guessed", 100 * kHourUs));
  EXPECT_EQ(WaitingOf(d, "guessed").urgent_us - d.job("guessed").queued_us, 12 * kHourUs);
  EXPECT_EQ(WaitingOf(d, "guessed").critical_us - d.job("guessed").queued_us, 16 * kHourUs);
  d.AddWorker("w1");
  CreateJob seen = Driver::JobOf("seen");
  seen.spec.max_steps = 360'000;  // 100 hours
  seen.priority = 1;
  d.Must(seen);
  d.Place();
  for (const int64_t step : {1, 21}) {
    Progress head;
    head.step = step;
    head.step_time_us = kSecondUs;
    d.Must(ReportProgress{d.FenceOf("seen"), head});
    d.Advance(20 * kSecondUs);
  }
  CreateJob known = Driver::JobOf("known");
  known.spec.max_steps = seen.spec.max_steps;
  d.Must(known);
  ASSERT_EQ(WorkerOfJob(d, "known"), "");
  EXPECT_NEAR(static_cast<double>(WaitingOf(d, "known").urgent_us - d.job("known").queued_us) / kHourUs,
              100 * 0.7 * 10 / 2, 1);
}

// A job that has run before waits as any other: the bound was on its first start.
TEST(Order, WhoHasRunBeforeIsNotOverdue) {
  Driver d;
  d.AddWorker("w1");
  d.Must(Lasting("old", 5 * kHourUs));
  d.Place();
  d.Must(DrainWorker{"w1"});
  d.Must(ReportReleased{d.FenceOf("old"), 0});
  d.Advance(20 * kHourUs);
  d.Must(Lasting("urgent", 5 * kHourUs, 1));
  EXPECT_EQ(OrderOf(d.state().board, d.Now().monotonic_us, 1).at(0), d.job("urgent").number);
}

// What was done before it was let go is not left to do.
TEST(Order, StepsThatAreDoneDoNotCount) {
  Driver d;
  d.AddWorker("w1");
  CreateJob long_job = Driver::JobOf("long");
  long_job.spec.max_steps = 1'000;
  d.Must(long_job);
  d.Place();
  ReportProgress report;
  report.fence = d.FenceOf("long");
  report.head.step = 900;
  d.Must(report);
  d.Must(DrainWorker{"w1"});
  d.Must(ReportReleased{d.FenceOf("long"), 900});
  CreateJob fresh = Driver::JobOf("fresh");
  fresh.spec.max_steps = 500;
  d.Must(fresh);
  EXPECT_EQ(OrderOf(d.state().board, d.Now().monotonic_us, 1).at(0), d.job("long").number);
}

// Another of its kind may start while one waits before another try.
TEST(Order, WhoWaitsBeforeAnotherTryIsInNobodysWay) {
  Driver d;
  d.AddWorker("w1");
  d.Must(Driver::JobOf("failed"));
  d.Place();
  d.Must(ReportFailed{d.FenceOf("failed"), "STORE_UNAVAILABLE", "away", true, false});
  CallWithout(d, "w1", "failed");
  d.Must(Driver::JobOf("other"));
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "failed"), "");
  EXPECT_EQ(WorkerOfJob(d, "other"), "w1");
}

}  // namespace
}  // namespace nibble::core

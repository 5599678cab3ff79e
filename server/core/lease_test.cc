// Leases, and who may go on with what: workers that come back, go, or say what is no longer so; measurements;
// CHECKs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "base/error.h"
#include "server/core/schedule.h"
#include "server/core/testing/contest.h"

namespace nibble::core {
namespace {

using testing::CallWithout;
using testing::Driver;
using testing::IsAskedToLetGo;
using testing::kHourUs;
using testing::kMB;
using testing::WorkerOfJob;

void Progress(Driver& d, const std::string& id, int64_t step, int64_t step_time_us = kSecondUs) {
  ReportProgress report;
  report.fence = d.FenceOf(id);
  report.head.step = step;
  report.head.step_time_us = step_time_us;
  d.Must(report);
}

// "w1" trains "j" and has been silent for too long; what it would list when it is back.
Synchronize Lost(Driver& d) {
  d.AddWorker("w1");
  d.Must(Driver::JobOf("j"));
  d.Place();
  Progress(d, "j", 1);
  Synchronize listing = d.SyncOf("w1");
  listing.attempts.at(0).intact = true;
  d.Advance(d.core().options.lease_lost_us + kSecondUs);
  d.Must(Tick{});
  CHECK(d.job("j").state == JobState::kQueued);
  return listing;
}

// Rows of a version that kept neither say nothing: from the start on, and no longer with each further start.
TEST(Lease, SinceWhenAWorkerIsLostCountsFromTheFirstStartThatDoesNotKnow) {
  Driver d;
  Lost(d);
  Worker& worker = d.mutable_state().workers.at("w1");
  ASSERT_TRUE(worker.lost);
  worker.lost_unix_us = worker.last_seen_unix_us = 0;
  d.AddWorker("w2");
  d.mutable_state().touched = {};
  d.Must(ServerStart{"timeline-1"});
  const int64_t start_us = d.Now().unix_us;
  EXPECT_EQ(worker.lost_unix_us, start_us);
  EXPECT_EQ(worker.last_seen_unix_us, start_us);
  EXPECT_EQ(d.state().workers.at("w2").lost_unix_us, 0);
  EXPECT_THAT(d.state().touched.workers, ::testing::ElementsAre("w1"));
  d.Advance(kHourUs);
  d.Must(ServerStart{"timeline-1"});
  EXPECT_EQ(worker.lost_unix_us, start_us);
  EXPECT_EQ(worker.last_seen_unix_us, start_us);
}

// What is intact elsewhere is not given back to who only says so, nor to one that is to have nothing.
TEST(Lease, AJobIsGivenBackOnlyToWhoHadIt) {
  Driver d;
  Synchronize listing = Lost(d);
  d.AddWorker("w2");
  Synchronize other = d.SyncOf("w2");
  other.attempts = listing.attempts;
  d.Must(other);
  EXPECT_EQ(d.job("j").epoch, 1);
  d.Must(DrainWorker{"w1"});
  d.Must(listing);
  EXPECT_EQ(d.job("j").epoch, 1);
  d.Must(UndrainWorker{"w1"});
  d.Must(listing);
  EXPECT_EQ(d.job("j").epoch, 2);
  EXPECT_EQ(WorkerOfJob(d, "j"), "w1");
}

// It goes on under a new key, of which its worker may not have heard when it lists what it has.
TEST(Lease, AJobGivenBackMayBeListedByItsFirstKey) {
  Driver d;
  Synchronize listing = Lost(d);
  d.Must(listing);
  ASSERT_EQ(d.job("j").epoch, 2);
  listing.known_revision = d.job("j").Current()->assign_revision;
  d.Must(listing);
  EXPECT_EQ(d.job("j").epoch, 2);
  EXPECT_EQ(d.job("j").Current()->state, AttemptState::kActive);
  listing.attempts.clear();
  d.Must(listing);
  EXPECT_EQ(d.job("j").attempts.at(2).state, AttemptState::kLost);
}

// Everything that would be held against a worker or a job for a time nobody was heard in is put off by it.
TEST(Lease, ASleepOfTheServerPutsDeadlinesOff) {
  Driver d;
  d.AddWorker("w1");
  d.AddWorker("gone");
  d.Must(Driver::JobOf("j"));
  d.Must(Driver::JobOf("k"));
  d.Place();
  const std::string with_j = WorkerOfJob(d, "j");
  Progress(d, "j", 1);
  d.Must(CancelJob{"k"});
  const int64_t deadline_us = d.job("k").cancel_deadline_us;
  const int64_t started_us = d.job("j").Current()->start_us;
  const int64_t renewed_us = d.state().workers.at(with_j).renewed_us;
  d.Must(Awake{d.core().options.sleep_us - 1});
  EXPECT_TRUE(d.last_events().empty());
  d.Advance(kHourUs);
  d.Must(Awake{kHourUs});
  d.Must(Tick{});
  EXPECT_EQ(d.job("j").infra_retries, 0);
  EXPECT_FALSE(d.state().workers.at(with_j).lost);
  EXPECT_EQ(d.state().workers.at(with_j).renewed_us, renewed_us + kHourUs);
  EXPECT_EQ(d.job("k").state, JobState::kCancelling);
  EXPECT_EQ(d.job("k").cancel_deadline_us, deadline_us + kHourUs);
  EXPECT_EQ(d.job("j").Current()->start_us, started_us + kHourUs) << "it is as young as it was";
  EXPECT_EQ(d.job("j").Current()->seen_us, 0) << "and did not take an hour for a step";
  // More than passed is given to nobody.
  d.Must(Awake{2 * kHourUs});
  EXPECT_EQ(d.state().workers.at(with_j).renewed_us, d.Now().monotonic_us);
  // Where work may go is known by the same times.
  d.Must(Driver::JobOf("l"));
  d.Place();
  EXPECT_EQ(d.job("l").state, JobState::kStarting);
  // One that is lost stays lost.
  d.Advance(d.core().options.lease_lost_us + kSecondUs);
  d.Must(Tick{});
  ASSERT_TRUE(d.state().workers.at("gone").lost);
  d.Must(Awake{kHourUs});
  d.Must(Tick{});
  EXPECT_TRUE(d.state().workers.at("gone").lost);
  EXPECT_EQ(HealthOf(d.state().workers.at("gone"), d.core().options, d.Now().monotonic_us),
            WorkerHealth::kLost);
}

TEST(Lease, ADrainOutlivesTheProcess) {
  for (const char* incarnation : {"i1", "i2"}) {
    Driver d;
    d.AddWorker("w1");
    d.Must(DrainWorker{"w1"});
    d.AddWorker("w1", 1'000 * kMB, incarnation);
    d.Must(Driver::JobOf("j"));
    d.Place();
    EXPECT_EQ(WorkerOfJob(d, "j"), "") << incarnation;
    d.Must(UndrainWorker{"w1"});
    d.Place();
    EXPECT_EQ(WorkerOfJob(d, "j"), "w1") << incarnation;
  }
}

// A process that registers again has the devices it had, as long as something is on them.
TEST(Lease, DevicesDoNotChangeUnderAttempts) {
  Driver d;
  d.AddWorker("w1");
  d.Must(Driver::JobOf("j"));
  d.Place();
  d.AddWorker("w1", 50 * kMB);
  EXPECT_EQ(d.state().workers.at("w1").devices.at("cpu0").capacity_bytes, 1'000 * kMB);
  d.Must(CancelJob{"j"});
  CallWithout(d, "w1", "j");
  d.AddWorker("w1", 50 * kMB);
  EXPECT_EQ(d.state().workers.at("w1").devices.at("cpu0").capacity_bytes, 50 * kMB);
}

// A worker that goes lets its jobs go, each once, and gets no new ones.
TEST(Lease, AWorkerThatGoesIsLetGo) {
  Driver d;
  d.AddWorker("w1");
  d.Must(Driver::JobOf("j"));
  d.Place();
  Synchronize going = d.SyncOf("w1");
  going.draining = true;
  d.Must(going);
  ASSERT_TRUE(IsAskedToLetGo(d, "j"));
  EXPECT_EQ(d.job("j").Current()->release_reason, "its worker goes");
  const int64_t sequence = d.job("j").last_sequence;
  d.Must(going);
  EXPECT_EQ(d.job("j").last_sequence, sequence);
  d.Must(ReportReleased{d.FenceOf("j"), 0});
  d.Place();
  EXPECT_EQ(d.job("j").state, JobState::kQueued);
  EXPECT_EQ(d.job("j").infra_retries, 0);
}

// What a worker lets go of without being asked it does not get again at once; what it was asked for it may.
TEST(Lease, WhatIsLetGoUnaskedWaits) {
  for (const bool asked : {false, true}) {
    Driver d;
    d.AddWorker("w1");
    d.Must(Driver::JobOf("j"));
    d.Place();
    if (asked) d.Must(PauseJob{"j"});
    if (asked) d.Must(ResumeJob{"j"});
    d.Must(ReportReleased{d.FenceOf("j"), 0});
    ASSERT_EQ(d.job("j").state, JobState::kQueued);
    EXPECT_EQ(d.job("j").not_before_us - d.Now().monotonic_us, asked ? 0 : d.core().options.backoff_min_us);
  }
}

// A head that was on the way for longer than its follower.
TEST(Lease, AnOlderHeadSaysNothingNew) {
  Driver d;
  d.AddWorker("w1");
  d.Must(Driver::JobOf("j"));
  d.Place();
  Progress(d, "j", 7);
  Progress(d, "j", 3);
  EXPECT_EQ(d.job("j").progress.step, 7);
}

// Who takes down its worker after an hour has done no harm at its start.
TEST(Poison, OnlySoonAfterTheStart) {
  Driver d;
  const auto workers = {"w1", "w2", "w3"};
  for (const char* id : workers) d.AddWorker(id);
  d.Must(Driver::JobOf("j"));
  for (int i = 0; i < 4; ++i) {
    d.Advance(kHourUs);
    for (const char* id : workers) d.Must(Synchronize(d.SyncOf(id)));
    d.Place();
    ASSERT_EQ(d.job("j").state, JobState::kStarting) << i;
    d.Advance(d.core().options.poison_window_us + 1);
    for (const char* id : workers) d.Must(Synchronize(d.SyncOf(id)));
    const std::string worker = WorkerOfJob(d, "j");
    d.Must(ReportFailed{d.FenceOf("j"), "ENGINE_FAILED", "died", true, false});
    CallWithout(d, worker, "j");
  }
  EXPECT_TRUE(d.job("j").poisoned_workers.empty());
  EXPECT_EQ(d.job("j").state, JobState::kQueued);
}

TEST(Check, OneAtATimeOnAWorker) {
  Driver d;
  d.AddWorker("w1");
  spec::TrainSpec spec = Driver::JobOf("x").spec;
  std::string first = d.Must(ValidateDataset{"data", "", "base", spec});
  spec.sequence_len = 500;
  std::string second = d.Must(ValidateDataset{"data", "", "base", spec});
  ASSERT_NE(first, second);
  d.Place();
  d.Place();
  if (d.job(second).state == JobState::kStarting) std::swap(first, second);
  EXPECT_EQ(d.job(first).state, JobState::kStarting);
  EXPECT_EQ(d.job(second).state, JobState::kQueued);
  d.Must(ReportCheck{d.FenceOf(first), "{}", 5});
  CallWithout(d, "w1", first);
  d.Place();
  EXPECT_EQ(d.job(second).state, JobState::kStarting);
}

// Four steps measure a plan nobody has seen, sixteen one that is known; none over which a neighbour came.
TEST(Measuring, TakesEnoughStepsOfOneKind) {
  Driver d;
  d.AddWorker("w1");
  d.Must(Driver::JobOf("a"));
  d.Place();
  const auto known_us = [&] {
    const auto plan = d.state().learned.find(d.job("a").plan_key);
    return plan == d.state().learned.end() ? 0 : plan->second.begin()->second.step_us;
  };
  const auto steps_to = [&](int64_t step, int64_t passed_us, int64_t step_us) {
    d.Advance(passed_us);
    d.Must(Synchronize(d.SyncOf("w1")));
    Progress(d, "a", step, step_us);
  };
  Progress(d, "a", 1);
  steps_to(4, 3 * kSecondUs, kSecondUs);
  EXPECT_EQ(known_us(), 0) << "three steps";
  steps_to(5, kSecondUs, kSecondUs);
  EXPECT_EQ(known_us(), kSecondUs);
  steps_to(20, 30 * kSecondUs, 2 * kSecondUs);
  EXPECT_EQ(known_us(), kSecondUs) << "fifteen steps";
  d.Must(Driver::JobOf("b"));
  d.Place();
  ASSERT_EQ(WorkerOfJob(d, "b"), "w1");
  steps_to(40, 40 * kSecondUs, 2 * kSecondUs);
  EXPECT_EQ(known_us(), kSecondUs) << "somebody came";
  steps_to(56, 32 * kSecondUs, 2 * kSecondUs);
  EXPECT_GT(known_us(), kSecondUs);
}

// When something would start is said only where the end of what is there is known.
TEST(Expected, NothingIsSaidOfEndsNobodyKnows) {
  Driver d;
  d.AddWorker("w1", 125 * kMB);
  d.Must(Driver::JobOf("a"));
  d.Place();
  ASSERT_EQ(WorkerOfJob(d, "a"), "w1");
  const auto starts = [&] {
    return ExpectedStarts(d.state(), d.state().models.at("base"), Driver::JobOf("b").spec,
                          d.Now().monotonic_us, d.core());
  };
  EXPECT_TRUE(starts().empty());
  d.Must(ReportPlan{d.FenceOf("a"), 1'000, "{}", ""});
  EXPECT_TRUE(starts().empty()) << "so many steps, of nobody knows what duration";
  Progress(d, "a", 1);
  d.Advance(100 * kSecondUs);
  d.Must(Synchronize(d.SyncOf("w1")));
  Progress(d, "a", 101);
  ASSERT_EQ(starts().size(), 1u);
  EXPECT_NEAR(static_cast<double>(starts().begin()->second - d.Now().monotonic_us) / kSecondUs, 899, 1);
}

}  // namespace
}  // namespace nibble::core

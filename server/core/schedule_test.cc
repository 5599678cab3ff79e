// Who starts where, who waits, and what it says about it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "absl/strings/str_cat.h"
#include "server/core/testing/contest.h"

namespace nibble::core {
namespace {

using testing::CallWithout;
using testing::Compete;
using testing::Driver;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::IsAskedToLetGo;
using testing::kMB;
using testing::WorkerOfJob;

// persistent r MB, step tokens / 1000 MB; with base 100 MB and fixed 10 MB.
CreateJob Sized(const std::string& id, int32_t r, int32_t tokens, int32_t priority = 0) {
  CreateJob create = Driver::JobOf(id);
  create.spec.lora_r = r;
  create.spec.sequence_len = tokens;
  create.priority = priority;
  return create;
}

TEST(DeviceLoad, CountsTheBaseOnceAndTheLargestStep) {
  DeviceLoad load;
  PlanBytes plan;
  plan.fixed_bytes = 10;
  plan.base_bytes = 100;
  plan.persistent_bytes = 7;
  plan.step_bytes = 30;
  load.Add("g", plan, false);
  EXPECT_EQ(load.TotalBytes(), 147);
  plan.step_bytes = 20;
  EXPECT_EQ(load.Added("g", plan), 7);
  plan.step_bytes = 50;
  EXPECT_EQ(load.Added("g", plan), 27);
  EXPECT_EQ(load.Added("other", plan), 167);
  load.Add("g", plan, false);
  EXPECT_EQ(load.TotalBytes(), 10 + 100 + 14 + 50);
}

// A device's memory and the host's beside it, page-locked and other, each to the byte.
TEST(DeviceLoad, EachComponentIsAdmittedApart) {
  PlanBytes plan;
  plan.base_bytes = 100;
  plan.persistent_bytes = 7;
  plan.host_bytes = 40;
  EXPECT_EQ(plan.TotalBytes(), 147) << "on the host it is one memory";
  EXPECT_EQ(Need(plan).beside, HostPart());
  plan.pinned_bytes = 30;
  plan.host_apart = true;
  EXPECT_EQ(plan.TotalBytes(), 107);
  Capacity capacity(114);  // two of them
  capacity.beside = {60, 80};
  DeviceLoad load;
  load.Add("g", plan, false);
  EXPECT_EQ(load.beside, (HostPart{30, 40}));
  const SchedulePolicy policy;
  const auto fits = [&](int64_t device, int64_t pinned, int64_t host) {
    Capacity offered(device);
    offered.beside = {pinned, host};
    return load.Fits(offered, "g", plan, false, policy);
  };
  EXPECT_TRUE(fits(114, 60, 80));
  EXPECT_FALSE(fits(113, 60, 80));
  EXPECT_FALSE(fits(114, 59, 80));
  EXPECT_FALSE(fits(114, 60, 79));
  EXPECT_TRUE(fits(114, 0, 0)) << "not said is not limited";
  EXPECT_FALSE(Need(plan).FitsAlone([] {
    Capacity offered(1000);
    offered.beside = {29, 1000};
    return offered;
  }()));
}

// Two paged jobs fit a GPU, but its host can hold the moments of one.
TEST(Schedule, AJobWaitsForPageLockedMemoryAlone) {
  Driver d;
  RegisterWorker worker = Driver::WorkerOf("w1", "i1", 1'000 * kMB);
  worker.devices[0].profile.backend = worker.devices[0].backend = "cuda";
  worker.devices[0].profile.pinned_capacity_bytes = 30 * kMB;
  worker.devices[0].profile.host_capacity_bytes = 1'000 * kMB;
  d.Must(worker);
  CreateJob paged = Sized("a", 20, 1'000, 3);
  paged.spec.paged_optimizer = true;
  d.Must(paged);
  paged.job_id = "b";
  paged.uid = "uid-b";
  paged.body_sha256 = "body-b";
  paged.priority = 2;
  d.Must(paged);
  d.Must(Sized("c", 20, 1'000, 1));
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "a"), "w1");
  EXPECT_EQ(WorkerOfJob(d, "b"), "");
  EXPECT_EQ(WorkerOfJob(d, "c"), "w1") << "it needs none";
  paged.job_id = "never";
  paged.spec.lora_r = 31;
  const absl::Status refused = d.Do(paged).status();
  EXPECT_THAT(std::string(refused.message()), HasSubstr("page-locked"));
}

// The largest plan there is (compile_plan.cc refuses more), as often as any device may hold it.
TEST(DeviceLoad, NoSumOverflows) {
  PlanBytes plan;
  constexpr int64_t kMost = int64_t{1} << 50;
  plan.fixed_bytes = plan.base_bytes = plan.persistent_bytes = plan.step_bytes = kMost;
  plan.host_bytes = plan.pinned_bytes = kMost;
  plan.host_apart = true;
  DeviceLoad load;
  SchedulePolicy policy;
  policy.max_attempts_per_device = policy.max_bases_per_device = 1'000;
  Capacity capacity(std::numeric_limits<int64_t>::max());
  capacity.beside = {std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::max()};
  for (int i = 0; i < policy.max_attempts_per_device; ++i) {
    ASSERT_TRUE(load.Fits(capacity, absl::StrCat("g", i), plan, false, policy));
    const int64_t before = load.TotalBytes();
    load.Add(absl::StrCat("g", i), plan, false);
    ASSERT_EQ(load.TotalBytes() - before, 4 * kMost);
    ASSERT_EQ(load.beside.pinned_bytes, (i + 1) * kMost);
  }
  EXPECT_FALSE(load.Fits(capacity, "g0", plan, false, policy));
}

TEST(Schedule, SharesABaseWhileItFitsToTheByte) {
  Driver d;
  d.AddWorker("w1", (10 + 100 + 20 + 20 + 30) * kMB);  // two jobs of 20, the larger step 30
  d.Must(Sized("a", 20, 30'000, 2));
  d.Must(Sized("b", 20, 10'000, 1));
  d.Must(Sized("c", 1, 1'000));
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "a"), "w1");
  EXPECT_EQ(WorkerOfJob(d, "b"), "w1");
  EXPECT_EQ(WorkerOfJob(d, "c"), "");
}

TEST(Schedule, OneByteTooFewWaits) {
  Driver d;
  d.AddWorker("w1", (10 + 100 + 20 + 20 + 30) * kMB - 1);
  d.Must(Sized("a", 20, 30'000, 2));
  d.Must(Sized("b", 20, 10'000, 1));
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "a"), "w1");
  EXPECT_EQ(WorkerOfJob(d, "b"), "");
  const std::string why = d.Why("b");
  EXPECT_THAT(why, HasSubstr("140000000 bytes"));
  EXPECT_THAT(why, HasSubstr("(19999999 bytes) on w1/cpu0"));
  EXPECT_THAT(why, HasSubstr("held by a"));
}

TEST(Schedule, PrefersAnIdleDeviceThenTheOneWithTheBase) {
  Driver d;
  d.AddWorker("w1");
  d.Must(Driver::JobOf("a"));
  d.Place();
  d.AddWorker("w2");
  d.Must(Driver::JobOf("b"));
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "b"), "w2");
  d.AddWorker("w3");
  d.AddWorker("w4");
  Synchronize sync = d.SyncOf("w4");
  sync.devices = {{"cpu0", 0, {"digest-of-base"}}};
  d.Must(sync);
  d.Must(Driver::JobOf("c"));
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "c"), "w4");
}

TEST(Schedule, OneBaseAtATimeOnADevice) {
  Driver d;
  d.RegisterBase("other");
  d.AddWorker("w1");
  d.Must(Driver::JobOf("a"));
  CreateJob b = Driver::JobOf("b");
  b.model_id = "other";
  d.Must(b);
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "b"), "");
  d.core().options.max_bases_per_device = 2;
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "b"), "w1");
}

std::vector<std::string> OrderOf(Driver& d) {
  std::vector<std::string> ids;
  const Board& board = d.state().board;
  for (const int64_t number : OrderOf(board, d.Now().monotonic_us, 1'000))
    ids.push_back(board.waiting().at(number).job_id);
  return ids;
}

TEST(Schedule, PriorityFirstThenTheLeastWork) {
  Driver d;
  const auto add = [&](const std::string& id, int32_t priority, int64_t steps) {
    CreateJob create = Driver::JobOf(id);
    create.priority = priority;
    create.spec.max_steps = steps;
    d.Must(create);
  };
  add("long", 0, 1'000);
  add("short", 0, 10);
  add("urgent", 1, 100'000);
  EXPECT_THAT(OrderOf(d), ElementsAre("urgent", "short", "long"));
  EXPECT_EQ(QueueLook(d.state(), d.core(), d.Now().monotonic_us).PlaceOf(d.job("long")), 3);
  UpdateJob update;
  update.job_id = "long";
  update.priority = 2;
  d.Must(update);
  EXPECT_THAT(OrderOf(d), ElementsAre("long", "urgent", "short"));
}

TEST(Schedule, WaitingCountsAsWorkDone) {
  Driver d;
  d.core().options.aging_milli = 500;
  d.Must(ServerStart{"timeline-1"});
  CreateJob old = Driver::JobOf("old");
  old.spec.max_steps = 1'000;
  d.Must(old);
  const int64_t work_us = Predict(d.state(), d.job("old")).left_us;
  d.Advance(work_us);  // worth half of its work
  for (const auto& [id, steps] : {std::pair{"half", 499}, std::pair{"more", 501}}) {
    CreateJob create = Driver::JobOf(id);
    create.spec.max_steps = steps;
    d.Must(create);
  }
  EXPECT_THAT(OrderOf(d), ElementsAre("half", "old", "more"));
}

TEST(Schedule, WhoIsOverdueComesFirstWhateverThePriority) {
  Driver d;
  d.Must(Driver::JobOf("old"));
  d.Advance(d.core().options.wait_floor_us / 2);
  CreateJob urgent = Driver::JobOf("urgent");
  urgent.priority = 100;
  d.Must(urgent);
  EXPECT_THAT(OrderOf(d), ElementsAre("old", "urgent"));
}

TEST(Schedule, TheFirstThatMustWaitIsNotStarvedByThoseBehindIt) {
  Driver d;
  d.AddWorker("w1", 200 * kMB);
  d.Must(Sized("a", 20, 20'000));  // 150 of 200
  d.Place();
  d.Must(Sized("big", 60, 20'000, 1));   // 190 alone
  d.Must(Sized("small", 15, 5'000));  // would fit beside a, but not beside big
  d.Must(Sized("tiny", 5, 5'000));    // fits beside both: 10 + 100 + 60 + 5 + 20
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "big"), "");
  EXPECT_EQ(WorkerOfJob(d, "small"), "");
  EXPECT_EQ(WorkerOfJob(d, "tiny"), "w1");
  d.Must(CancelJob{"a"});
  CallWithout(d, "w1", "a");
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "big"), "w1");
  EXPECT_EQ(WorkerOfJob(d, "small"), "");
}

// By bytes: a job that would bring its project above its quota waits, whatever is free; others do not care.
TEST(Schedule, AProjectHoldsNoMoreBytesThanItsQuota) {
  CoreOptions options;
  options.projects["default"].quota_bytes = 260 * kMB;
  Driver d(options);
  d.AddWorker("w1");
  d.AddWorker("w2");
  d.AddWorker("w3");
  for (const char* id : {"a", "b", "c"}) d.Must(Driver::JobOf(id));  // 121 MB each, on a device of its own
  CreateJob theirs = Driver::JobOf("theirs");
  theirs.tenant = "theirs";
  d.Must(theirs);
  d.Place();
  EXPECT_NE(WorkerOfJob(d, "a"), "");
  EXPECT_NE(WorkerOfJob(d, "b"), "");
  EXPECT_EQ(WorkerOfJob(d, "c"), "");
  EXPECT_NE(WorkerOfJob(d, "theirs"), "");
  EXPECT_THAT(d.Why("c"), HasSubstr("quota of project default"));
  d.Must(CancelJob{"a"});
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "c"), "") << "what it held is not free until its worker says so";
  CallWithout(d, d.job("a").attempts.at(1).worker_id, "a");
  d.Place();
  EXPECT_NE(WorkerOfJob(d, "c"), "");
}

TEST(Schedule, BackfillsElsewhere) {
  Driver d;
  d.AddWorker("w1", 200 * kMB);
  d.Must(Sized("a", 60, 20'000));
  d.Place();
  d.AddWorker("w2", 140 * kMB);
  d.Must(Sized("big", 60, 20'000));  // only ever fits w1
  d.Must(Sized("small", 5, 5'000));
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "big"), "");
  EXPECT_EQ(WorkerOfJob(d, "small"), "w2");
}

TEST(Schedule, WhoMustRunAloneWaitsForAnEmptyDevice) {
  Driver d;
  d.AddWorker("w1");
  d.Must(Driver::JobOf("a"));
  d.Place();
  d.Must(Driver::JobOf("b"));
  d.mutable_state().jobs.at("b").run_alone = true;
  d.mutable_state().BuildIndexes();
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "b"), "");
  d.Must(Driver::JobOf("c"));
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "c"), "");  // would keep b from its turn
}

// It began alone, and who comes later waits until it has ended.
TEST(Schedule, WhoRunsAloneStaysAlone) {
  Driver d;
  d.AddWorker("w1");
  d.Must(Driver::JobOf("alone"));
  d.mutable_state().jobs.at("alone").run_alone = true;
  d.mutable_state().BuildIndexes();
  d.Place();
  ASSERT_EQ(WorkerOfJob(d, "alone"), "w1");
  d.Must(Driver::JobOf("later"));
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "later"), "");
}

// One that may go on with other numerics does.
TEST(Schedule, NumericsMayChangeWhereTheRecipeSaysSo) {
  for (const bool allowed : {false, true}) {
    Driver d;
    d.AddWorker("w1");
    CreateJob create = Driver::JobOf("j");
    create.spec.allow_numerics_change = allowed;
    d.Must(create);
    d.Place();
    d.Must(ReportPlan{d.FenceOf("j"), 40, "{}", "n1"});
    d.Must(DrainWorker{"w1"});
    d.Must(ReportReleased{d.FenceOf("j"), 1});
    RegisterWorker other = Driver::WorkerOf("w2", "i1", 1'000 * kMB);
    other.devices[0].profile.build = "build-2";
    d.Must(other);
    d.Place();
    EXPECT_EQ(WorkerOfJob(d, "j"), allowed ? "w2" : "");
  }
}

// Nor does one wait for ever that was not: the reason names the way, and it is for good.
TEST(Schedule, NumericsMayChangeOnceAnUpdateSaysSo) {
  Driver d;
  d.AddWorker("w1");
  d.Must(Driver::JobOf("j"));
  d.Place();
  d.Must(ReportPlan{d.FenceOf("j"), 40, "{}", "n1"});
  d.Must(DrainWorker{"w1"});
  d.Must(ReportReleased{d.FenceOf("j"), 1});
  RegisterWorker other = Driver::WorkerOf("w2", "i1", 1'000 * kMB);
  other.devices[0].profile.build = "build-2";
  d.Must(other);
  d.Place();
  ASSERT_EQ(WorkerOfJob(d, "j"), "");
  EXPECT_THAT(d.Why("j"), HasSubstr("`nibble update j --allow-numerics-change`"));
  UpdateJob update;
  update.job_id = "j";
  update.allow_numerics_change = true;
  d.Must(update);
  EXPECT_EQ(d.records().back().fields.at("allow_numerics_change"), "true");
  d.Must(update);
  EXPECT_TRUE(d.last_events().empty()) << "it is so already";
  update.allow_numerics_change = false;
  update.priority = 3;
  d.Must(update);
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "j"), "w2");
  const auto desired = DesiredFor(d.state(), d.state().workers.at("w2"), d.core().options);
  ASSERT_EQ(desired.assignments.size(), 1u);
  EXPECT_TRUE(desired.assignments[0].job->spec.allow_numerics_change) << "its engine is told, too";
  d.Must(ReportPlan{d.FenceOf("j"), 40, "{}", "n2"});
  EXPECT_EQ(d.job("j").numerics_id, "n2");
}

TEST(Schedule, NothingGoesToWorkersThatDrainOrAreLate) {
  Driver d;
  d.AddWorker("w1");
  d.Must(DrainWorker{"w1"});
  d.Must(Driver::JobOf("a"));
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "a"), "");
  d.Must(UndrainWorker{"w1"});
  d.Advance(50 * kSecondUs);
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "a"), "");
  EXPECT_THAT(d.Why("a"),
              HasSubstr("none of those"));
  d.Must(Synchronize(d.SyncOf("w1")));
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "a"), "w1");
}

CreateJob WithSteps(const std::string& id, int64_t steps, int32_t priority = 0) {
  CreateJob create = Driver::JobOf(id);
  create.spec.max_steps = steps;
  create.priority = priority;
  return create;
}

TEST(Preemption, AHigherPriorityTakesThePlaceAndTheOtherGoesOnLater) {
  Driver d;
  Compete(d, WithSteps("low", 1'000), WithSteps("high", 1'000, 1));
  EXPECT_TRUE(IsAskedToLetGo(d, "low"));
  EXPECT_EQ(d.job("low").Current()->release_reason, "preempted: jobs/high has a higher priority");
  EXPECT_EQ(WorkerOfJob(d, "high"), "");  // the bytes are not free yet
  d.Must(ReportReleased{d.FenceOf("low"), 0});
  Synchronize gone = d.SyncOf("w1");
  d.Must(gone);
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "high"), "w1");
  EXPECT_EQ(d.job("low").state, JobState::kQueued);
  EXPECT_EQ(d.job("low").infra_retries, 0);
}

TEST(Preemption, NotBeforeItHasRunItsMinimumTime) {
  Driver d;
  d.core().options.max_attempts_per_device = 1;
  d.AddWorker("w1");
  d.Must(WithSteps("low", 1'000));
  d.Place();
  d.Must(WithSteps("high", 1'000, 1));
  d.Place();
  EXPECT_FALSE(IsAskedToLetGo(d, "low"));
}

TEST(Preemption, MuchLessWorkTakesThePlaceOfMuchMore) {
  Driver d;
  Compete(d, WithSteps("long", 1'000'000'000), WithSteps("short", 1'000));
  EXPECT_TRUE(IsAskedToLetGo(d, "long"));
  Driver equal;
  Compete(equal, WithSteps("long", 1'000'000'000), WithSteps("other", 900'000'000));
  EXPECT_FALSE(IsAskedToLetGo(equal, "long"));
}

TEST(Projects, TheOneThatHasLessGoesFirstByItsWeight) {
  Driver d;
  d.core().options.projects["heavy"].weight = 4;
  d.core().options.max_attempts_per_device = 5;
  d.Must(ServerStart{"timeline-1"});
  for (int i = 0; i < 10; ++i) {
    for (const char* project : {"heavy", "light"}) {
      CreateJob create = Driver::JobOf(std::string(project) + "-" + std::to_string(i));
      create.tenant = project;
      d.Must(create);
    }
  }
  d.AddWorker("w1");
  d.Place();
  const Board& board = d.state().board;
  const auto held = [&](const char* project) {
    return board.projects()[static_cast<size_t>(board.FindProject(project))].held_jobs;
  };
  EXPECT_EQ(held("heavy"), 4);
  EXPECT_EQ(held("light"), 1);
}

TEST(Projects, AQuotaHoldsBackItsOwnJobsOnly) {
  Driver d;
  d.core().options.projects["small"].quota_jobs = 1;
  d.Must(ServerStart{"timeline-1"});
  for (const char* id : {"a", "b"}) {
    CreateJob create = Driver::JobOf(id);
    create.tenant = "small";
    d.Must(create);
  }
  d.Must(Driver::JobOf("c"));
  d.AddWorker("w1");
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "a"), "w1");
  EXPECT_EQ(WorkerOfJob(d, "b"), "");
  EXPECT_EQ(WorkerOfJob(d, "c"), "w1");
  EXPECT_THAT(d.Why("b"),
              HasSubstr("quota of project small"));
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "b"), "") << "nor in another pass";
}

TEST(Schedule, AWorkerIsOfferedNothingBeforeItCalledAfterARestart) {
  Driver d;
  d.AddWorker("w1");
  d.Must(ServerStart{"timeline-1"});
  d.Must(Driver::JobOf("a"));
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "a"), "");
  d.Must(Synchronize(d.SyncOf("w1")));
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "a"), "w1");
}

TEST(Schedule, TheMeasuredLoadIsCapped) {
  Driver d;
  d.core().options.max_load_milli = 1'250;
  d.Must(ServerStart{"timeline-1"});
  d.AddWorker("w1");
  d.Must(Driver::JobOf("a"));
  d.Must(Driver::JobOf("b"));
  d.Place();
  EXPECT_EQ(WorkerOfJob(d, "b"), "");  // nobody has measured a yet
  ReportProgress report;
  report.fence = d.FenceOf("a");
  for (const int64_t step : {1, 11}) {
    report.head.step = step;
    report.head.step_time_us = 500'000;
    d.Must(report);
    d.Advance(10 * kSecondUs);  // half of the time is its turns'
    d.Must(Synchronize(d.SyncOf("w1")));
  }
  d.Place();
  EXPECT_EQ(d.state().learned.begin()->second.begin()->second.load_milli, 500);
  EXPECT_EQ(WorkerOfJob(d, "b"), "w1");
}

}  // namespace
}  // namespace nibble::core

// Rules of order and preemption (docs/scheduling.md) that only show when several things hold at one time.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "server/core/schedule_sync.h"
#include "server/core/testing/driver.h"

namespace nibble::core {
namespace {

using ::testing::HasSubstr;
using testing::Driver;
using testing::kMB;

std::string WorkerOfJob(const Driver& d, const std::string& id) {
  const Job& job = d.job(id);
  return job.Current() == nullptr ? "" : job.Current()->worker_id;
}

bool IsAskedToLetGo(const Driver& d, const std::string& id) {
  return d.job(id).Current() != nullptr && d.job(id).Current()->release_requested;
}

// Of so much work, as long as nothing was measured; steps of 1,000 tokens.
CreateJob Lasting(const std::string& id, int64_t work_us) {
  static const double us_a_step = [] {
    constexpr int64_t kSteps = 1'000'000;
    Driver d;
    CreateJob create = Driver::JobOf("probe");
    create.spec.max_steps = kSteps;
    d.Must(create);
    return static_cast<double>(Predict(d.state(), d.job("probe")).left_us) / kSteps;
  }();
  CreateJob create = Driver::JobOf(id);
  create.spec.max_steps = static_cast<int64_t>(static_cast<double>(work_us) / us_a_step);
  return create;
}

CreateJob Of(const char* project, CreateJob create) {
  create.tenant = project;
  return create;
}

// The worker calls and no longer lists what was cancelled or released.
void CallWithout(Driver& d, const std::string& worker, const std::string& job) {
  Synchronize gone = d.SyncOf(worker);
  std::erase_if(gone.attempts, [&](const ListedAttempt& l) { return l.job_id == job; });
  d.Must(gone);
}

constexpr int64_t kMinuteUs = 60 * kSecondUs;
constexpr int64_t kHourUs = 60 * kMinuteUs;

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

// Of all devices the one is chosen where the fewest have to let go.
TEST(Preemption, AsFewAsPossibleLetGo) {
  Driver d;
  d.AddWorker("w2", 200 * kMB);
  const auto add = [&](const char* id, int32_t r, int64_t work_us, int32_t priority = 0) {
    CreateJob create = Lasting(id, work_us);
    create.spec.lora_r = r;
    create.priority = priority;
    d.Must(create);
    d.Place();
  };
  add("one", 60, 10 * kHourUs);
  d.AddWorker("w1", 200 * kMB);
  add("two", 30, 20 * kHourUs);  // not beside the first; the weaker ones: more is left
  add("three", 30, 20 * kHourUs);
  ASSERT_EQ(WorkerOfJob(d, "one"), "w2");
  ASSERT_EQ(WorkerOfJob(d, "two"), "w1");
  ASSERT_EQ(WorkerOfJob(d, "three"), "w1");
  d.Advance(d.core().options.min_run_us + kSecondUs);
  for (const char* worker : {"w1", "w2"}) d.Must(Synchronize(d.SyncOf(worker)));
  add("big", 75, 15 * kHourUs, 1);  // 10 + 100 + 75 + 1: beside nobody
  EXPECT_TRUE(IsAskedToLetGo(d, "one"));
  EXPECT_FALSE(IsAskedToLetGo(d, "two") || IsAskedToLetGo(d, "three"));
}

// One device; `first` has run its minimum time when `second` comes.
void Compete(Driver& d, const CreateJob& first, const CreateJob& second) {
  d.core().options.max_attempts_per_device = 1;
  d.core().options.preempt_work_ratio = 0;
  d.Must(ServerStart{"timeline-1"});
  d.AddWorker("w1");
  d.Must(first);
  d.Place();
  ASSERT_EQ(WorkerOfJob(d, first.job_id), "w1");
  d.Advance(d.core().options.min_run_us + kSecondUs);
  d.Must(Synchronize(d.SyncOf("w1")));
  d.Must(second);
  d.Place();
}

TEST(Preemption, WhoIsOverdueTakesThePlaceOfWhoHasMoreLeft) {
  Driver d;
  Compete(d, Lasting("long", 400 * kHourUs), Lasting("short", kHourUs));
  EXPECT_FALSE(IsAskedToLetGo(d, "long"));
  d.Advance(13 * kHourUs);  // half of 24 hours, not two thirds
  d.Must(Synchronize(d.SyncOf("w1")));
  d.Place();
  ASSERT_TRUE(IsAskedToLetGo(d, "long"));
  EXPECT_THAT(d.job("long").Current()->release_reason, HasSubstr("is overdue"));
}

TEST(Preemption, NobodyLetsGoForWhoStartsInAMinuteAnyway) {
  for (const int64_t left_us : {kMinuteUs / 2, 5 * kMinuteUs}) {
    Driver d;
    CreateJob high = Lasting("high", kHourUs);
    high.priority = 1;
    Compete(d, Lasting("low", d.core().options.min_run_us + kSecondUs + left_us), high);
    EXPECT_EQ(IsAskedToLetGo(d, "low"), left_us > kMinuteUs) << left_us;
  }
}

}  // namespace
}  // namespace nibble::core

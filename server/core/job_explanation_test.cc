// Why a job waits: each device's own reason, when there is room, and what would start it at once. A change
// that is named is made and tried.
#include "server/core/job_explanation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/testing/driver.h"

namespace nibble::core {
namespace {

using testing::Driver;
using testing::kMB;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Kind = DeviceVerdict::Kind;

CreateJob Sized(const std::string& id, int32_t sequence_len) {
  CreateJob create = Driver::JobOf(id);
  create.spec.sequence_len = sequence_len;
  create.spec.recompute = spec::Recompute::kFull;
  return create;
}

JobExplanation WhyOf(Driver& d, const std::string& id, const std::string& scope = "") {
  QueueLook look(d.state(), d.core(), d.Now().monotonic_us, scope);
  return ExplainJob(d.job(id), look);
}

const DeviceExplanation& On(const JobExplanation& why, std::string_view worker) {
  for (const DeviceExplanation& device : why.devices) {
    if (device.worker_id == worker) return device;
  }
  ADD_FAILURE() << worker << " is not there";
  return why.devices.front();
}

TEST(ExplainJob, EachDeviceHasItsOwnReason) {
  Driver d;
  d.AddWorker("full", 1'000 * kMB);
  d.AddWorker("small", 400 * kMB);
  d.AddWorker("drained", 1'000 * kMB);
  d.Must(DrainWorker{"drained"});
  d.Must(Sized("holder", 700'000));  // 10 + 100 + 10 + 700 MB
  d.Place();
  ASSERT_EQ(d.job("holder").attempts.at(1).worker_id, "full");
  d.Must(Sized("big", 880'000));
  d.Place();
  const JobExplanation why = WhyOf(d, "big");
  EXPECT_EQ(why.position, 1);
  EXPECT_THAT(why.reason, HasSubstr("needs"));
  ASSERT_EQ(why.devices.size(), 3u);
  // The base is there already: 10 MB of its own, and 180 MB more of steps than the one before.
  const DeviceExplanation& full = On(why, "full");
  EXPECT_EQ(full.verdict.kind, Kind::kBytes);
  EXPECT_EQ(full.verdict.needed_bytes, 190 * kMB);
  EXPECT_EQ(full.verdict.free_bytes, 180 * kMB);
  EXPECT_THAT(full.held_by, ElementsAre("jobs/holder"));
  EXPECT_THAT(full.until, ElementsAre("jobs/holder"));
  // Nothing was measured yet: who has to end is known, when that will be is not.
  EXPECT_EQ(full.start_us, 0);
  EXPECT_THAT(why.reason, HasSubstr("nobody knows when: no steps of holder or its like were measured yet"));
  EXPECT_EQ(On(why, "small").verdict.kind, Kind::kNever);
  EXPECT_EQ(On(why, "small").start_us, 0);
  EXPECT_EQ(On(why, "drained").verdict.kind, Kind::kNotLive);
  EXPECT_EQ(why.devices.front().worker_id, "full");  // where it starts first
}

TEST(ExplainJob, AStartIsToldOnceStepsWereMeasured) {
  Driver d;
  d.AddWorker("w1");
  d.Must(Sized("holder", 700'000));
  d.Place();
  d.Must(Sized("big", 880'000));
  d.Place();
  d.Must(ReportPlan{d.FenceOf("holder"), 1'000, "{}", "n"});
  for (int64_t step = 1; step <= 21; step += 10) {
    Progress head;
    head.step = step;
    head.step_time_us = kSecondUs;
    d.Must(ReportProgress{d.FenceOf("holder"), head});
    d.Advance(10 * kSecondUs);
    d.Must(d.SyncOf("w1"));
  }
  const JobExplanation why = WhyOf(d, "big");
  EXPECT_GT(On(why, "w1").start_us, d.Now().monotonic_us + 900 * kSecondUs);
  EXPECT_THAT(why.reason, HasSubstr("expected to start in about 1"));
}

TEST(ExplainJob, TheOnlyDeviceSaysWhatIsInTheWayBesideBytes) {
  Driver d;
  d.AddWorker("w1");
  d.core().options.max_attempts_per_device = 1;
  d.Must(Sized("holder", 100'000));
  d.Place();
  d.Must(Sized("next", 100'000));
  d.Place();
  const JobExplanation why = WhyOf(d, "next");
  EXPECT_EQ(On(why, "w1").verdict.kind, Kind::kAttempts);
  EXPECT_GT(On(why, "w1").verdict.free_bytes, On(why, "w1").verdict.needed_bytes);
  EXPECT_THAT(why.reason, HasSubstr("; the device has no place for another job or base"));
}

// Whose job is in the way is nobody's business but its project's.
TEST(ExplainJob, JobsOfOtherProjectsHaveNoNames) {
  Driver d;
  d.AddWorker("w1", 400 * kMB);
  d.core().options.preempt_work_ratio = 0;
  CreateJob holder = Sized("secret-holder", 200'000);  // 320 of 400 MB
  holder.tenant = "theirs";
  d.Must(holder);
  d.Place();
  CreateJob first = Sized("secret-first", 275'000);  // 85 MB more, 80 are free
  first.tenant = "theirs";
  first.priority = 5;
  d.Must(first);
  CreateJob mine = Sized("mine", 272'000);
  mine.tenant = "ours";
  d.Must(mine);
  d.Place();
  ASSERT_EQ(d.job("secret-holder").state, JobState::kStarting);
  for (const char* scope : {"ours", "", "theirs"}) {
    SCOPED_TRACE(scope);
    const JobExplanation why = WhyOf(d, "mine", scope);
    const bool sees = std::string_view(scope) != "ours";
    const std::string hidden = QueueLook::kHidden;
    const DeviceExplanation& on = On(why, "w1");
    EXPECT_THAT(on.held_by, ElementsAre(sees ? "jobs/secret-holder" : hidden));
    EXPECT_THAT(on.until, ElementsAre(sees ? "jobs/secret-holder" : hidden));
    std::string all = why.reason + why.before + on.reserved_for;
    EXPECT_EQ(all.find("secret") != std::string::npos, sees) << all;
    EXPECT_THAT(why.reason, HasSubstr(sees ? "held by secret-holder" : "held by another project's job"));
  }
}

// Who asks for the first two devices is told of these what who asks for all is told, names of jobs and all;
// of the others everything but the names.
TEST(ExplainJob, JobsAreNamedOnTheDevicesThatAreShown) {
  Driver d;
  for (const char* worker : {"w1", "w2", "w3", "w4"}) {
    d.AddWorker(worker);
    d.Must(Sized(absl::StrCat("on-", worker), 700'000));
    d.Place();
  }
  d.Must(Sized("big", 880'000));
  d.Place();
  const JobExplanation all = WhyOf(d, "big");
  QueueLook look(d.state(), d.core(), d.Now().monotonic_us);
  const JobExplanation two = ExplainJob(d.job("big"), look, 2);
  ASSERT_EQ(all.devices.size(), 4u);
  ASSERT_EQ(two.devices.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    const DeviceExplanation &a = all.devices[i], &b = two.devices[i];
    EXPECT_EQ(a.worker_id, b.worker_id);
    EXPECT_EQ(a.verdict.kind, b.verdict.kind);
    EXPECT_EQ(a.verdict.free_bytes, b.verdict.free_bytes);
    EXPECT_EQ(a.start_us, b.start_us);
    EXPECT_THAT(a.held_by, ElementsAre("jobs/on-" + a.worker_id));
    EXPECT_THAT(a.until, ElementsAre("jobs/on-" + a.worker_id));
    const bool shown = i < 2;
    EXPECT_EQ(b.held_by, shown ? a.held_by : std::vector<std::string>{});
    EXPECT_EQ(b.until, shown ? a.until : std::vector<std::string>{});
  }
}

TEST(ExplainJob, OfAJobThatRunsOnlyTheState) {
  Driver d;
  d.AddWorker("w1");
  d.Must(Driver::JobOf("a"));
  d.Place();
  const JobExplanation why = WhyOf(d, "a");
  EXPECT_EQ(why.position, 0);
  EXPECT_THAT(why.devices, IsEmpty());
}

TEST(ExplainJob, WhatIsKeptForAnotherIsSaid) {
  Driver d;
  d.AddWorker("w1");
  d.core().options.preempt_priority_delta = 0;
  d.core().options.preempt_work_ratio = 0;
  d.Must(Sized("holder", 500'000));
  d.Place();
  CreateJob first = Sized("first", 875'000);  // 385 MB more, 380 are free
  first.priority = 5;
  d.Must(first);
  CreateJob second = Sized("second", 600'000);
  d.Must(second);
  d.Place();
  const JobExplanation why = WhyOf(d, "second");
  EXPECT_EQ(why.before, "jobs/first");
  EXPECT_EQ(why.before_at, "w1/cpu0");
  EXPECT_EQ(why.position, 2);
}

TEST(WhatWouldStart, AChangeThatIsNamedLetsTheJobStart) {
  Driver d;
  d.AddWorker("w1");
  d.Must(Sized("holder", 400'000));
  d.Place();
  CreateJob create = Sized("waits", 220'000);
  create.spec.micro_batch_size = 4;
  create.spec.gradient_accumulation_steps = 1;
  d.Must(create);  // 490 MB more, 480 are free
  d.Place();
  ASSERT_EQ(d.job("waits").state, JobState::kQueued);
  const JobExplanation why = WhyOf(d, "waits");
  const auto found = WhatWouldStart(d.state(), d.job("waits"), d.state().models.at("base"),
                                    why.devices, 5, d.core());
  ASSERT_FALSE(found.empty());
  for (const Counterfactual& c : found) {
    SCOPED_TRACE(c.change.description);
    Driver other;
    other.AddWorker("w1");
    other.Must(Sized("holder", 400'000));
    other.Place();
    CreateJob changed = create;
    changed.spec = c.change.spec;
    other.Must(changed);
    other.Place();
    EXPECT_EQ(other.job("waits").state, JobState::kStarting);
  }
}

}  // namespace
}  // namespace nibble::core

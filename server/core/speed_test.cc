// Devices of unequal speeds: where jobs go, how long they are thought to take there, and what is said of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "server/core/job_explanation.h"
#include "server/core/testing/contest.h"

namespace nibble::core {
namespace {

using testing::Driver;
using testing::kMB;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::WorkerOfJob;

constexpr int64_t kGflops = 1'000;  // in millions

void AddWorker(Driver& d, const std::string& id, int64_t mflop_per_s) {
  RegisterWorker c = Driver::WorkerOf(id, "i1", 1'000 * kMB);
  c.devices[0].profile.linear_mflop_per_s = mflop_per_s;
  d.Must(c);
}

std::string WhyAssigned(const Driver& d, const std::string& id) {
  for (const Event& event : d.last_events()) {
    const auto* a = std::get_if<AttemptAssigned>(&event.body);
    if (a != nullptr && a->job_id == id) return a->why;
  }
  return "";
}

TEST(SpeedOf, TheSameHardwareMeasuredTwiceIsOneSpeed) {
  spec::DeviceProfile profile;
  EXPECT_EQ(SpeedOf(profile), 0);
  for (const int64_t gflops : {1, 40, 830, 300'000}) {
    profile.linear_mflop_per_s = gflops * kGflops;
    const int64_t speed = SpeedOf(profile);
    EXPECT_NEAR(static_cast<double>(speed), static_cast<double>(gflops * kGflops),
                0.1 * static_cast<double>(speed));
    profile.linear_mflop_per_s = speed * 107 / 100;
    EXPECT_EQ(SpeedOf(profile), speed);
    profile.linear_mflop_per_s = speed * 94 / 100;
    EXPECT_EQ(SpeedOf(profile), speed);
    profile.linear_mflop_per_s = speed * 5 / 4;
    EXPECT_GT(SpeedOf(profile), speed);
  }
  const std::string key = ProfileKey(profile);
  profile.linear_mflop_per_s = INT64_MAX;
  EXPECT_GT(SpeedOf(profile), 0);
  EXPECT_EQ(ProfileKey(profile), key) << "no plan depends on it";
}

TEST(Speed, AJobGoesToTheFastestWhenAllElseIsEqual) {
  for (const bool turned : {false, true}) {
    Driver d;
    AddWorker(d, "w1", (turned ? 400 : 100) * kGflops);
    AddWorker(d, "w2", 200 * kGflops);
    AddWorker(d, "w3", (turned ? 100 : 400) * kGflops);
    d.Must(Driver::JobOf("a"));
    d.Place();
    EXPECT_EQ(WorkerOfJob(d, "a"), turned ? "w1" : "w3");
    EXPECT_THAT(WhyAssigned(d, "a"), HasSubstr("fastest device"));
    // The next best alone before half of the best.
    d.Must(Driver::JobOf("b"));
    d.Place();
    EXPECT_EQ(WorkerOfJob(d, "b"), "w2");
    EXPECT_THAT(WhyAssigned(d, "b"), HasSubstr("% of the fastest device's speed"));
    d.Must(Driver::JobOf("c"));
    QueueLook look(d.state(), d.core(), d.Now().monotonic_us);
    for (const DeviceExplanation& on : ExplainJob(d.job("c"), look).devices) {
      const int32_t percent = on.worker_id == "w2" ? 50 : on.worker_id == WorkerOfJob(d, "a") ? 100 : 25;
      EXPECT_NEAR(on.verdict.speed_percent, percent, 3) << on.worker_id;
    }
  }
}

TEST(Speed, NothingIsSaidWhereDevicesAreAlikeOrDoNotSay) {
  for (const int64_t mflop_per_s : {int64_t{0}, 100 * kGflops}) {
    Driver d;
    AddWorker(d, "w1", mflop_per_s);
    AddWorker(d, "w2", mflop_per_s);
    d.Must(Driver::JobOf("a"));
    d.Place();
    EXPECT_EQ(WorkerOfJob(d, "a"), "w1");
    EXPECT_THAT(WhyAssigned(d, "a"), Not(HasSubstr("fastest")));
  }
}

// A slow device that idles is better than a faster one whose turns would have to be shared, unless it is so
// much slower that sharing is faster.
TEST(Speed, IsWeighedAgainstSharing) {
  for (const int64_t slow : {150, 10}) {
    Driver d;
    AddWorker(d, "fast", 200 * kGflops);
    d.Must(Driver::JobOf("a"));
    d.Place();
    AddWorker(d, "slow", slow * kGflops);
    d.Must(Driver::JobOf("b"));
    d.Place();
    EXPECT_EQ(WorkerOfJob(d, "b"), slow == 150 ? "slow" : "fast");
  }
}

// 100 steps of a second each were seen on a device; on one of half its speed they are thought to take twice
// as long, until they are measured there.
TEST(Speed, PredictionsScaleWithIt) {
  Driver d;
  AddWorker(d, "w1", 200 * kGflops);
  const int64_t fast = SpeedOf(d.state().workers.at("w1").devices.at("cpu0").profile);
  CreateJob a = Driver::JobOf("a");
  a.spec.max_steps = 1'000;
  d.Must(a);
  d.Place();
  d.Must(ReportPlan{d.FenceOf("a"), 1'000, "{}", ""});
  for (const int64_t step : {1, 101}) {
    Progress head;
    head.step = step;
    head.step_time_us = kSecondUs;
    d.Must(ReportProgress{d.FenceOf("a"), head});
    d.Advance(100 * kSecondUs);
  }
  CreateJob b = Driver::JobOf("b");
  b.spec.max_steps = 1'000;
  d.Must(b);
  const auto total_s = [&](int64_t speed) {
    return static_cast<double>(Predict(d.state(), d.job("b"), speed).total_us) / 1e6;
  };
  EXPECT_NEAR(total_s(fast), 1'000, 1);
  EXPECT_NEAR(total_s(fast / 2), 2'000, 10);
  EXPECT_NEAR(total_s(fast * 2), 500, 5);
  EXPECT_NEAR(total_s(0), 1'000, 1) << "a device that does not say";
  // The hold of a job on a slower device ends later.
  AddWorker(d, "w2", 100 * kGflops);
  d.Place();
  ASSERT_EQ(WorkerOfJob(d, "b"), "w2");
  const Board& board = d.state().board;
  const int64_t slow_end_us = board.EndsOf(board.FindDevice("w2", "cpu0")).front().first;
  EXPECT_NEAR(static_cast<double>(slow_end_us - d.Now().monotonic_us) / 1e6, 2'000, 30);
}

// Host work between turns is as long on any device.
TEST(Speed, OnlyTurnsDependOnIt) {
  EXPECT_EQ(LoadAtSpeed(1'000, 100, 200), 1'000);
  EXPECT_EQ(LoadAtSpeed(500, 100, 100), 500);
  EXPECT_EQ(LoadAtSpeed(500, 200, 100), 666);  // turns of 1, host of 0.5
  EXPECT_EQ(LoadAtSpeed(500, 100, 0), 500);
}

}  // namespace
}  // namespace nibble::core

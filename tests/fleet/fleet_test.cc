// The parts of the fleet simulator against what can be worked out by hand.
#include <gtest/gtest.h>

#include <cstdlib>
#include <numeric>
#include <set>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "tests/fleet/fill.h"
#include "tests/fleet/run.h"

namespace nibble::fleet {
namespace {

constexpr int64_t kGb = 1'000'000'000;

std::string ScenarioPath(const std::string& name) {
  const char* root = std::getenv("NIBBLE_SOURCE_DIR");
  return absl::StrCat(root == nullptr ? "." : root, "/tests/fleet/scenarios/", name, ".json");
}

Scenario Load(const std::string& name) {
  absl::StatusOr<Scenario> scenario = LoadScenario(ScenarioPath(name));
  EXPECT_TRUE(scenario.ok()) << scenario.status();
  return *std::move(scenario);
}

core::PlanBytes Plan(int64_t base, int64_t persistent, int64_t step) {
  core::PlanBytes plan;
  plan.base_bytes = base;
  plan.persistent_bytes = persistent;
  plan.step_bytes = step;
  plan.lower_bound_bytes = plan.TotalBytes();
  return plan;
}

FleetJob Job(int64_t arrive_s, int64_t own_s, double busy_share, int32_t recipe = 0) {
  FleetJob job;
  job.arrive_us = arrive_s * kSecondUs;
  job.steps = job.run_steps = own_s;
  job.step_us = 1e6;
  job.busy_share = busy_share;
  job.nominal_us = own_s * kSecondUs;
  job.recipe = recipe;
  return job;
}

// One device of 10 GB; recipe 0 needs 4 + 1 + 1 GB, recipe 1 needs 2 + 1 + 1.
struct Small {
  Small() {
    scenario.recipes.resize(2);
    scenario.recipes[0].weight = scenario.recipes[1].weight = 1;
    scenario.tenants = {{"t0", 1}};
    workload.capacity_bytes = {10 * kGb};
    workload.plans = {Plan(4 * kGb, kGb, kGb), Plan(2 * kGb, kGb, kGb)};
  }
  // Completion of each job in seconds.
  std::vector<double> Run(const char* policy) {
    std::vector<double> seconds;
    for (const double h : RunPolicy(scenario, workload, policy, 1).completion_h)
      seconds.push_back(h * 3600);
    return seconds;
  }
  Scenario scenario;
  Workload workload;
};

void ExpectNear(const std::vector<double>& got, const std::vector<double>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 0.01) << "job " << i;
}

TEST(Occupancy, SharedBasesCountOnceAndTheLargestStepOnce) {
  const Small s;
  Occupancy shared(&s.workload.plans, Reserving::kShared);
  Occupancy separate(&s.workload.plans, Reserving::kSeparate);
  Occupancy fifth(&s.workload.plans, Reserving::kFifth);
  for (int i = 0; i < 3; ++i) {
    shared.Add(0);
    separate.Add(0);
    fifth.Add(0);
  }
  EXPECT_EQ(shared.ReservedBytes(0), (4 + 3 + 1) * kGb);
  EXPECT_EQ(separate.ReservedBytes(0), 3 * 6 * kGb);
  EXPECT_EQ(fifth.ReservedBytes(0), 3 * 6 * kGb * 6 / 5);
  EXPECT_TRUE(shared.Fits(9 * kGb, 0));
  EXPECT_FALSE(shared.Fits(9 * kGb - 1, 0));
  shared.Remove(0);
  shared.Add(1);
  EXPECT_EQ(shared.ReservedBytes(0), (4 + 2 + 1 + 4) * kGb);
  EXPECT_EQ(shared.bases(), 2);
}

TEST(Floor, JobsSlowEachOtherOnlyWhenTheirTurnsDoNotFit) {
  Small s;
  s.workload.jobs = {Job(0, 100, 0.5), Job(0, 200, 0.5)};
  ExpectNear(s.Run("clairvoyant"), {100, 200});
  // 1.2 of a device: both at 1 / 1.2 until the first is done, then alone.
  s.workload.jobs = {Job(0, 100, 0.6), Job(0, 200, 0.6)};
  ExpectNear(s.Run("clairvoyant"), {120, 220});
  // The same with a hundredth of overhead for the second job.
  s.scenario.costs.sharing_overhead = 0.01;
  ExpectNear(s.Run("clairvoyant"), {121.2, 221.2});
}

TEST(Baselines, WholeDevicesGoOneAfterTheOther) {
  Small s;
  s.workload.jobs = {Job(0, 100, 0.1), Job(10, 50, 0.1), Job(20, 5, 0.1)};
  ExpectNear(s.Run("fifo"), {100, 140, 135});
  s.scenario.costs.start_us = 10 * kSecondUs;
  ExpectNear(s.Run("fifo"), {110, 160, 165});
}

TEST(Baselines, BackfillPassesTheHeadOnlyWhereItDoesNotDelayIt) {
  Small s;
  s.workload.capacity_bytes = {6 * kGb, 4 * kGb};
  // Job 1 needs the large device, which is taken for 100 s. Job 2 would fit the small one at once.
  s.workload.jobs = {Job(0, 100, 0.5), Job(1, 10, 0.5), Job(2, 20, 0.5, 1)};
  ExpectNear(s.Run("fifo"), {100, 109, 118});
  ExpectNear(s.Run("fifo-backfill"), {100, 109, 20});
}

TEST(Baselines, TheClairvoyantSetsLongJobsAside) {
  Small s;
  s.workload.jobs = {Job(0, 100, 1), Job(10, 5, 1)};
  ExpectNear(s.Run("clairvoyant"), {105, 5});
  EXPECT_EQ(RunPolicy(s.scenario, s.workload, "clairvoyant", 1).preemptions, 1);
}

// Two projects with long queues: the one with few short jobs gets all first, unless shares are kept.
TEST(Baselines, TheFairClairvoyantGivesProjectsTheirShares) {
  Small s;
  s.scenario.tenants = {{"t0", 1}, {"t1", 1}};
  s.workload.capacity_bytes = {10 * kGb, 10 * kGb};
  for (int i = 0; i < 8; ++i) {
    s.workload.jobs.push_back(Job(0, i % 2 == 0 ? 10'000 : 20'000, 1));
    s.workload.jobs.back().tenant = i % 2;
  }
  const RunResult all = RunPolicy(s.scenario, s.workload, "clairvoyant", 1);
  const RunResult fair = RunPolicy(s.scenario, s.workload, "clairvoyant-fair", 1);
  ASSERT_GT(fair.backlogged_hours, 0);
  EXPECT_GT(all.share_error_mean, 45);
  EXPECT_LT(fair.share_error_mean, 1);
}

// Half of the job's own time is host work: twice the speed makes it a quarter shorter.
TEST(Floor, TurnsAreFasterOnAFasterDevice) {
  Small s;
  s.workload.jobs = {Job(0, 100, 0.5)};
  s.workload.speed = {2};
  ExpectNear(s.Run("clairvoyant"), {75});
  // Three of them keep it busy for a third of the time each: nobody waits.
  s.workload.jobs = {Job(0, 100, 0.5), Job(0, 100, 0.5), Job(0, 100, 0.5)};
  ExpectNear(s.Run("clairvoyant"), {75, 75, 75});
}

TEST(Baselines, AllElseBeingEqualTheFasterDeviceIsTaken) {
  Small s;
  s.workload.capacity_bytes = {10 * kGb, 10 * kGb};
  s.workload.speed = {0.5, 1};
  s.workload.jobs = {Job(0, 100, 1)};
  for (const std::string& policy : PolicyNames()) {
    if (policy != "nibble") ExpectNear(s.Run(policy.c_str()), {100});  // server/core has its own test
  }
}

TEST(Workload, FollowsTheSeedAlone) {
  const Scenario scenario = Load("compute-bound");
  const auto plans = PlanRecipes(scenario);
  ASSERT_TRUE(plans.ok()) << plans.status();
  const Workload a = MakeWorkload(scenario, *plans, {}, 7);
  const Workload b = MakeWorkload(scenario, *plans, {}, 7);
  const Workload c = MakeWorkload(scenario, *plans, {}, 8);
  ASSERT_EQ(a.jobs.size(), 1500u);
  ASSERT_EQ(a.capacity_bytes.size(), 32u);
  bool differs = false;
  for (size_t i = 0; i < a.jobs.size(); ++i) {
    EXPECT_EQ(a.jobs[i].arrive_us, b.jobs[i].arrive_us);
    EXPECT_EQ(a.jobs[i].OwnUs(), b.jobs[i].OwnUs());
    differs = differs || a.jobs[i].arrive_us != c.jobs[i].arrive_us;
  }
  EXPECT_TRUE(differs);
  // 0.049 a minute: the mean gap of 1,500 is within a tenth of 1 / 0.049 minutes.
  const double gap_min = static_cast<double>(a.jobs.back().arrive_us) / 60e6 / 1500;
  EXPECT_NEAR(gap_min, 1 / 0.049, 0.1 / 0.049);
}

// The generator walks by a constant; seeds that are alike but for one must not walk behind one another.
TEST(Workload, SeedsShareNoNumbers) {
  std::set<uint64_t> drawn;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Random rng = RandomOf(seed);
    for (int i = 0; i < 1'000; ++i) drawn.insert(rng.Next());
  }
  EXPECT_EQ(drawn.size(), 20'000u);
}

TEST(Scenarios, AreAllReadable) {
  for (const char* name :
       {"compute-bound", "memory-bound", "mixed-speed", "fair-backlog", "philly", "alibaba",
                           "philly-one-project", "alibaba-one-project", "small", "fill-bytes",
                           "fill-thousandths"}) {
    const Scenario scenario = Load(name);
    EXPECT_EQ(scenario.name, name);
    EXPECT_EQ(scenario.recipes.size(), 10u);
  }
  EXPECT_FALSE(LoadScenario(ScenarioPath("none")).ok());
}

TEST(Traces, PhillyRowsBecomeSingleDeviceJobs) {
  const auto jobs = ParsePhilly(
      "timestamp,duration,num_gpus,gpu_time,cluster\n"
      "2017-09-05 00:00:10,60.0,2,120.0,bb\n"
      "2017-09-04 23:59:50,30.5,1,30.5,aa\n"
      "2017-09-05 00:00:11,0.0,1,0.0,aa\n");
  ASSERT_TRUE(jobs.ok()) << jobs.status();
  ASSERT_EQ(jobs->size(), 3u);
  EXPECT_EQ((*jobs)[0].tenant, "aa");
  EXPECT_DOUBLE_EQ((*jobs)[0].duration_s, 30.5);
  EXPECT_DOUBLE_EQ((*jobs)[1].arrive_s - (*jobs)[0].arrive_s, 20);
  EXPECT_DOUBLE_EQ((*jobs)[2].arrive_s, (*jobs)[1].arrive_s);
  const auto bad =
      ParsePhilly("timestamp,duration,num_gpus,gpu_time,cluster\n2017-09-05 0,x,1,1,a\n");
  EXPECT_NE(std::string(bad.status().message()).find("line 2"), std::string::npos);
  EXPECT_FALSE(ParsePhilly("timestamp,duration\n").ok());
}

TEST(Traces, AlibabaPodsKeepTheirShareOfADevice) {
  const auto jobs = ParseAlibaba2023(
      "name,num_gpu,gpu_milli,creation_time,deletion_time,scheduled_time\n"
      "a,1,460,100,400,150\n"
      "b,2,1000,50,90,60\n"
      "c,0,0,1,9,2\n"
      "d,1,1000,1,,\n");
  ASSERT_TRUE(jobs.ok()) << jobs.status();
  ASSERT_EQ(jobs->size(), 3u);
  EXPECT_DOUBLE_EQ((*jobs)[0].arrive_s, 50);
  EXPECT_DOUBLE_EQ((*jobs)[2].duration_s, 250);
  EXPECT_DOUBLE_EQ((*jobs)[2].busy_share, 0.46);
}

TEST(Traces, TheRealFilesAreReadWhole) {
  const char* root = std::getenv("NIBBLE_TEST_DATA");
  if (root == nullptr)
    GTEST_SKIP() << "the traces are read from NIBBLE_TEST_DATA, which is not set";
  const auto read = [&](const std::string& name) {
    return ReadFile(absl::StrCat(root, "/", Load(name).trace.file)).value();
  };
  // Counted by a script of a few lines over the same files.
  const auto philly = ParsePhilly(read("philly"));
  ASSERT_TRUE(philly.ok()) << philly.status();
  EXPECT_EQ(philly->size(), 49266u);
  const auto alibaba = ParseAlibaba2023(read("alibaba"));
  ASSERT_TRUE(alibaba.ok()) << alibaba.status();
  EXPECT_EQ(alibaba->size(), 6571u);
}

TEST(Runs, EveryPolicyEndsEveryJobWithinTheDevices) {
  const Scenario scenario = Load("small");
  const auto plans = PlanRecipes(scenario);
  ASSERT_TRUE(plans.ok()) << plans.status();
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const Workload workload = MakeWorkload(scenario, *plans, {}, seed);
    for (const std::string& policy : PolicyNames()) {
      SCOPED_TRACE(absl::StrCat(policy, " seed ", seed));
      const RunResult result = RunPolicy(scenario, workload, policy, seed);
      EXPECT_EQ(result.over_capacity, 0);
      EXPECT_GE(result.planned_over_touched, 1 - 1e-9);
      ASSERT_EQ(result.completion_h.size(), workload.jobs.size());
      for (size_t i = 0; i < workload.jobs.size(); ++i)
        EXPECT_GE(result.completion_h[i] * 3.6e9, workload.jobs[i].OwnUs() - 1e3) << "job " << i;
    }
  }
}

TEST(Runs, TheCoreDecidesTheSameTwice) {
  const Scenario scenario = Load("small");
  const auto plans = PlanRecipes(scenario);
  ASSERT_TRUE(plans.ok()) << plans.status();
  const Workload workload = MakeWorkload(scenario, *plans, {}, 3);
  const RunResult a = RunPolicy(scenario, workload, "nibble", 3);
  const RunResult b = RunPolicy(scenario, workload, "nibble", 3);
  EXPECT_EQ(a.completion_h, b.completion_h);
  EXPECT_EQ(a.preemptions, b.preemptions);
}

// Two projects, two devices; alone each has one.
struct TwoProjects : Small {
  TwoProjects() {
    scenario.tenants = {{"t0", 1}, {"t1", 1}};
    workload.capacity_bytes = {10 * kGb, 10 * kGb};
  }
  RunResult Measure(const char* policy) {
    RunResult result = RunPolicy(scenario, workload, policy, 1);
    status = AddFairness(scenario, workload, result);
    return result;
  }
  absl::Status status;
};

FleetJob JobOf(int32_t tenant, int64_t arrive_s, int64_t own_s) {
  FleetJob job = Job(arrive_s, own_s, 1);
  job.tenant = tenant;
  return job;
}

TEST(Fairness, RhoIsCompletionOverThatAloneOnTheShare) {
  TwoProjects s;
  // First in, first out on both: 100, 100, 200 s; alone the first project needs 100 and 200 s, the other 100.
  s.workload.jobs = {JobOf(0, 0, 100), JobOf(0, 0, 100), JobOf(1, 0, 100)};
  const RunResult result = s.Measure("fifo");
  ASSERT_TRUE(s.status.ok()) << s.status;
  ExpectNear(result.rho, {1, 0.5, 2});
  EXPECT_NEAR(result.rho_worst_project, 2, 1e-6);
  // Alone again, each a little later: only who waits for another is touched by that.
  ASSERT_EQ(result.rho_chance.size(), 3u);
  EXPECT_NEAR(result.rho_chance[0], 1, 1e-6);
  EXPECT_GE(result.rho_chance[1], 0.7);
  EXPECT_LT(result.rho_chance[1], 1);
  EXPECT_NEAR(result.rho_chance[2], 1, 1e-6);
  const Summary summary = Summarize({result});
  EXPECT_NEAR(summary.rho_p50, 1, 1e-6);
  EXPECT_NEAR(summary.rho_max, 2, 1e-6);
}

TEST(Fairness, OneProjectAloneFaresAsItDoes) {
  const Scenario scenario = [] {
    Scenario s = Load("compute-bound");
    s.tenants.resize(1);
    s.jobs = 60;
    return s;
  }();
  const auto plans = PlanRecipes(scenario);
  ASSERT_TRUE(plans.ok()) << plans.status();
  const Workload workload = MakeWorkload(scenario, *plans, {}, 1);
  for (const char* policy : {"nibble", "clairvoyant-fair", "fragmentation"}) {
    RunResult result = RunPolicy(scenario, workload, policy, 1);
    ASSERT_TRUE(AddFairness(scenario, workload, result).ok());
    ExpectNear(result.rho, std::vector<double>(60, 1));
  }
}

TEST(Fairness, PartsThatAreNoWholeDevicesAreRefused) {
  TwoProjects s;
  s.scenario.tenants[1].weight = 2;
  s.workload.jobs = {JobOf(0, 0, 100), JobOf(1, 0, 100)};
  s.Measure("fifo");
  EXPECT_NE(std::string(s.status.message()).find("no whole number"), std::string::npos);
}

TEST(Fills, WhatIsLeftOverIsCounted) {
  Small s;
  s.scenario.fill.wanted = true;
  s.workload.capacity_bytes = {10 * kGb, 4 * kGb};
  // Of 14 GB: 4 on the small one, 6 on the large; the third of 6 finds 4 free, the last of 4 takes them.
  for (const int32_t recipe : {1, 0, 0, 1}) {
    s.workload.jobs.push_back(Job(static_cast<int64_t>(s.workload.jobs.size()), 1'000'000, 0.001, recipe));
  }
  const FillResult result = RunFill(s.scenario, s.workload, "tightest");
  ASSERT_EQ(result.levels.size(), std::size(kFillLevels));
  // 80 to 110 % of 14 GB are reached with the third job, 130 % with the fourth.
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(result.levels[i].unallocated, 4.0 / 14, 1e-9);
    EXPECT_NEAR(result.levels[i].placed_jobs, 2.0 / 3, 1e-9);
  }
  EXPECT_NEAR(result.levels[4].unallocated, 0, 1e-9);
  EXPECT_NEAR(result.levels[4].placed, 1, 1e-9);
  EXPECT_NEAR(result.levels[4].placed_jobs, 0.75, 1e-9);
}

TEST(Fills, NobodyGetsMoreThanThereIs) {
  Scenario scenario = Load("fill-bytes");
  for (DeviceKind& kind : scenario.fleet) kind.count /= 16;
  const auto plans = PlanRecipes(scenario);
  ASSERT_TRUE(plans.ok()) << plans.status();
  const Workload workload = MakeFillWorkload(scenario, *plans, 3);
  for (const std::string& policy : FillPolicyNames()) {
    SCOPED_TRACE(policy);
    const FillResult result = RunFill(scenario, workload, policy);
    EXPECT_EQ(result.over_capacity, 0);
    for (const FillLevel& level : result.levels) {
      EXPECT_GE(level.unallocated, 0);
      if (policy == "nibble") continue;  // it counts a base once
      EXPECT_LE(level.placed + level.unallocated, 1 + 1e-9);
    }
  }
}

TEST(Quantiles, AreTakenFromTheValues) {
  EXPECT_DOUBLE_EQ(Quantile({}, 0.5), 0);
  EXPECT_DOUBLE_EQ(Quantile({3, 1, 2}, 0.5), 2);
  EXPECT_DOUBLE_EQ(Quantile({3, 1, 2}, 0.99), 3);
}

}  // namespace
}  // namespace nibble::fleet

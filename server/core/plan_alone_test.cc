// What is chosen once for a fleet must suit its smallest device; an attempt that has a larger one to itself
// recomputes less there.
#include <gtest/gtest.h>

#include <memory>
#include <utility>

#include "server/core/testing/driver.h"

namespace nibble::core {
namespace {

using spec::Recompute;
using testing::Driver;
using testing::kMB;

// Nothing recomputed takes four times the step.
SpecFunctions NoneWhereItFits() {
  SpecFunctions functions = testing::CheapSpecFunctions();
  functions.plan = [plan = functions.plan](const spec::ModelConfig& config, const spec::TrainSpec& spec,
                                           const spec::DeviceProfile& device) {
    auto planned = plan(config, spec, device);
    planned->choices.recompute = spec.recompute;
    return planned;
  };
  functions.choose_recompute =
      [plan = functions.plan](const spec::ModelConfig& config, const spec::TrainSpec& spec,
                              const std::vector<spec::DeviceProfile>& devices)
      -> absl::StatusOr<spec::Recomputation> {
    if (spec.recompute != Recompute::kAuto) return spec::Recomputation{spec.recompute};
    spec::TrainSpec none = spec;
    none.recompute = Recompute::kNone;
    for (const spec::DeviceProfile& device : devices) {
      if (plan(config, none, device)->TotalBytes() > device.capacity_bytes)
        return spec::Recomputation{Recompute::kFull};
    }
    return spec::Recomputation{Recompute::kNone};
  };
  return functions;
}

class PlanAloneTest : public ::testing::Test {
 protected:
  // The small one is known but takes no work.
  PlanAloneTest() {
    d_.core().planner = Planner(NoneWhereItFits());
    d_.AddWorker("small", 300 * kMB);
    d_.Must(DrainWorker{"small"});
    d_.AddWorker("large", 1'000 * kMB);
  }
  // 10 + 100 + 10 + 100 MB where all is recomputed, 300 MB more where nothing is.
  static CreateJob JobOf(const std::string& id) {
    CreateJob create = Driver::JobOf(id);
    create.spec.sequence_len = 100'000;
    return create;
  }
  int64_t PlacedBytes(const std::string& id) {
    const Attempt* attempt = d_.job(id).Current();
    EXPECT_NE(attempt, nullptr) << id;
    return attempt == nullptr ? 0 : attempt->plan.TotalBytes();
  }

  Driver d_;
};

TEST_F(PlanAloneTest, ADeviceOfItsOwnIsUsed) {
  d_.Must(JobOf("a"));
  EXPECT_EQ(d_.job("a").spec.recompute, Recompute::kFull) << "or the small device could not take it";
  d_.Place();
  const Job& job = d_.job("a");
  EXPECT_EQ(PlacedBytes("a"), 520 * kMB);
  EXPECT_EQ(job.spec.recompute, Recompute::kFull) << "elsewhere it may have to";
  EXPECT_EQ(SpecWith(job, job.Current()->plan).recompute, Recompute::kNone);
  EXPECT_EQ(SpecWith(job, PlanBytes()).recompute, Recompute::kFull) << "a plan that says nothing of it";
}

TEST_F(PlanAloneTest, NeighboursTakeWhatTheyMust) {
  d_.Must(JobOf("a"));
  d_.Must(JobOf("b"));
  d_.Place();
  EXPECT_EQ(PlacedBytes("a"), 220 * kMB);
  EXPECT_EQ(PlacedBytes("b"), 220 * kMB);
  d_.Must(JobOf("c"));
  d_.Place();
  EXPECT_EQ(PlacedBytes("c"), 220 * kMB) << "two are there already";
}

// What waits for the device waits for the job's end, whatever that takes.
TEST_F(PlanAloneTest, AQueueBehindItChangesNothing) {
  d_.Must(JobOf("a"));
  CreateJob huge = JobOf("huge");
  huge.spec.lora_r = 785;  // 995 MB alone, 1,005 beside the other
  huge.spec.recompute = Recompute::kFull;
  d_.Must(huge);
  d_.Place();
  EXPECT_EQ(PlacedBytes("a"), 520 * kMB);
  EXPECT_EQ(d_.job("huge").Current(), nullptr);
}

TEST_F(PlanAloneTest, WhatTheRecipeSaysStands) {
  CreateJob create = JobOf("a");
  create.spec.recompute = Recompute::kFull;
  d_.Must(create);
  d_.Place();
  EXPECT_EQ(PlacedBytes("a"), 220 * kMB);
  EXPECT_EQ(SpecWith(d_.job("a"), d_.job("a").Current()->plan).recompute, Recompute::kFull);
}

// Several plans: the loop finds them made.
TEST_F(PlanAloneTest, WhatIsPlannedElsewhereIsNotPlannedInTheLoop) {
  int chosen = 0;
  SpecFunctions functions = NoneWhereItFits();
  functions.choose_recompute = [&chosen, choose = functions.choose_recompute](
                                   const spec::ModelConfig& config, const spec::TrainSpec& spec,
                                   const std::vector<spec::DeviceProfile>& devices) {
    ++chosen;
    return choose(config, spec, devices);
  };
  d_.core().planner = Planner(functions);
  CreateJob create = JobOf("a");
  create.plan_elsewhere = true;
  ASSERT_TRUE(IsNotPlanned(d_.Do(create).status()));
  create.ahead = std::make_shared<const PlannedAhead>(
      PlanAhead(functions, d_.state().models.at("base"), create.spec, DataRows(d_.state(), create),
                KnownDevices(d_.state())));
  ASSERT_GT(std::exchange(chosen, 0), 0);
  d_.Must(create);
  d_.Place();
  EXPECT_EQ(PlacedBytes("a"), 520 * kMB);
  EXPECT_EQ(chosen, 0);
}

TEST_F(PlanAloneTest, AProjectWithAQuotaOfBytesTakesWhatItMust) {
  d_.core().options.projects["default"].quota_bytes = 900 * kMB;
  d_.Must(JobOf("a"));
  d_.Place();
  EXPECT_EQ(PlacedBytes("a"), 220 * kMB);
}

}  // namespace
}  // namespace nibble::core

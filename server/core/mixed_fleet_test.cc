// Devices that take no job of a kind, whatever their memory (a GPU whose kernels end at some width), beside
// others that do: the job goes to those, and who asks is told why not to the first.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "server/core/job_explanation.h"
#include "server/core/plan_fit.h"
#include "server/core/testing/driver.h"
#include "server/core/views.h"

namespace nibble::core {
namespace {

using ::testing::HasSubstr;
using testing::Driver;
using testing::kMB;

constexpr char kTooWide[] = "hidden states are 20000 wide; a norm on a GPU takes at most 16384";

// GPUs take no job of more than 5,000 tokens a row.
SpecFunctions GpusRefuseLongRows(int* compiled = nullptr) {
  SpecFunctions functions = testing::CheapSpecFunctions();
  functions.plan = [compiled, plan = functions.plan](
                       const spec::ModelConfig& config, const spec::TrainSpec& spec,
                       const spec::DeviceProfile& device) -> absl::StatusOr<spec::MemoryPlan> {
    if (compiled != nullptr) ++*compiled;
    if (spec::IsCuda(device) && spec.sequence_len > 5'000)
      return Error(Reason::kUnsupportedArchitecture, kTooWide).ToStatus();
    return plan(config, spec, device);
  };
  return functions;
}

class MixedFleetTest : public ::testing::Test {
 protected:
  MixedFleetTest() { d_.core().planner = Planner(GpusRefuseLongRows()); }

  void AddGpu(const std::string& id, int64_t capacity_bytes = 2'000 * kMB) {
    RegisterWorker request = Driver::WorkerOf(id, "i1", capacity_bytes);
    request.devices[0].id = "cuda0";
    request.devices[0].backend = request.devices[0].profile.backend = "cuda";
    d_.Must(request);
  }
  static CreateJob Long(const std::string& id) {
    CreateJob create = Driver::JobOf(id);
    create.spec.sequence_len = 6'000;
    return create;
  }
  JobExplanation WhyOf(const std::string& id) {
    QueueLook look(d_.state(), d_.core(), d_.Now().monotonic_us);
    return ExplainJob(d_.job(id), look);
  }

  Driver d_;
};

TEST_F(MixedFleetTest, AJobThatTheGpusRefuseRunsOnTheCpu) {
  AddGpu("a-gpu");
  d_.AddWorker("cpu");
  d_.Must(Long("wide"));
  d_.Must(Driver::JobOf("usual"));
  d_.Place();
  ASSERT_NE(d_.job("wide").Current(), nullptr);
  EXPECT_EQ(d_.job("wide").Current()->worker_id, "cpu");
  EXPECT_NE(d_.job("usual").Current(), nullptr);
}

TEST_F(MixedFleetTest, WhileTheCpuIsTakenTheGpuSaysWhyItIsNoPlace) {
  AddGpu("a-gpu");
  d_.AddWorker("cpu");
  d_.core().options.max_attempts_per_device = 1;
  d_.Must(Long("first"));
  d_.Place();
  d_.Must(Long("second"));
  d_.Place();
  EXPECT_EQ(d_.job("second").Current(), nullptr);
  const JobExplanation why = WhyOf("second");
  ASSERT_EQ(why.devices.size(), 2u);
  for (const DeviceExplanation& device : why.devices) {
    const bool gpu = device.worker_id == "a-gpu";
    EXPECT_EQ(device.verdict.kind == DeviceVerdict::Kind::kNoPlan, gpu);
    EXPECT_EQ(device.refusal, gpu ? kTooWide : "");
  }
  EXPECT_THAT(why.reason, HasSubstr("1 do not take it"));
  // With the CPU drained, nothing is left that could take it.
  d_.Must(DrainWorker{"cpu"});
  EXPECT_THAT(d_.Why("second"), HasSubstr(absl::StrCat("a-gpu/cuda0 cannot: ", kTooWide)));
  EXPECT_THAT(d_.Why("second"), HasSubstr("workers/cpu drains"));
}

TEST_F(MixedFleetTest, WithoutAnyOtherDeviceTheReasonIsTheGpus) {
  AddGpu("a-gpu");
  const absl::Status refused = d_.Do(Long("wide")).status();
  EXPECT_EQ(StatusReason(refused), Reason::kUnsupportedArchitecture);
  EXPECT_EQ(refused.message(), kTooWide);
  // One whose only other device went away waits for another.
  d_.AddWorker("cpu");
  d_.Must(Long("wide"));
  d_.Must(DrainWorker{"cpu"});
  d_.Place();
  EXPECT_EQ(d_.job("wide").Current(), nullptr);
  d_.AddWorker("cpu-2");
  d_.Place();
  EXPECT_NE(d_.job("wide").Current(), nullptr);
}

TEST_F(MixedFleetTest, WhereTheOthersAreTooSmallBothReasonsAreTold) {
  AddGpu("a-gpu");
  d_.AddWorker("cpu", 121 * kMB);
  const absl::Status refused = d_.Do(Long("wide")).status();
  EXPECT_EQ(StatusReason(refused), Reason::kExceedsDeviceMemory);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("the nearest, cpu/cpu0, offers"));
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr(absl::StrCat("a-gpu/cuda0 does not take it: ", kTooWide)));
}

TEST_F(MixedFleetTest, APlanShowsWhereItFitsAndWhyNotElsewhere) {
  AddGpu("a-gpu");
  d_.AddWorker("cpu");
  const FitReport report = FitsOf(d_.state(), d_.state().models.at("base"),
                                  {.spec = Long("x").spec, .now_us = 7}, d_.core())
                               .value();
  ASSERT_EQ(report.fits.size(), 2u);
  EXPECT_EQ(report.fits[0].verdict, DeviceFit::Verdict::kNever);
  EXPECT_EQ(report.fits[0].refusal.message(), kTooWide);
  EXPECT_EQ(report.fits[0].largest_sequence_len, 4096) << "such rows it takes";
  EXPECT_EQ(report.fits[0].expected_start_us, 0);
  EXPECT_EQ(report.fits[1].verdict, DeviceFit::Verdict::kFitsNow);
  EXPECT_TRUE(report.fits[1].refusal.ok());
  EXPECT_EQ(report.fits[1].expected_start_us, 7);
}

// Of a device that refuses there is no shortfall; the changes are those for the one that is too small.
TEST_F(MixedFleetTest, ChangesAreLookedForWhereTheyCouldHelp) {
  AddGpu("a-gpu");
  d_.AddWorker("cpu", 121 * kMB);
  const FitReport report =
      FitsOf(d_.state(), d_.state().models.at("base"), {.spec = Long("x").spec}, d_.core()).value();
  EXPECT_FALSE(report.suggestions.empty());
}

TEST_F(MixedFleetTest, PlannedElsewhereTheAnswerIsTheSame) {
  int compiled = 0;
  const SpecFunctions functions = GpusRefuseLongRows(&compiled);
  d_.core().planner = Planner(functions);
  AddGpu("a-gpu");
  d_.AddWorker("cpu");
  CreateJob create = Long("wide");
  create.plan_elsewhere = true;
  EXPECT_TRUE(IsNotPlanned(d_.Do(create).status()));
  create.ahead = std::make_shared<const PlannedAhead>(
      PlanAhead(functions, d_.state().models.at("base"), create.spec, DataRows(d_.state(), create),
                KnownDevices(d_.state())));
  compiled = 0;
  EXPECT_TRUE(d_.Do(create).ok());
  EXPECT_EQ(compiled, 0);
}

// The real planner: a model that is too wide for the CUDA kernels, all of whose choices are left to the
// server.
TEST_F(MixedFleetTest, AWideModelIsPlannedForTheCpu) {
  d_.core().planner = Planner(RealSpecFunctions());
  RegisterModel wide;
  wide.model.id = "wide";
  wide.model.digest = "digest-of-wide";
  wide.model.root_path = "/wide";
  wide.model.files = {{"config.json", std::string(64, 'c'), 1}};
  wide.model.config_json =
      R"({"model_type":"llama","vocab_size":512,"hidden_size":16400,"intermediate_size":128,)"
      R"("num_hidden_layers":1,"num_attention_heads":164,"num_key_value_heads":2,"head_dim":100,)"
      R"("max_position_embeddings":4096})";
  wide.model.config = spec::ParseModelConfig(wide.model.config_json).value();
  d_.Must(wide);
  AddGpu("a-gpu", int64_t{80} << 30);
  RegisterWorker cpu = Driver::WorkerOf("cpu", "i1", int64_t{64} << 30);
  cpu.devices[0].profile.threads = 1;
  cpu.devices[0].profile.capacity_bytes = cpu.devices[0].capacity_bytes;
  d_.Must(cpu);
  CreateJob create = Driver::JobOf("j");
  create.model_id = "wide";
  d_.Must(create);
  d_.Place();
  ASSERT_NE(d_.job("j").Current(), nullptr);
  EXPECT_EQ(d_.job("j").Current()->worker_id, "cpu");
}

}  // namespace
}  // namespace nibble::core

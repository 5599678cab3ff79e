// What the plan says of the models people bring to a GPU. Planned bytes; what a driver reads beside them is
// for `./dev gpu`.
#include "engine/spec/memory_plan.h"
#include "engine/spec/train_spec.h"
#include "gtest/gtest.h"

namespace nibble::spec {
namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;

ModelConfig Llama8B() {
  ModelConfig model;
  model.model_type = "llama";
  model.hidden_size = 4096;
  model.intermediate_size = 14336;
  model.layers = 32;
  model.heads = 32;
  model.kv_heads = 8;
  model.head_dim = 128;
  model.vocab_size = 128256;
  model.max_positions = 131072;
  return model;
}

ModelConfig Llama70B() {
  ModelConfig model = Llama8B();
  model.hidden_size = 8192;
  model.intermediate_size = 28672;
  model.layers = 80;
  model.heads = 64;
  return model;
}

DeviceProfile Cuda(double capacity_gb) {
  DeviceProfile profile;
  profile.backend = "cuda";
  profile.body = "sm_90";
  profile.capacity_bytes = static_cast<int64_t>(capacity_gb * 1e9);
  profile.fixed_bytes = int64_t{600} << 20;  // context and libraries
  return profile;
}

MemoryPlan PlanOf(const ModelConfig& model, int32_t rows, int32_t length, Recompute recompute,
                  OptimizerKind optimizer = OptimizerKind::kAdamW, double capacity_gb = 140) {
  TrainSpec spec;
  spec.micro_batch_size = rows;
  spec.sequence_len = length;
  spec.recompute = recompute;
  spec.optimizer = optimizer;
  const auto resolved = ResolveTrainSpec(spec, model);
  EXPECT_TRUE(resolved.ok()) << resolved.status();
  const auto plan = CompilePlan(model, *resolved, Cuda(capacity_gb));
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *plan;
}

double WithoutContext(const MemoryPlan& plan) {
  return static_cast<double>(plan.DeviceBytes() - plan.fixed_bytes);
}

// The bounds are what docs/results/gpu-pending.md says, beside the goals.
TEST(CudaPlan, LargeModelsTakeWhatTheDocsSay) {
  EXPECT_LE(WithoutContext(PlanOf(Llama8B(), 1, 2048, Recompute::kFull)) / kGiB, 7.04);
  EXPECT_LE(WithoutContext(PlanOf(Llama8B(), 2, 2048, Recompute::kFull)) / kGiB, 7.84);
  EXPECT_LE(WithoutContext(PlanOf(Llama8B(), 2, 2048, Recompute::kFull, OptimizerKind::kAdamW8bit)) / kGiB,
            7.61);
  EXPECT_LE(WithoutContext(PlanOf(Llama70B(), 1, 2048, Recompute::kFull)) / 1e9, 46.9);
}

// docs/recipes.md: 8B on a 15 GB card.
TEST(CudaPlan, AnEightBillionModelFitsAFifteenGigabyteCard) {
  const MemoryPlan plan = PlanOf(Llama8B(), 1, 2048, Recompute::kAuto, OptimizerKind::kAdamW, 15);
  EXPECT_LE(plan.DeviceBytes(), 15'000'000'000);
  EXPECT_EQ(plan.TotalBytes(), plan.DeviceBytes());
  EXPECT_GT(plan.pinned_bytes, 0);
}

}  // namespace
}  // namespace nibble::spec

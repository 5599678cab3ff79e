// The step as a list is the step, and products stand at places that all jobs of a base have in common.
#include "engine/spec/step_program.h"

#include <map>
#include <tuple>

#include "base/random.h"
#include "engine/spec/compile_plan.h"
#include "gtest/gtest.h"

namespace nibble::spec {
namespace {

ModelConfig Tiny(bool qk_norm, bool post_norms = false) {
  ModelConfig model;
  model.model_type = "qwen3";
  model.hidden_size = 64;
  model.intermediate_size = 96;
  model.layers = 3;
  model.heads = 4;
  model.kv_heads = 2;
  model.head_dim = 16;
  model.vocab_size = 128;
  model.max_positions = 256;
  model.qk_norm = qk_norm;
  model.post_norms = post_norms;
  return model;
}

using Product = std::tuple<StepOpKind, int32_t, Module>;

class StepProgramPlaces : public ::testing::TestWithParam<bool> {};  // with norms behind products

TEST_P(StepProgramPlaces, AreTheSameProductsForEveryJob) {
  Random random(5);
  const bool post_norms = GetParam();
  const ModelConfig model = Tiny(true, post_norms);
  std::map<int32_t, Product> product_at;
  for (int i = 0; i < 100; ++i) {
    TrainSpec given{.lora_r = 4,
                    .sequence_len = 32,
                    .recompute = static_cast<Recompute>(random.Between(1, 3))};
    if (given.recompute == Recompute::kFull) given.keep_blocks = static_cast<int32_t>(random.Below(3));
    for (const Module module : ModulesOf(model)) {
      if (random.Chance(0.5)) given.target_modules.push_back(module);
    }
    const TrainSpec spec = *ResolveTrainSpec(given, model);
    int32_t last = -1;
    for (const StepOp& op : RecordStep(model, spec)) {
      const bool product = op.kind == StepOpKind::kLinear || op.kind == StepOpKind::kLinearBackward;
      ASSERT_EQ(op.place >= 0, product);
      if (!product) continue;
      ASSERT_GT(op.place, last);
      last = op.place;
      const auto [at, fresh] = product_at.try_emplace(op.place, op.kind, op.layer, op.module);
      EXPECT_EQ(at->second, Product(op.kind, op.layer, op.module)) << "place " << op.place;
    }
  }
  // Forward all seven of three blocks, six repeated of two (seven where a norm reads the seventh), and all
  // backward.
  EXPECT_EQ(product_at.size(), 3u * 7 + 2 * (post_norms ? 7 : 6) + 3 * 7);
}
INSTANTIATE_TEST_SUITE_P(Models, StepProgramPlaces, ::testing::Bool());

TEST(StepProgram, HasTheOperationsOfThePlan) {
  ModelConfig fused = Tiny(false);
  fused.fused = true;
  for (const ModelConfig& model : {Tiny(false), Tiny(true), Tiny(true, true), fused}) {
    for (const Recompute recompute : {Recompute::kNone, Recompute::kKeepGemmOutputs, Recompute::kFull}) {
      const TrainSpec spec =
          *ResolveTrainSpec({.lora_r = 4, .sequence_len = 32, .recompute = recompute}, model);
      const auto plan = CompileForEngine(model, spec, DeviceProfile{});
      EXPECT_EQ(RecordStep(model, spec).size(), static_cast<size_t>(plan->optimizer_op));
    }
  }
}

}  // namespace
}  // namespace nibble::spec

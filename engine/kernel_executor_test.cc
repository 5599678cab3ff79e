#include "engine/kernel_executor.h"

#include <cmath>
#include <cstring>

#include "engine/testing/tiny_model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/tables.h"

namespace nibble::engine {
namespace {

using testing::RandomBatch;
using testing::StepRig;
using testing::TinyModel;
using testing::TinyOptions;

spec::TrainSpec SmallSpec() {
  spec::TrainSpec spec;
  spec.lora_r = 3;
  spec.lora_alpha = 5;
  spec.lora_dropout = 0.2;
  spec.sequence_len = 16;
  spec.micro_batch_size = 2;
  spec.max_grad_norm = 0;
  return spec;
}

struct Variant {
  const char* name;
  TinyOptions model;
  std::vector<spec::Module> modules;
  spec::Recompute recompute;
};

class WholeModelGradient : public ::testing::TestWithParam<Variant> {};

// Every LoRA matrix of every layer against central differences, in double: some elements of each.
TEST_P(WholeModelGradient, IsTheSlopeOfTheLoss) {
  const Variant& variant = GetParam();
  const TinyModel model(variant.model);
  spec::TrainSpec spec = SmallSpec();
  spec.target_modules = variant.modules;
  spec.recompute = variant.recompute;
  StepRig rig(kernels::Ref64Table(), model, spec);
  rig.Randomize(5);
  const MicroBatch batch = RandomBatch({9, 5, 12}, model.config().vocab_size, 3);

  rig.executor().ZeroGradients();
  rig.executor().Train(batch, 1.0, /*step=*/4, /*micro_batch=*/1);
  const std::vector<double> gradient = rig.Read(rig.plan().persistent.gradient);
  const auto loss = [&] {
    rig.executor().RefreshCompute();
    return rig.executor().Train(batch, 1.0, 4, 1);
  };
  for (const spec::AdapterMatrix& matrix : rig.plan().adapters.matrices) {
    const auto check = [&](int64_t first, int64_t count, char which) {
      double norm = 0;
      for (int64_t i = 0; i < count; ++i) {
        norm += std::pow(gradient[static_cast<size_t>(first + i)], 2);
      }
      norm = std::sqrt(norm / static_cast<double>(count));
      EXPECT_GT(norm, 0) << matrix.layer << ModuleName(matrix.module) << which;
      for (int64_t i = 0; i < count; i += std::max<int64_t>(1, count / 7)) {
        constexpr double kStep = 1e-5;
        const double value = rig.ReadMaster(first + i);
        rig.WriteMaster(first + i, value + kStep);
        const double above = loss();
        rig.WriteMaster(first + i, value - kStep);
        const double below = loss();
        rig.WriteMaster(first + i, value);
        EXPECT_NEAR(gradient[static_cast<size_t>(first + i)], (above - below) / (2 * kStep),
                    1e-6 * norm + 1e-8)
            << matrix.layer << ModuleName(matrix.module) << which << i;
      }
    };
    check(matrix.a, spec.lora_r * matrix.in, 'A');
    check(matrix.b, spec.lora_r * matrix.out, 'B');
  }
}

using spec::Module;
using spec::Recompute;
INSTANTIATE_TEST_SUITE_P(
    Variants, WholeModelGradient,
    ::testing::Values(Variant{"Recomputed", {}, {}, Recompute::kFull},
                      Variant{"Kept", {}, {}, Recompute::kNone},
                      Variant{"Bias", {.qkv_bias = true}, {}, Recompute::kFull},
                      Variant{"QkNorm", {.qk_norm = true}, {}, Recompute::kFull},
                      Variant{"QkNormKept", {.qk_norm = true}, {}, Recompute::kNone},
                      Variant{"Outputs", {}, {}, Recompute::kKeepGemmOutputs},
                      Variant{"QkNormOutputs", {.qk_norm = true}, {}, Recompute::kKeepGemmOutputs},
                      Variant{"OutputsUpOnly", {}, {Module::kUp}, Recompute::kKeepGemmOutputs},
                      Variant{"Window", {.sliding_window = 4}, {}, Recompute::kFull},
                      Variant{"PartOfHeads", {.rotary_dim = 6}, {}, Recompute::kFull},
                      Variant{"SomeTurn", {.some_turn = true}, {}, Recompute::kFull},
                      Variant{"SomeTurnQkNorm", {.qk_norm = true, .some_turn = true}, {}, Recompute::kFull},
                      Variant{"Gemma", {.gemma = 1}, {}, Recompute::kFull},
                      Variant{"Gemma2", {.gemma = 2, .layers = 3}, {}, Recompute::kFull},
                      Variant{"Gemma2Kept", {.gemma = 2}, {}, Recompute::kNone},
                      Variant{"Gemma2Outputs", {.gemma = 2}, {}, Recompute::kKeepGemmOutputs},
                      Variant{"Gemma2DownOnly", {.gemma = 2}, {Module::kDown}, Recompute::kFull},
                      Variant{"Gemma2OutputOnly", {.gemma = 2}, {Module::kO}, Recompute::kKeepGemmOutputs},
                      Variant{"Gemma3", {.gemma = 3, .layers = 3}, {}, Recompute::kFull},
                      Variant{"Gemma3Outputs", {.gemma = 3}, {}, Recompute::kKeepGemmOutputs},
                      Variant{"Fused", {.fused = true, .layers = 3}, {}, Recompute::kFull},
                      Variant{"FusedKept", {.fused = true}, {}, Recompute::kNone},
                      Variant{"FusedOutputs", {.fused = true}, {}, Recompute::kKeepGemmOutputs},
                      Variant{"FusedQkNorm", {.qk_norm = true, .fused = true}, {}, Recompute::kFull},
                      Variant{"FusedQkvOnly", {.fused = true}, {Module::kQkv}, Recompute::kKeepGemmOutputs},
                      Variant{"FusedGateUpOnly", {.fused = true}, {Module::kGateUp}, Recompute::kFull},
                      Variant{"FusedOutputOnly", {.fused = true}, {Module::kO}, Recompute::kNone},
                      Variant{"QvOnly", {}, {Module::kQ, Module::kV}, Recompute::kFull},
                      Variant{"OutputOnly", {}, {Module::kO}, Recompute::kFull},
                      Variant{"DownOnly", {}, {Module::kDown}, Recompute::kFull},
                      Variant{"UpOnly", {}, {Module::kUp}, Recompute::kNone},
                      Variant{"OneLayer", {.layers = 1}, {Module::kGate, Module::kK}, Recompute::kFull}),
    [](const auto& info) { return info.param.name; });

using spec::Recomputation;
constexpr Recomputation kPolicies[] = {{Recompute::kNone}, {Recompute::kKeepGemmOutputs}, {Recompute::kFull},
                                       {Recompute::kFull, 1}};

// ref, and every body this machine has.
std::vector<const kernels::KernelTable*> Tables() {
  std::vector<const kernels::KernelTable*> tables = {&kernels::RefTable()};
  for (const std::string_view body : kernels::CpuBodies()) tables.push_back(kernels::CpuTableFor(body));
  return tables;
}

TEST(RecomputationAndThreads, ChangeNoBit) {
  for (const kernels::KernelTable* table : Tables()) {
    for (const TinyOptions& options :
         {TinyOptions{.layers = 3}, TinyOptions{.qk_norm = true, .layers = 3, .rotary_dim = 4},
          TinyOptions{.fused = true, .layers = 3}, TinyOptions{.gemma = 2, .layers = 3},
          TinyOptions{.gemma = 3, .layers = 3}}) {
      const TinyModel model(options);
      const MicroBatch batch = RandomBatch({16, 9}, model.config().vocab_size, 8);
      std::vector<double> first;
      for (const Recomputation& recompute : kPolicies) {
        spec::TrainSpec spec = SmallSpec();
        recompute.SetIn(spec);
        for (const int threads : {1, 2, 3, 4}) {
          StepRig rig(*table, model, spec, threads);
          rig.Randomize(5);
          const std::vector<double> gradients = rig.Gradients({batch}, 0.1);
          if (first.empty()) first = gradients;
          EXPECT_EQ(gradients, first) << table->name << "/" << table->body << ", "
                                      << RecomputeName(recompute.policy) << recompute.keep_blocks << " on "
                                      << threads << " threads";
        }
      }
    }
  }
}

// The same documents in one micro-batch or in three: the same sums, up to the order of adding.
TEST(Accumulation, ChangesNothingButRounding) {
  const TinyModel model({});
  spec::TrainSpec spec = SmallSpec();
  spec.lora_dropout = 0;
  StepRig rig(kernels::Ref64Table(), model, spec);
  rig.Randomize(5);
  const MicroBatch whole = RandomBatch({7, 9, 11}, model.config().vocab_size, 8);
  std::vector<MicroBatch> parts;
  for (int d = 0; d < 3; ++d) {
    MicroBatch part;
    for (int i = whole.starts[d]; i < whole.starts[d + 1]; ++i) {
      part.ids.push_back(whole.ids[i]);
      part.labels.push_back(whole.labels[i]);
      part.positions.push_back(whole.positions[i]);
    }
    part.starts = {0, static_cast<int32_t>(part.ids.size())};
    parts.push_back(part);
  }
  const double scale = 1.0 / static_cast<double>(whole.target_tokens);
  const std::vector<double> once = rig.Gradients({whole}, scale);
  const std::vector<double> thrice = rig.Gradients(parts, scale);
  for (size_t i = 0; i < once.size(); ++i) EXPECT_NEAR(once[i], thrice[i], 1e-13);
}

TEST(Dropout, IsKeyedByStepAndMicroBatch) {
  const TinyModel model({});
  StepRig rig(kernels::RefTable(), model, SmallSpec());
  rig.Randomize(5);
  const MicroBatch batch = RandomBatch({16}, model.config().vocab_size, 8);
  const double loss = rig.executor().Train(batch, 1, 1, 0);
  EXPECT_EQ(rig.executor().Train(batch, 1, 1, 0), loss);
  EXPECT_NE(rig.executor().Train(batch, 1, 2, 0), loss);
  EXPECT_NE(rig.executor().Train(batch, 1, 1, 1), loss);
  EXPECT_EQ(rig.executor().Evaluate(batch), rig.executor().Evaluate(batch));
}

// What lies between the planned buffers stays as it was: no operation writes past its own.
TEST(Plan, IsKeptToTheByte) {
  constexpr int64_t kRedZone = 256;
  for (const kernels::KernelTable* table : Tables()) {
    for (const Recomputation& recompute : kPolicies) {
      const TinyModel model({.qkv_bias = true, .qk_norm = true});
      spec::TrainSpec spec = SmallSpec();
      recompute.SetIn(spec);
      StepRig rig(*table, model, spec, 2, kRedZone);
      const spec::MemoryPlan& plan = rig.plan().memory;
      // A byte is free when no buffer ever covers it.
      std::vector<bool> covered(static_cast<size_t>(plan.step_bytes), false);
      for (const spec::PlannedBuffer& b : plan.buffers) {
        if (b.region != spec::Region::kStep) continue;
        std::fill_n(covered.begin() + b.offset, b.size_bytes, true);
      }
      std::memset(rig.step().data(), 0x5A, static_cast<size_t>(plan.step_bytes));
      const MicroBatch batch = RandomBatch({16, 16}, model.config().vocab_size, 8);
      rig.executor().ZeroGradients();
      rig.executor().Queue(batch, 1, 1, 0);
      rig.executor().Optimize(1e-3, 1, 1);
      rig.executor().Evaluate(batch);
      int64_t touched = 0;
      for (size_t i = 0; i < covered.size(); ++i) {
        touched += !covered[i] && rig.step().data()[i] != std::byte{0x5A};
      }
      EXPECT_EQ(touched, 0) << table->name;
      EXPECT_GT(std::count(covered.begin(), covered.end(), false), 0);
    }
  }
}

// What an operation reads it has been given: the garbage that was in memory before cannot matter.
TEST(Plan, OldContentsDoNotMatter) {
  for (const kernels::KernelTable* table : Tables()) {
    const TinyModel model({.qk_norm = true});
    std::vector<std::vector<double>> gradients;
    for (const int fill : {0x00, 0xFF}) {  // 0xFF bytes are NaN in every type
      StepRig rig(*table, model, SmallSpec());
      rig.Randomize(5);
      std::memset(rig.step().data(), fill, static_cast<size_t>(rig.plan().memory.step_bytes));
      gradients.push_back(
          rig.Gradients({RandomBatch({16, 3}, model.config().vocab_size, 8)}, 0.1));
    }
    EXPECT_EQ(gradients[0], gradients[1]) << table->name;
  }
}

TEST(Optimize, ClipsSkipsAndSteps) {
  const TinyModel model({});
  spec::TrainSpec spec = SmallSpec();
  spec.max_grad_norm = 1e-3;
  StepRig rig(kernels::RefTable(), model, spec);
  const MicroBatch batch = RandomBatch({16, 12}, model.config().vocab_size, 8);
  rig.executor().ZeroGradients();
  const double loss = rig.executor().Train(batch, 1, 1, 0);
  const std::vector<double> g = rig.Read(rig.plan().persistent.gradient);
  double norm = 0;
  for (const double x : g) norm += x * x;
  norm = std::sqrt(norm);
  const auto update = rig.executor().Optimize(1e-2, 1, 1);
  EXPECT_TRUE(update.applied);
  EXPECT_EQ(update.loss_sum, loss);
  EXPECT_NEAR(update.grad_norm, norm, 1e-6 * norm);
  const std::vector<double> m = rig.Read(rig.plan().persistent.moment1);
  for (size_t i = 0; i < g.size(); ++i) EXPECT_NEAR(m[i], 0.1 * g[i] * 1e-3 / norm, 1e-9);

  // A gradient or a loss that is no number changes nothing.
  const std::vector<double> before = rig.Read(rig.plan().persistent.master);
  auto* gradient =
      reinterpret_cast<float*>(rig.persistent().data() + rig.plan().persistent.gradient);
  gradient[5] = INFINITY;
  EXPECT_FALSE(rig.executor().Optimize(1e-2, 2, 1).applied);
  gradient[5] = 0;
  *reinterpret_cast<double*>(rig.persistent().data() + rig.plan().persistent.scalars) = std::nan("");
  EXPECT_FALSE(rig.executor().Optimize(1e-2, 2, 1).applied);
  EXPECT_EQ(rig.Read(rig.plan().persistent.master), before);
}

TEST(InitAdapters, IsPeftsDistribution) {
  const TinyModel model({});
  StepRig rig(kernels::RefTable(), model, SmallSpec());
  const std::vector<double> master = rig.Read(rig.plan().persistent.master);
  for (const spec::AdapterMatrix& matrix : rig.plan().adapters.matrices) {
    const double bound = 1 / std::sqrt(static_cast<double>(matrix.in));
    double largest = 0;
    for (int64_t i = 0; i < 3 * matrix.in; ++i) {
      largest = std::max(largest, std::abs(master[static_cast<size_t>(matrix.a + i)]));
    }
    EXPECT_LE(largest, bound * 1.000001);
    EXPECT_GT(largest, 0.8 * bound);
    for (int64_t i = 0; i < 3 * matrix.out; ++i) {
      EXPECT_EQ(master[static_cast<size_t>(matrix.b + i)], 0);
    }
  }
}

}  // namespace
}  // namespace nibble::engine

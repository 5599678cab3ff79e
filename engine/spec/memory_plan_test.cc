#include "engine/spec/memory_plan.h"

#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>

#include "engine/spec/base_layout.h"
#include "engine/spec/compile_plan.h"
#include "engine/spec/counting_executor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::spec {
namespace {

ModelConfig Llama(int64_t hidden, int64_t ffn, int64_t layers, int64_t heads, int64_t kv_heads,
                  int64_t vocab) {
  ModelConfig model;
  model.model_type = "llama";
  model.hidden_size = hidden;
  model.intermediate_size = ffn;
  model.layers = layers;
  model.heads = heads;
  model.kv_heads = kv_heads;
  model.head_dim = hidden / heads;
  model.vocab_size = vocab;
  model.max_positions = 8192;
  return model;
}
const ModelConfig kLlama7B = Llama(4096, 11008, 32, 32, 32, 32000);
const ModelConfig kLlama8B = Llama(4096, 14336, 32, 32, 8, 128256);
const ModelConfig kLlama70B = Llama(8192, 28672, 80, 64, 8, 32000);
const ModelConfig kTiny = Llama(64, 172, 5, 8, 4, 512);

TrainSpec Resolved(const ModelConfig& model, TrainSpec spec) {
  auto resolved = ResolveTrainSpec(std::move(spec), model);
  EXPECT_TRUE(resolved.ok()) << resolved.status();
  return *resolved;
}

DeviceProfile Profile(int threads = 2) {
  DeviceProfile profile;
  profile.threads = threads;
  profile.fixed_bytes = 50'000'000;
  return profile;
}

constexpr Recompute kPolicies[] = {Recompute::kNone, Recompute::kKeepGemmOutputs, Recompute::kFull};

int64_t At(const MemoryPlan& plan, Category category) {
  return plan.category_bytes[static_cast<size_t>(category)];
}

TEST(BaseBytes, MatchThePublishedArithmetic) {
  // Codes, scales and unquantized parts by the closed formulas; the layout adds padding only.
  struct Case {
    ModelConfig model;
    double codes, scales, unquantized, total;  // bytes
  };
  const Case cases[] = {{kLlama7B, 3.238e9, 0.103e9, 0.5248e9, 3.866e9},
                        {kLlama8B, 3.490e9, 0.111e9, 2.1019e9, 5.702e9},
                        {kLlama70B, 34.226e9, 1.086e9, 1.0512e9, 36.363e9}};
  for (const Case& c : cases) {
    const auto plan = CompilePlan(c.model, Resolved(c.model, {.sequence_len = 512}), Profile());
    ASSERT_TRUE(plan.ok());
    EXPECT_NEAR(static_cast<double>(At(*plan, Category::kBaseCodes)), c.codes, 1e-3 * c.codes);
    EXPECT_NEAR(static_cast<double>(At(*plan, Category::kBaseScales)), c.scales, 6e-3 * c.scales);
    EXPECT_NEAR(static_cast<double>(At(*plan, Category::kBaseUnquantized)), c.unquantized,
                1e-3 * c.unquantized);
    EXPECT_NEAR(static_cast<double>(plan->base_bytes), c.total, 5e-4 * c.total);
    EXPECT_EQ(plan->base_bytes, BaseBytes(c.model, QuantKind::kNF4, true));
  }
}

TEST(CompilePlan, AdaptersAreExact) {
  // P_lora = L r (9h + 2k + 3f), see the layout: fp32 masters, bf16 copies, fp32 gradients and
  // moments.
  const TrainSpec spec = Resolved(kLlama8B, {.sequence_len = 2048});
  const auto plan = CompileForEngine(kLlama8B, spec, Profile());
  ASSERT_TRUE(plan.ok());
  const int64_t parameters = 32 * 16 * (9 * 4096 + 2 * 1024 + 3 * 14336);
  EXPECT_EQ(plan->adapters.parameters, parameters);
  EXPECT_EQ(plan->adapters.elements, parameters);  // every matrix is a multiple of 32 here
  EXPECT_EQ(At(plan->memory, Category::kAdapters), parameters * 6);
  EXPECT_EQ(At(plan->memory, Category::kGradients), parameters * 4);
  EXPECT_EQ(At(plan->memory, Category::kOptimizer), parameters * 8);
}

TEST(CompilePlan, LlamaShapesStayInRange) {
  // Reference totals without the process: block checkpointing, r 16, one sequence. Ours also holds
  // bf16 copies of the adapters and the host's 12 MiB and up.
  struct Case {
    ModelConfig model;
    int32_t sequence_len;
    Recompute recompute;
    double bytes;
  };
  const Case cases[] = {{kLlama7B, 512, Recompute::kFull, 4.85e9},
                        {kLlama7B, 2048, Recompute::kFull, 5.60e9},
                        {kLlama8B, 512, Recompute::kFull, 6.91e9},
                        {kLlama8B, 2048, Recompute::kFull, 7.56e9},
                        {kLlama70B, 2048, Recompute::kFull, 43.88e9},
                        {kLlama7B, 2048, Recompute::kNone, 13.55e9},
                        {kLlama8B, 2048, Recompute::kNone, 15.97e9}};
  for (const Case& c : cases) {
    const TrainSpec spec = Resolved(
        c.model, {.sequence_len = c.sequence_len, .recompute = c.recompute});
    const auto plan = CompilePlan(c.model, spec, Profile());
    ASSERT_TRUE(plan.ok());
    const double bytes = static_cast<double>(plan->TotalBytes() - plan->fixed_bytes);
    EXPECT_GT(bytes, 0.93 * c.bytes) << MemoryPlanToText(*plan);
    EXPECT_LT(bytes, 1.05 * c.bytes) << MemoryPlanToText(*plan);
    EXPECT_GE(plan->TotalBytes(), plan->lower_bound_bytes);
    EXPECT_LT(plan->TotalBytes(), 1.03 * static_cast<double>(plan->lower_bound_bytes));
  }
}

TEST(CompilePlan, CategoriesAndWasteMakeTheTotal) {
  for (const Recompute recompute : kPolicies) {
    const TrainSpec spec = Resolved(
        kTiny,
        {.sequence_len = 128, .micro_batch_size = 4, .recompute = recompute});
    const auto plan = CompilePlan(kTiny, spec, Profile());
    ASSERT_TRUE(plan.ok());
    int64_t sum = plan->fixed_bytes + plan->host_bytes;
    for (const int64_t bytes : plan->category_bytes) sum += bytes;
    EXPECT_LE(sum, plan->TotalBytes());
    EXPECT_GT(sum, plan->TotalBytes() - plan->step_bytes);
    EXPECT_NE(plan->peak_phase, "");
  }
}

TEST(CompilePlan, LivingBuffersNeverOverlap) {
  ModelConfig qwen = kTiny;
  qwen.qk_norm = true;
  for (const ModelConfig& model : {kTiny, qwen}) {
    for (const Recompute recompute : kPolicies) {
      const TrainSpec spec = Resolved(
          model, {.lora_r = 4, .sequence_len = 64, .recompute = recompute});
      const auto plan = CompilePlan(model, spec, Profile());
      ASSERT_TRUE(plan.ok());
      for (size_t i = 0; i < plan->buffers.size(); ++i) {
        const PlannedBuffer& a = plan->buffers[i];
        EXPECT_EQ(a.offset % 64, 0);
        EXPECT_LE(a.offset + a.size_bytes,
                  a.region == Region::kStep ? plan->step_bytes : plan->persistent_bytes);
        for (size_t j = 0; j < i; ++j) {
          const PlannedBuffer& b = plan->buffers[j];
          const auto lasts = [](const PlannedBuffer& c) {
            return c.region == Region::kPersistent && c.first_use == 0 && c.last_use == 0;
          };
          const bool together =
              a.region == b.region &&
              (lasts(a) || lasts(b) || (a.first_use <= b.last_use && b.first_use <= a.last_use));
          if (!together) continue;
          EXPECT_TRUE(a.offset + a.size_bytes <= b.offset || b.offset + b.size_bytes <= a.offset)
              << a.name << " and " << b.name;
        }
      }
    }
  }
}

TEST(CompilePlan, ShortMicroBatchesKeepTheirTensorsToThemselves) {
  const auto compile = [](int32_t length, int32_t r, const char* backend) {
    DeviceProfile profile = Profile();
    profile.backend = backend;
    TrainSpec given{.lora_r = r, .sequence_len = length, .recompute = Recompute::kFull};
    const auto plan = CompileForEngine(kLlama8B, Resolved(kLlama8B, given), profile);
    EXPECT_TRUE(plan.ok());
    return *plan;
  };
  const CompiledPlan own = compile(kFusedTokens, 16, "cpu");
  ASSERT_GE(own.persistent.activations, 0);
  EXPECT_LE(2 * (own.memory.persistent_bytes - own.persistent.activations), own.persistent.activations);
  int64_t end = 0, workspace = 0;
  for (const PlannedBuffer& b : own.memory.buffers) {
    if (b.category == Category::kWorkspace && b.region == Region::kStep) {
      EXPECT_EQ(b.offset, 0) << "workspaces never meet";
      workspace = std::max(workspace, b.size_bytes);
    } else {
      EXPECT_EQ(b.region, Region::kPersistent) << b.name;
      end = std::max(end, b.offset + b.size_bytes);
    }
  }
  EXPECT_EQ((end + 4095) / 4096 * 4096, own.memory.persistent_bytes);
  EXPECT_EQ((workspace + 4095) / 4096 * 4096, own.memory.step_bytes);
  // Alone it costs a little: a workspace no longer lies where tensors are dead.
  EXPECT_LT(own.memory.TotalBytes(), compile(kFusedTokens + 1, 16, "cpu").memory.TotalBytes() * 101 / 100);
  EXPECT_LT(compile(kFusedTokens + 1, 16, "cpu").persistent.activations, 0);
  EXPECT_LT(compile(kFusedTokens, 16, "cuda").persistent.activations, 0);
  EXPECT_LT(compile(kFusedTokens, 1, "cpu").persistent.activations, 0)
      << "they would be more than half of the rest";
}

// What an engine keeps of each step is planned, by the steps that are known or can be.
TEST(CompilePlan, LongHistoriesAreCounted) {
  constexpr int64_t kMiB = 1 << 20;
  EXPECT_EQ(HistoryBytes({}), 0);
  EXPECT_EQ(HistoryBytes({.max_steps = 3'000}), 0);
  EXPECT_EQ(HistoryBytes({.max_steps = 1'000'000}), 122 * kMiB);
  EXPECT_EQ(HistoryBytes({.max_steps = 1'000'000, .eval_steps = 1}), 244 * kMiB);
  EXPECT_EQ(HistoryBytes({.micro_batch_size = 2, .gradient_accumulation_steps = 4, .num_epochs = 80,
                          .data_rows = 100'000}),
            122 * kMiB);
  EXPECT_GT(HistoryBytes({.num_epochs = 1e9, .data_rows = 1 << 30}), 0);
}

TEST(CompilePlan, EveryBufferBeginsAligned) {
  for (const int32_t r : {1, 3, 8, 50}) {
    const TrainSpec spec = Resolved(kTiny, {.lora_r = r, .optimizer = OptimizerKind::kAdamW8bit});
    const auto plan = CompilePlan(kTiny, spec, Profile());
    for (const PlannedBuffer& buffer : plan->buffers) EXPECT_EQ(buffer.offset % 64, 0) << buffer.name;
  }
}

TEST(CompilePlan, KeepsLessWithCheckpointing) {
  const auto bytes = [](Recompute recompute, std::vector<Module> modules) {
    const TrainSpec spec = Resolved(kLlama7B, {.target_modules = std::move(modules),
                                               .sequence_len = 1024,
                                               .recompute = recompute});
    return CompilePlan(kLlama7B, spec, Profile())->step_bytes;
  };
  EXPECT_LT(bytes(Recompute::kFull, {}), bytes(Recompute::kNone, {}) / 4);
  EXPECT_LT(bytes(Recompute::kKeepGemmOutputs, {}), bytes(Recompute::kNone, {}) * 3 / 4);
  EXPECT_LT(bytes(Recompute::kFull, {}), bytes(Recompute::kKeepGemmOutputs, {}));
  // What no adapter needs is not kept.
  EXPECT_LT(bytes(Recompute::kNone, {Module::kQ, Module::kV}), bytes(Recompute::kNone, {}));
}

TEST(CompilePlan, IsDeterministicAndGrowsWithTheBatch) {
  const TrainSpec spec = Resolved(kTiny, {.sequence_len = 128});
  const auto once = CompilePlan(kTiny, spec, Profile());
  const auto twice = CompilePlan(kTiny, spec, Profile());
  EXPECT_EQ(MemoryPlanToJson(*once), MemoryPlanToJson(*twice));
  TrainSpec larger = spec;
  larger.micro_batch_size = 2;
  EXPECT_GT(CompilePlan(kTiny, larger, Profile())->step_bytes, once->step_bytes);
  EXPECT_GT(CompilePlan(kTiny, spec, Profile(4))->step_bytes, once->step_bytes);
}

class ChooseRecomputeTest : public ::testing::Test {
 protected:
  int64_t Total(Recompute policy, int32_t keep_blocks = 0) const {
    TrainSpec tried = spec_;
    Recomputation{policy, keep_blocks}.SetIn(tried);
    return CompilePlan(kLlama7B, tried, Profile())->TotalBytes();
  }
  Recomputation Choose(const std::vector<int64_t>& capacities) const {
    std::vector<DeviceProfile> devices;
    for (const int64_t capacity : capacities) {
      devices.push_back(Profile());
      devices.back().capacity_bytes = capacity;
    }
    return *ChooseRecompute(kLlama7B, spec_, devices);
  }
  const TrainSpec spec_ = Resolved(kLlama7B, {.sequence_len = 1024});
};

TEST_F(ChooseRecomputeTest, IsTheFastestThatCostsNoPlace) {
  const int64_t none = Total(Recompute::kNone);
  const int64_t outputs = Total(Recompute::kKeepGemmOutputs);
  const int64_t full = Total(Recompute::kFull);
  EXPECT_EQ(Choose({none}).policy, Recompute::kNone);
  EXPECT_EQ(Choose({none - 1}).policy, Recompute::kKeepGemmOutputs);
  EXPECT_EQ(Choose({outputs - 1}).policy, Recompute::kFull);
  // The job would fit the smaller device, so it must go on fitting there; where it never fits does
  // not matter, nor does a device of unknown size.
  EXPECT_EQ(Choose({none, outputs}).policy, Recompute::kKeepGemmOutputs);
  EXPECT_EQ(Choose({none, full - 1, 0}).policy, Recompute::kNone);
  EXPECT_EQ(Choose({full - 1}), Recomputation{Recompute::kFull});
  EXPECT_EQ(Choose({}), Recomputation{Recompute::kFull});
  // What the user wrote stands.
  TrainSpec given = spec_;
  given.recompute = Recompute::kFull;
  given.keep_blocks = 3;
  EXPECT_EQ(*ChooseRecompute(kLlama7B, given, {Profile()}), (Recomputation{Recompute::kFull, 3}));
  // A plan for a profile chooses for it.
  DeviceProfile large = Profile();
  large.capacity_bytes = outputs;
  EXPECT_EQ(CompileForEngine(kLlama7B, spec_, large)->recompute, Recomputation{Recompute::kKeepGemmOutputs});
}

TEST_F(ChooseRecomputeTest, KeepsTheProductsOfAsManyBlocksAsLeaveRoomOnEveryDevice) {
  const auto choose = [&](const std::vector<int64_t>& capacities) {
    const Recomputation chosen = Choose(capacities);
    EXPECT_EQ(chosen.policy, Recompute::kFull);
    return chosen.keep_blocks;
  };
  const int64_t small = 7'200'000'000, large = 7'700'000'000;
  ASSERT_LT(large, Total(Recompute::kKeepGemmOutputs)) << "all of them would be kept";
  const int32_t kept = choose({large});
  EXPECT_TRUE(LeavesRoom(Total(Recompute::kFull, kept), large));
  EXPECT_FALSE(LeavesRoom(Total(Recompute::kFull, kept + 1), large));
  EXPECT_GT(kept, choose({small}));
  EXPECT_GT(choose({small}), 0);
  EXPECT_EQ(choose({large, small}), choose({small}));
  EXPECT_EQ(choose({Total(Recompute::kFull)}), 0) << "it fits, and leaves no room";
  // As much memory as leaves room for so many is what it takes, for each number.
  int32_t most = 0;
  for (int32_t count = 1;; ++count) {
    const int64_t capacity = (Total(Recompute::kFull, count) + 2) / 3 * 4;
    if (capacity >= Total(Recompute::kKeepGemmOutputs)) break;
    EXPECT_EQ(choose({capacity}), count);
    DeviceProfile device = Profile();
    device.capacity_bytes = capacity;
    EXPECT_EQ(CompilePlan(kLlama7B, spec_, device)->choices.keep_blocks, count) << "the plan says so";
    most = count;
  }
  EXPECT_GT(most, 4);
  // All but none of the blocks kept is what keep_gemm_outputs needs.
  EXPECT_EQ(Total(Recompute::kFull, 31), Total(Recompute::kKeepGemmOutputs));
}

TEST(CompilePlan, EightBitMomentsAreExact) {
  TrainSpec spec = Resolved(kLlama8B, {.optimizer = OptimizerKind::kAdamW8bit});
  const auto plan = CompileForEngine(kLlama8B, spec, Profile());
  const int64_t elements = plan->adapters.elements;
  EXPECT_EQ(elements, 32 * 16 * (9 * 4096 + 2 * 1024 + 3 * 14336));
  EXPECT_EQ(At(plan->memory, Category::kOptimizer), 2 * elements + 2 * 4 * elements / 256 + 2048);
  // Every matrix begins a block of its own.
  spec.lora_r = 3;
  for (const AdapterMatrix& matrix : LayoutAdapters(kTiny, spec).matrices) {
    EXPECT_EQ(matrix.a % 256, 0);
    EXPECT_EQ(matrix.b % 256, 0);
  }
}

TEST(CompilePlan, RefusesAnUnresolvedSpec) {
  EXPECT_FALSE(CompilePlan(kTiny, TrainSpec{}, Profile()).ok());
}

TEST(DeviceProfile, RoundTripsThroughJson) {
  DeviceProfile profile{"ref", "scalar", "0.1.0", 3, 4, 12345, 1LL << 40};
  const auto back = DeviceProfileFromJson(DeviceProfileToJson(profile));
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(*back, profile);
  EXPECT_FALSE(DeviceProfileFromJson(R"({"threads":-1})").ok());
  EXPECT_FALSE(DeviceProfileFromJson(R"({"thread":1})").ok());
  EXPECT_FALSE(DeviceProfileFromJson("[]").ok());
}

TEST(PublishedConfigs, PlansCompileForEverySupportedModel) {
  const char* data = std::getenv("NIBBLE_TEST_DATA");
  if (data == nullptr) GTEST_SKIP() << "NIBBLE_TEST_DATA is not set";
  std::ifstream table(std::string(data) + "/model-configs/param_counts.csv");
  std::string line;
  std::getline(table, line);
  int planned = 0;
  while (std::getline(table, line)) {
    std::stringstream row(line);
    std::string file, computed, published, linear;
    std::getline(row, file, ',');
    std::getline(row, computed, ',');
    std::getline(row, published, ',');
    std::getline(row, linear, ',');
    std::ifstream in(std::string(data) + "/model-configs/" + file);
    const std::string text((std::istreambuf_iterator<char>(in)), {});
    const auto model = ParseModelConfig(text);
    ASSERT_TRUE(model.ok()) << file << ": " << model.status();
    EXPECT_EQ(model->TotalParameters(), std::stoll(published)) << file;
    EXPECT_EQ(model->LinearParameters(), std::stoll(linear)) << file;
    const auto plan = CompilePlan(*model, Resolved(*model, {.sequence_len = 512}), Profile());
    ASSERT_TRUE(plan.ok()) << file;
    EXPECT_LT(plan->TotalBytes(), 1.03 * static_cast<double>(plan->lower_bound_bytes)) << file;
    ++planned;
  }
  EXPECT_GT(planned, 26);
}

}  // namespace
}  // namespace nibble::spec

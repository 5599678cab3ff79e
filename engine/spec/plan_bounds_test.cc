// Plans at the edges: goldens that hold on every machine, waste of published and of random shapes, and
// sizes that never overflow.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

#include "base/digest.h"
#include "base/error.h"
#include "base/random.h"
#include "engine/spec/compile_plan.h"
#include "gtest/gtest.h"

namespace nibble::spec {
namespace {

std::string SourceDir() {
  const char* root = std::getenv("NIBBLE_SOURCE_DIR");
  return root != nullptr ? root : ".";
}

ModelConfig Shape(const char* type, int64_t hidden, int64_t ffn, int64_t layers, int64_t heads,
                  int64_t kv_heads, int64_t head_dim, int64_t vocab, bool tied) {
  ModelConfig model;
  model.model_type = type;
  model.hidden_size = hidden;
  model.intermediate_size = ffn;
  model.layers = layers;
  model.heads = heads;
  model.kv_heads = kv_heads;
  model.head_dim = head_dim;
  model.vocab_size = vocab;
  model.max_positions = 8192;
  model.tie_word_embeddings = tied;
  model.qkv_bias = model.model_type == "qwen2";
  model.qk_norm = model.model_type == "qwen3";
  return model;
}

struct Golden {
  const char* name;
  ModelConfig model;
  TrainSpec spec;
  DeviceProfile profile;
};

std::vector<Golden> Goldens() {
  const ModelConfig llama7b = Shape("llama", 4096, 11008, 32, 32, 32, 128, 32000, false);
  const ModelConfig llama8b = Shape("llama", 4096, 14336, 32, 32, 8, 128, 128256, false);
  const ModelConfig llama70b = Shape("llama", 8192, 28672, 80, 64, 8, 128, 32000, false);
  const ModelConfig small = Shape("llama", 576, 1536, 30, 9, 3, 64, 49152, true);
  const ModelConfig stories = Shape("llama", 64, 172, 5, 8, 4, 8, 512, true);
  const ModelConfig qwen2 = Shape("qwen2", 896, 4864, 24, 14, 2, 64, 151936, true);
  const ModelConfig qwen3 = Shape("qwen3", 2560, 9728, 36, 32, 8, 128, 151936, true);
  DeviceProfile cpu;
  cpu.threads = 2;
  cpu.fixed_bytes = 40'000'000;
  DeviceProfile many = cpu;
  many.threads = 32;
  DeviceProfile ref = cpu;
  ref.backend = "ref";
  ref.body = "scalar";
  ref.act_bytes = 4;
  const Recompute full = Recompute::kFull;
  return {
      {"llama-7b-512", llama7b, {.sequence_len = 512, .recompute = full}, cpu},
      {"llama-7b-2048-none", llama7b, {.sequence_len = 2048, .recompute = Recompute::kNone}, cpu},
      {"llama-7b-paper-r64-adam8", llama7b,
       {.lora_r = 64, .sequence_len = 512, .optimizer = OptimizerKind::kAdamW8bit, .recompute = full}, cpu},
      {"llama-8b-2048-outputs", llama8b,
       {.sequence_len = 2048, .recompute = Recompute::kKeepGemmOutputs}, many},
      {"llama-70b-2048", llama70b, {.sequence_len = 2048, .recompute = full}, many},
      {"smollm-135m-qv-batch8", small,
       {.lora_r = 8, .target_modules = {Module::kQ, Module::kV}, .sequence_len = 512,
        .micro_batch_size = 8, .recompute = full}, cpu},
      {"stories-260k-ref", stories, {.lora_r = 4, .sequence_len = 256, .recompute = full}, ref},
      {"qwen2.5-0.5b-int8", qwen2,
       {.quant = QuantKind::kINT8, .sequence_len = 1024, .recompute = full}, cpu},
      {"qwen3-4b-1024", qwen3, {.sequence_len = 1024, .recompute = full}, cpu},
      {"qwen3-4b-outputs-flat", qwen3,
       {.double_quant = false, .sequence_len = 1024, .recompute = Recompute::kKeepGemmOutputs}, cpu}};
}

// The figures people see, and a digest of where every buffer stands.
std::string GoldenText() {
  std::string text;
  for (const Golden& golden : Goldens()) {
    const auto spec = ResolveTrainSpec(golden.spec, golden.model);
    EXPECT_TRUE(spec.ok()) << golden.name << spec.status();
    const auto plan = CompilePlan(golden.model, *spec, golden.profile);
    EXPECT_TRUE(plan.ok()) << golden.name << plan.status();
    std::ostringstream buffers;
    for (const PlannedBuffer& b : plan->buffers) {
      buffers << b.name << ' ' << static_cast<int>(b.category) << ' ' << static_cast<int>(b.region)
              << ' ' << b.offset << ' ' << b.size_bytes << ' ' << b.first_use << ' ' << b.last_use
              << '\n';
    }
    text += std::string(golden.name) + " " + MemoryPlanToJson(*plan) + " " + Sha256Hex(buffers.str()) + "\n";
  }
  return text;
}

// After a change that is meant: NIBBLE_WRITE_GOLDEN=1 build/tests/spec_test.
TEST(GoldenPlans, AreTheSameBytesEverywhere) {
  const std::string path = SourceDir() + "/engine/testdata/golden_plans.txt";
  const std::string text = GoldenText();
  if (std::getenv("NIBBLE_WRITE_GOLDEN") != nullptr) std::ofstream(path) << text;
  std::ifstream in(path);
  const std::string golden((std::istreambuf_iterator<char>(in)), {});
  EXPECT_EQ(text, golden);
  EXPECT_EQ(text, GoldenText());
}

double Waste(const MemoryPlan& plan, int64_t of) {
  return static_cast<double>(plan.TotalBytes() - plan.lower_bound_bytes) / static_cast<double>(of);
}

TEST(Waste, IsAtMostOnePercentForPublishedShapes) {
  const char* data = std::getenv("NIBBLE_TEST_DATA");
  if (data == nullptr) GTEST_SKIP() << "NIBBLE_TEST_DATA is not set";
  int planned = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::string(data) + "/model-configs")) {
    std::ifstream in(entry.path());
    const std::string text((std::istreambuf_iterator<char>(in)), {});
    const auto model = ParseModelConfig(text);
    if (!model.ok()) continue;  // not a supported architecture, or no config
    for (const Recompute recompute :
         {Recompute::kNone, Recompute::kKeepGemmOutputs, Recompute::kFull}) {
      const auto spec = ResolveTrainSpec({.sequence_len = 512, .recompute = recompute}, *model);
      ASSERT_TRUE(spec.ok());
      const auto plan = CompilePlan(*model, *spec, DeviceProfile{});
      ASSERT_TRUE(plan.ok());
      EXPECT_LE(Waste(*plan, plan->TotalBytes()), 0.01) << entry.path();
      ++planned;
    }
  }
  EXPECT_GT(planned, 20);
}

TEST(Waste, IsAtMostEightPercentOfTheDynamicPartForRandomShapes) {
  Random random(3);
  for (int i = 0; i < 60; ++i) {
    const int64_t kv_heads = random.Between(1, 16);
    ModelConfig model =
        Shape(random.Chance(0.3) ? "qwen3" : "llama", random.Between(64, 6000), random.Between(64, 20000),
              random.Between(1, 24), kv_heads * random.Between(1, 6), kv_heads, 2 * random.Between(8, 64),
              random.Between(100, 200000), random.Chance(0.5));
    model.fused = random.Chance(0.3);
    TrainSpec given{.lora_r = static_cast<int32_t>(random.Between(1, 128)),
                    .sequence_len = static_cast<int32_t>(random.Between(64, 4096)),
                    .micro_batch_size = static_cast<int32_t>(random.Between(1, 4)),
                    .recompute = static_cast<Recompute>(random.Between(1, 3))};
    for (const Module module : ModulesOf(model)) {
      if (random.Chance(0.6)) given.target_modules.push_back(module);
    }
    const auto plan = CompilePlan(model, *ResolveTrainSpec(given, model), DeviceProfile{});
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_LE(Waste(*plan, plan->step_bytes), 0.08) << "case " << i;
  }
}

// What a search asks for is what the whole plan says, wherever it runs and whatever is moved to the host.
TEST(Totals, AreThoseOfTheWholePlan) {
  Random random(5);
  int owning = 0;
  for (int i = 0; i < 150; ++i) {
    const int64_t kv_heads = random.Between(1, 8);
    ModelConfig model =
        Shape(random.Chance(0.3) ? "qwen3" : "llama", random.Between(16, 3000), random.Between(16, 9000),
              random.Between(1, 20), kv_heads * random.Between(1, 6), kv_heads, 2 * random.Between(8, 64),
              random.Between(100, 200000), random.Chance(0.5));
    model.fused = random.Chance(0.3);
    TrainSpec given{.lora_r = static_cast<int32_t>(random.Between(1, 64)),
                    .quant = static_cast<QuantKind>(random.Below(5)),
                    .sequence_len = static_cast<int32_t>(random.Between(8, 3000)),
                    .optimizer = static_cast<OptimizerKind>(random.Below(2)),
                    .micro_batch_size = static_cast<int32_t>(random.Between(1, 4)),
                    .recompute = static_cast<Recompute>(random.Below(4)),
                    .base_cache = static_cast<BaseCache>(random.Below(4))};
    for (const Module module : ModulesOf(model)) {
      if (random.Chance(0.6)) given.target_modules.push_back(module);
    }
    DeviceProfile profile;
    profile.threads = static_cast<int32_t>(random.Between(1, 16));
    profile.fixed_bytes = 40'000'000;
    if (random.Chance(0.7)) profile.capacity_bytes = random.Between(100'000'000, 4'000'000'000);
    if (random.Chance(0.4)) {
      profile.backend = "cuda";
      given.paged_optimizer = random.Chance(0.3);
      given.offload_activations = random.Chance(0.3);
      if (given.offload_activations) given.recompute = Recompute::kFull;
    } else if (random.Chance(0.3)) {
      given.sequence_len = static_cast<int32_t>(random.Between(8, 32));  // activations of its own
    }
    if (given.recompute == Recompute::kFull && !given.offload_activations) {
      given.keep_blocks = static_cast<int32_t>(random.Below(static_cast<uint64_t>(model.layers)));
    }
    const auto spec = ResolveTrainSpec(given, model);
    ASSERT_TRUE(spec.ok()) << spec.status();
    const auto whole = CompilePlan(model, *spec, profile);
    const auto totals = PlanTotals(model, *spec, profile);
    ASSERT_TRUE(whole.ok() && totals.ok()) << whole.status() << totals.status();
    EXPECT_EQ(MemoryPlanToJson(*totals), MemoryPlanToJson(*whole)) << "case " << i;
    EXPECT_EQ(totals->operations, whole->operations);
    EXPECT_EQ(totals->device, whole->device);
    EXPECT_TRUE(totals->buffers.empty() && totals->phases.empty());
    for (const PlannedBuffer& b : whole->buffers) {
      owning += b.name == "layer0.x" && b.region == Region::kPersistent;
    }
  }
  EXPECT_GT(owning, 2);
}

// Anything a config.json may hold: what is not refused is planned without a sum that wraps.
TEST(Bounds, SizesNeverOverflow) {
  Random random(11);
  int refused = 0, planned = 0;
  const auto up_to = [&](int bits) {  // of every order of magnitude
    return int64_t{1} + static_cast<int64_t>(random.Below(uint64_t{1} << random.Between(1, bits)));
  };
  for (int i = 0; i < 300; ++i) {
    const int64_t kv_heads = up_to(5);
    ModelConfig model = Shape("qwen3", up_to(17), up_to(20), i % 50 == 0 ? 256 : up_to(3),
                              kv_heads * up_to(5), kv_heads, 2 * up_to(9), up_to(24), random.Chance(0.5));
    model.max_positions = 1 << 24;
    DeviceProfile profile;
    profile.threads = static_cast<int32_t>(up_to(16));
    profile.act_bytes = random.Chance(0.5) ? 2 : 8;
    const auto spec = ResolveTrainSpec({.lora_r = static_cast<int32_t>(std::min<int64_t>(256, up_to(8))),
                                        .sequence_len = static_cast<int32_t>(8 + up_to(23)),
                                        .micro_batch_size = static_cast<int32_t>(up_to(12)),
                                        .recompute = static_cast<Recompute>(random.Between(1, 3))},
                                       model);
    if (!spec.ok()) {
      EXPECT_EQ(StatusReason(spec.status()), Reason::kSpecInvalid);
      ++refused;
      continue;
    }
    const auto plan = CompilePlan(model, *spec, profile);
    if (!plan.ok()) {
      EXPECT_EQ(StatusReason(plan.status()), Reason::kExceedsDeviceMemory) << plan.status();
      ++refused;
      continue;
    }
    ++planned;
    long double named = 0;  // summed where nothing wraps
    for (const PlannedBuffer& b : plan->buffers) {
      const int64_t region = b.region == Region::kStep ? plan->step_bytes : plan->persistent_bytes;
      ASSERT_GT(b.size_bytes, 0) << b.name;
      ASSERT_GE(b.offset, 0) << b.name;
      ASSERT_LE(b.size_bytes, region) << b.name;
      ASSERT_LE(b.offset, region - b.size_bytes) << b.name;
      if (b.region == Region::kPersistent && b.last_use == 0) named += b.size_bytes;
    }
    EXPECT_LE(named, static_cast<long double>(plan->persistent_bytes));
    EXPECT_GT(plan->base_bytes, 0);
    EXPECT_GT(plan->TotalBytes(), plan->step_bytes);
    EXPECT_GE(plan->TotalBytes(), plan->lower_bound_bytes);
    EXPECT_GT(plan->lower_bound_bytes, 0);
  }
  EXPECT_GT(refused, 20);
  EXPECT_GT(planned, 20);
}

TEST(Bounds, AbsurdRecipesAreRefusedByField) {
  const ModelConfig model = Shape("llama", 64, 172, 5, 8, 4, 8, 512, true);
  constexpr int32_t kLow = std::numeric_limits<int32_t>::min(), kHigh = std::numeric_limits<int32_t>::max();
  for (const int32_t value : {kLow, -7, 0, kHigh}) {
    for (const TrainSpec& spec :
         {TrainSpec{.lora_r = value}, TrainSpec{.sequence_len = value}, TrainSpec{.micro_batch_size = value},
          TrainSpec{.gradient_accumulation_steps = value}, TrainSpec{.save_total_limit = value}}) {
      const auto resolved = ResolveTrainSpec(spec, model);
      EXPECT_EQ(StatusReason(resolved.status()), Reason::kSpecInvalid) << value;
    }
  }
  for (const char* json : {R"({"lora_r":1e30})", R"({"lora_r":99999999999})", R"({"seed":-1})",
                           R"({"micro_batch_size":2.5})", R"({"recompute":"most"})",
                           R"({"optimizer":"sgd"})", R"({"recompute":3})"}) {
    EXPECT_FALSE(TrainSpecFromJson(json).ok()) << json;
  }
}

}  // namespace
}  // namespace nibble::spec

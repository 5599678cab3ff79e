// What the plan says of the models people bring to a GPU. Planned bytes; what a driver reads beside them is
// for `./dev gpu`.
#include "base/error.h"
#include "engine/spec/compile_plan.h"
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
  spec.base_cache = BaseCache::kOff;
  const auto resolved = ResolveTrainSpec(spec, model);
  EXPECT_TRUE(resolved.ok()) << resolved.status();
  const auto plan = CompilePlan(model, *resolved, Cuda(capacity_gb));
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *plan;
}

TrainSpec Resolved(const ModelConfig& model, TrainSpec spec) {
  const auto resolved = ResolveTrainSpec(std::move(spec), model);
  EXPECT_TRUE(resolved.ok()) << resolved.status();
  return *resolved;
}

double WithoutContext(const MemoryPlan& plan) {
  return static_cast<double>(plan.DeviceBytes() - plan.fixed_bytes);
}

// The bounds are what docs/results/gpu-pending.md says, beside the goals.
TEST(CudaPlan, LargeModelsTakeWhatTheDocsSay) {
  EXPECT_LE(WithoutContext(PlanOf(Llama8B(), 1, 2048, Recompute::kFull)) / kGiB, 7.0);
  EXPECT_LE(WithoutContext(PlanOf(Llama8B(), 2, 2048, Recompute::kFull)) / kGiB, 7.9);
  EXPECT_LE(WithoutContext(PlanOf(Llama70B(), 1, 2048, Recompute::kFull)) / 1e9, 46.9);
}

// Wider heads are for the CPU's kernels alone: said before a device is taken.
TEST(CudaPlan, HeadsWiderThanItsKernelsTakeAreRefused) {
  ModelConfig model = Llama8B();
  model.head_dim = 256;
  const auto resolved = ResolveTrainSpec({}, model);
  ASSERT_TRUE(resolved.ok()) << resolved.status();
  EXPECT_TRUE(CompilePlan(model, *resolved, Cuda(140)).ok());
  model.head_dim = 258;
  const absl::Status refused = CompilePlan(model, *resolved, Cuda(140)).status();
  EXPECT_EQ(StatusReason(refused), Reason::kUnsupportedArchitecture);
  EXPECT_NE(refused.message().find("258 wide"), std::string::npos) << refused;
  DeviceProfile cpu;
  cpu.backend = "cpu";
  EXPECT_TRUE(CompilePlan(model, *resolved, cpu).ok());
  model.head_dim = 128;
  model.hidden_size = 16384;
  EXPECT_TRUE(CompilePlan(model, *resolved, Cuda(140)).ok());
  model.hidden_size = 16392;
  const absl::Status wide = CompilePlan(model, *resolved, Cuda(140)).status();
  EXPECT_EQ(StatusReason(wide), Reason::kUnsupportedArchitecture);
  EXPECT_NE(wide.message().find("16392 wide"), std::string::npos) << wide;
  EXPECT_TRUE(CompilePlan(model, *resolved, cpu).ok());
}

// As many tokens as a launch can count what it has of them: of an 8B a million, whose queries turn in 2048
// pairs.
TEST(CudaPlan, MicroBatchesThatNoLaunchCountsAreRefused) {
  const auto plan_of = [](const ModelConfig& model, int32_t rows, const DeviceProfile& profile) {
    const TrainSpec spec = Resolved(model, {.sequence_len = 2048, .micro_batch_size = rows});
    return CompilePlan(model, spec, profile).status();
  };
  EXPECT_TRUE(plan_of(Llama8B(), 511, Cuda(140)).ok());
  const absl::Status refused = plan_of(Llama8B(), 512, Cuda(140));
  EXPECT_EQ(StatusReason(refused), Reason::kSpecInvalid);
  EXPECT_NE(refused.message().find("1048576 tokens; a GPU takes at most 1048575"), std::string::npos)
      << refused;
  EXPECT_TRUE(plan_of(Llama8B(), 512, DeviceProfile{}).ok());
  ModelConfig wide = Llama8B();  // a gate's eights are more than that
  wide.heads = wide.kv_heads = 1;
  wide.intermediate_size = 131072;
  EXPECT_TRUE(plan_of(wide, 63, Cuda(140)).ok());
  EXPECT_FALSE(plan_of(wide, 64, Cuda(140)).ok());
}

// Bounds of device memory without the context: with 8-bit moments; the 65B shape with its moments paged; the
// others with 32-bit moments, too, where the inputs of blocks wait on the host (70B also where they do not).
TEST(CudaPlan, FootprintGoalsAreMet) {
  ModelConfig llama7b = Llama8B();
  llama7b.intermediate_size = 11008;
  llama7b.kv_heads = 32;
  llama7b.vocab_size = 32000;
  ModelConfig llama2_70b = Llama70B();
  llama2_70b.vocab_size = 32000;
  ModelConfig llama65b = llama2_70b;
  llama65b.intermediate_size = 22016;
  llama65b.kv_heads = 64;
  struct Moments {
    OptimizerKind optimizer = OptimizerKind::kAdamW8bit;
    bool paged = false;
    bool offloads = false;
  };
  const auto bytes = [](const ModelConfig& model, int32_t r, int32_t length, const Moments& moments) {
    const TrainSpec spec = Resolved(model, {.lora_r = r,
                                            .sequence_len = length,
                                            .optimizer = moments.optimizer,
                                            .paged_optimizer = moments.paged,
                                            .offload_activations = moments.offloads,
                                            .recompute = Recompute::kFull,
                                            .base_cache = BaseCache::kOff});
    const auto plan = CompilePlan(model, spec, Cuda(140));
    EXPECT_TRUE(plan.ok()) << plan.status();
    return WithoutContext(*plan);
  };
  const Moments offloads{OptimizerKind::kAdamW, false, true};
  for (const Moments& moments : {Moments{}, offloads}) {
    EXPECT_LE(bytes(llama7b, 16, 2048, moments), 5.45e9);
    EXPECT_LE(bytes(Llama8B(), 16, 2048, moments), 7.4e9);
    EXPECT_LE(bytes(llama2_70b, 16, 2048, moments), 43.6e9);
  }
  EXPECT_LE(bytes(llama2_70b, 16, 2048, {OptimizerKind::kAdamW}), 43.6e9);
  EXPECT_LE(bytes(llama65b, 64, 512, {OptimizerKind::kAdamW8bit, true}), 44.0e9);
}

// With what the host holds for the device.
TEST(CudaPlan, OffloadAndPagingTakeWhatTheDocsSay) {
  TrainSpec spec;
  spec.micro_batch_size = 2;
  spec.sequence_len = 2048;
  spec.offload_activations = true;
  spec.optimizer = OptimizerKind::kAdamW8bit;
  MemoryPlan plan = *CompilePlan(Llama8B(), Resolved(Llama8B(), spec), Cuda(140));
  EXPECT_LE(WithoutContext(plan) / kGiB, 7.0);
  // 31 inputs of blocks, and staging.
  EXPECT_GE(plan.pinned_bytes, int64_t{31} * 2 * 2048 * 4096 * 2);
  EXPECT_LE(plan.pinned_bytes, (int64_t{31} * 2 * 2048 * 4096 * 2) + (1 << 20));
  spec.micro_batch_size = 1;
  for (const OptimizerKind optimizer : {OptimizerKind::kAdamW8bit, OptimizerKind::kAdamW}) {
    spec.optimizer = optimizer;
    spec.paged_optimizer = optimizer == OptimizerKind::kAdamW;
    plan = *CompilePlan(Llama70B(), Resolved(Llama70B(), spec), Cuda(140));
    EXPECT_LE(WithoutContext(plan) / 1e9, 43.6);
  }
}

// A decoded base is kept where a quarter of the memory stays free; it is two bytes a weight, to the byte.
TEST(CudaPlan, ADecodedBaseIsKeptWhereItLeavesRoom) {
  TrainSpec spec = Resolved(Llama8B(), {.sequence_len = 2048, .recompute = Recompute::kFull});
  const auto plan_on = [&](double capacity_gb, BaseCache cache) {
    spec.base_cache = cache;
    return *CompileForEngine(Llama8B(), spec, Cuda(capacity_gb));
  };
  const CompiledPlan off = plan_on(24, BaseCache::kOff), on = plan_on(24, BaseCache::kOn);
  EXPECT_EQ(on.memory.DeviceBytes() - off.memory.DeviceBytes(), 2 * Llama8B().LinearParameters());
  EXPECT_EQ(plan_on(140, BaseCache::kAuto).base_cache, BaseCache::kOn);
  EXPECT_EQ(plan_on(24, BaseCache::kAuto).base_cache, BaseCache::kOff);
  spec.paged_optimizer = true;
  EXPECT_EQ(plan_on(140, BaseCache::kAuto).base_cache, BaseCache::kOff);
  spec.quant = QuantKind::kBF16;
  EXPECT_EQ(plan_on(140, BaseCache::kOn).base_cache, BaseCache::kOff);
}

// What is said of a plan is what it was made with there, not what was asked for.
TEST(CudaPlan, SaysWhatItWasMadeWith) {
  ModelConfig small = Llama8B();
  small.layers = 4;
  TrainSpec spec = Resolved(small, {.sequence_len = 1000});
  const auto choices = [&](const ModelConfig& model, const DeviceProfile& profile) {
    return CompilePlan(model, spec, profile)->choices;
  };
  EXPECT_EQ(choices(small, Cuda(140)), (PlanChoices{Recompute::kNone, BaseCache::kOn, false, false, true}));
  EXPECT_EQ(PlanTotals(small, spec, Cuda(140))->choices, choices(small, Cuda(140)));
  spec.paged_optimizer = spec.offload_activations = true;
  spec.recompute = Recompute::kFull;
  EXPECT_EQ(choices(small, Cuda(140)), (PlanChoices{Recompute::kFull, BaseCache::kOff, true, true, true}));
  DeviceProfile host;
  host.capacity_bytes = int64_t{64} << 30;
  EXPECT_EQ(choices(small, host), (PlanChoices{Recompute::kFull, BaseCache::kOff, false, false, false}));
}

// Two tiles in place of a panel in the workspace of every linear: where one of these takes the most, decoding
// ahead costs one tile, else at most both.
TEST(CudaPlan, DecodingAheadCostsTwoTilesAtMost) {
  TrainSpec spec = Resolved(Llama8B(), {.sequence_len = 2048, .recompute = Recompute::kFull});
  spec.base_cache = BaseCache::kOff;
  const CompiledPlan off = *CompileForEngine(Llama8B(), spec, Cuda(24));
  spec.base_cache = BaseCache::kAhead;
  const CompiledPlan ahead = *CompileForEngine(Llama8B(), spec, Cuda(24));
  EXPECT_EQ(ahead.base_cache, BaseCache::kAhead);
  constexpr int64_t kTile = int64_t{28672} * 1024 * 2;  // of gate and up
  EXPECT_EQ(ahead.persistent.tile_bytes, kTile);
  EXPECT_EQ(ahead.memory.persistent_bytes - off.memory.persistent_bytes, 2 * kTile);
  EXPECT_LE(ahead.memory.step_bytes, off.memory.step_bytes);
  // What is read next: after the first block's q, k and v its o; after the last product nothing.
  EXPECT_EQ(ahead.next_weights[2].count, 1);
  EXPECT_EQ(ahead.next_weights[2].first, Module::kO);
  EXPECT_FALSE(ahead.next_weights[2].backward);
  EXPECT_EQ(ahead.next_weights[static_cast<size_t>(ahead.optimizer_op) - 1].count, 0);
}

// Small models with packing are padded, so that they can be recorded; a choice stands.
TEST(CudaPlan, SmallModelsArePadded) {
  ModelConfig small = Llama8B();
  small.layers = 4;
  TrainSpec spec = Resolved(small, {.sequence_len = 1000});
  EXPECT_TRUE(CompileForEngine(small, spec, Cuda(140))->pads);
  EXPECT_FALSE(CompileForEngine(small, spec, DeviceProfile{})->pads);
  EXPECT_FALSE(CompileForEngine(Llama8B(), spec, Cuda(140))->pads);
  spec.graphs = Graphs::kOff;
  EXPECT_FALSE(CompileForEngine(small, spec, Cuda(140))->pads);
  EXPECT_EQ(PaddedTokens(spec, 1), 128);
  EXPECT_EQ(PaddedTokens(spec, 897), 1000);
  EXPECT_EQ(PaddedTokens(spec, 1000), 1000);
}

// Where micro-batches can be recorded, what the driver takes for one is planned beside the job's region; and
// a region is whole pieces of what a driver gives.
TEST(CudaPlan, RecordingsAreInThePlan) {
  ModelConfig small = Llama8B();
  small.layers = 4;
  TrainSpec spec = Resolved(small, {.sequence_len = 1000, .recompute = Recompute::kFull});
  const auto plan_of = [&](const DeviceProfile& profile) { return *CompilePlan(small, spec, profile); };
  const MemoryPlan on = plan_of(Cuda(140));
  constexpr int64_t kMiB = 1 << 20;
  EXPECT_GT(on.recording_bytes, 4 * kMiB);
  EXPECT_LT(on.recording_bytes, 16 * kMiB);
  EXPECT_EQ(on.PersistentRegionBytes() % (2 * kMiB), 0);
  int64_t named = 0;
  for (const PlannedBuffer& b : on.buffers) {
    if (b.name != "recordings") continue;
    EXPECT_EQ(b.offset, on.PersistentRegionBytes());
    EXPECT_EQ(b.offset + b.size_bytes, on.persistent_bytes);
    named += b.size_bytes;
  }
  EXPECT_EQ(named, on.recording_bytes);
  spec.graphs = Graphs::kOff;
  const MemoryPlan off = plan_of(Cuda(140));
  EXPECT_EQ(off.recording_bytes, 0);
  EXPECT_EQ(off.persistent_bytes, off.PersistentRegionBytes());
  spec.graphs = Graphs::kOn;
  spec.offload_activations = true;  // nothing is recorded then
  EXPECT_EQ(plan_of(Cuda(140)).recording_bytes, 0);
  spec.offload_activations = false;
  EXPECT_EQ(plan_of(DeviceProfile{}).recording_bytes, 0);
  DeviceProfile fp16 = Cuda(140);  // which converts the head by panels
  fp16.converts_head = true;
  EXPECT_GT(plan_of(fp16).recording_bytes, on.recording_bytes);
}

// Paging takes the moments out of the persistent region and puts two chunks into the step, where there is
// room for them beside nothing else; offloading leaves two inputs of blocks where there were all.
TEST(CudaPlan, OffloadAndPagingMoveBytesToPinnedMemory) {
  TrainSpec spec;
  spec.sequence_len = 1024;
  spec.recompute = Recompute::kFull;
  spec.base_cache = BaseCache::kOff;
  const auto plan_of = [&](bool paged, bool offload, const DeviceProfile& profile) {
    TrainSpec asked = spec;
    asked.paged_optimizer = paged;
    asked.offload_activations = offload;
    return *CompilePlan(Llama8B(), Resolved(Llama8B(), asked), profile);
  };
  const MemoryPlan plain = plan_of(false, false, Cuda(140));
  const MemoryPlan paged = plan_of(true, false, Cuda(140));
  const MemoryPlan offload = plan_of(false, true, Cuda(140));
  const MemoryPlan both = plan_of(true, true, Cuda(140));
  const int64_t moments = 8 * int64_t{41'943'040};
  const int64_t input = int64_t{1024} * 4096 * 2;
  EXPECT_EQ(plain.persistent_bytes - paged.persistent_bytes, moments);
  EXPECT_EQ(paged.step_bytes, plain.step_bytes);
  EXPECT_EQ(paged.pinned_bytes - plain.pinned_bytes, moments);
  EXPECT_EQ(offload.pinned_bytes - plain.pinned_bytes, 31 * input);
  EXPECT_EQ(offload.persistent_bytes, plain.persistent_bytes);
  EXPECT_LE(offload.step_bytes, plain.step_bytes - 28 * input);
  EXPECT_EQ(both.pinned_bytes - plain.pinned_bytes, moments + 31 * input);
  EXPECT_EQ(both.host_bytes, plain.host_bytes - moments) << "a checkpoint needs no copy of them";
  // On the host both are nothing.
  DeviceProfile cpu;
  cpu.capacity_bytes = int64_t{140} << 30;
  EXPECT_EQ(plan_of(true, true, cpu).TotalBytes(), plan_of(false, false, cpu).TotalBytes());
  EXPECT_EQ(plan_of(true, true, cpu).pinned_bytes, 0);
}

TEST(CudaPlan, EachComponentFitsApart) {
  const MemoryPlan plan = PlanOf(Llama8B(), 1, 2048, Recompute::kFull);
  DeviceProfile profile = Cuda(140);
  EXPECT_TRUE(plan.Fits(profile));
  profile.pinned_capacity_bytes = plan.pinned_bytes;
  profile.host_capacity_bytes = plan.host_bytes;
  EXPECT_TRUE(plan.Fits(profile));
  --profile.pinned_capacity_bytes;
  EXPECT_FALSE(plan.Fits(profile));
  ++profile.pinned_capacity_bytes;
  --profile.host_capacity_bytes;
  EXPECT_FALSE(plan.Fits(profile));
  ++profile.host_capacity_bytes;
  profile.capacity_bytes = plan.DeviceBytes() - 1;
  EXPECT_FALSE(plan.Fits(profile));
}

TEST(CudaPlan, OffloadingNeedsFullRecomputation) {
  TrainSpec spec;
  spec.offload_activations = true;
  EXPECT_EQ(Resolved(Llama8B(), spec).recompute, Recompute::kFull);
  spec.recompute = Recompute::kNone;
  const auto refused = ResolveTrainSpec(spec, Llama8B());
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.status().message().find("offload_activations"), std::string::npos);
}

// docs/recipes.md: 8B on a 15 GB card of compute capability 7.5, whose activations are fp16.
TEST(CudaPlan, AnEightBillionModelFitsAFifteenGigabyteCard) {
  TrainSpec spec;
  spec.sequence_len = 2048;
  spec.micro_batch_size = 1;
  DeviceProfile card = Cuda(15);
  card.body = "sm_75";
  card.converts_head = true;
  spec = Resolved(Llama8B(), spec);
  MemoryPlan plan = *CompilePlan(Llama8B(), spec, card);
  EXPECT_LE(plan.DeviceBytes(), 15'000'000'000);
  EXPECT_EQ(plan.TotalBytes(), plan.DeviceBytes());
  EXPECT_GT(plan.pinned_bytes, 0);
  spec.recompute = Recompute::kFull;
  plan = *CompilePlan(Llama8B(), spec, card);
  EXPECT_LE(plan.DeviceBytes(), 8'300'000'000);
  // The head's panel is the only difference to bf16.
  card.converts_head = false;
  EXPECT_LT(CompilePlan(Llama8B(), spec, card)->DeviceBytes(), plan.DeviceBytes());
}

}  // namespace
}  // namespace nibble::spec

// Planned = reserved = used, to the byte, for random models and recipes.
//
// Used is measured by code that does not read the plan: a kernel table that notes which memory every op is
// handed, the kernel's count of touched pages, red zones between buffers, and a malloc that counts.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <sstream>

#include "base/random.h"
#include "engine/spec/rope.h"
#include "engine/testing/malloc_count.h"
#include "engine/testing/recording_table.h"
#include "engine/testing/tiny_model.h"
#include "gtest/gtest.h"
#include "kernels/tables.h"

namespace nibble::engine {
namespace {

using spec::QuantKind;
using spec::Recompute;
using testing::StepRig;
using testing::TinyModel;

constexpr int64_t kPage = 4096;

struct Case {
  spec::ModelConfig model;
  spec::TrainSpec spec;
  const kernels::KernelTable* table = nullptr;
  int threads = 1;
  uint64_t seed = 0;

  std::string ToText() const {
    std::ostringstream out;
    out << "seed " << seed << ": " << table->name << "/" << table->body << " threads " << threads
        << " hidden " << model.hidden_size << " ffn " << model.intermediate_size << " layers "
        << model.layers << " heads " << model.heads << "/" << model.kv_heads << "x"
        << model.head_dim << " vocab " << model.vocab_size << " "
        << spec::TrainSpecToJson(spec);
    return out.str();
  }
};

Case RandomCase(uint64_t seed) {
  Random random(seed);
  Case c;
  c.seed = seed;
  spec::ModelConfig& m = c.model;
  m.model_type = "llama";
  m.kv_heads = random.Between(1, 3);
  m.heads = m.kv_heads * random.Between(1, 3);
  m.head_dim = 2 * random.Between(1, 20);
  m.hidden_size = random.Between(8, 100);
  m.intermediate_size = random.Between(8, 160);
  m.layers = random.Between(1, 4);
  m.vocab_size = random.Between(8, 400);
  m.max_positions = 128;
  m.qkv_bias = random.Chance(0.3);
  m.qk_norm = random.Chance(0.3);
  m.tie_word_embeddings = random.Chance(0.5);
  m.sliding_window = random.Chance(0.3) ? random.Between(1, 40) : 0;
  m.gelu = random.Chance(0.3);
  m.unit_norms = random.Chance(0.3);
  m.scaled_embedding = random.Chance(0.3);
  m.post_norms = random.Chance(0.3);
  m.attention_soft_cap = random.Chance(0.3) ? 20 : 0;
  m.logit_soft_cap = random.Chance(0.3) ? 10 : 0;
  m.local_rope_theta = random.Chance(0.3) ? 100 : 0;
  m.rotary_dim = random.Chance(0.3) ? 2 * random.Between(1, m.head_dim / 2) : 0;
  if (m.local_rope_theta == 0 && random.Chance(0.3)) {
    m.rope = spec::RopeKind::kLong;
    m.rope_original_positions = random.Between(2, 70);
    m.rope_short_factors.assign(static_cast<size_t>(m.RotaryWidth() / 2), 1);
    m.rope_long_factors.assign(static_cast<size_t>(m.RotaryWidth() / 2), 3);
  }
  for (int64_t layer = 0; m.local_rope_theta > 0 && layer < m.layers; ++layer)
    m.slides.push_back(random.Chance(0.5));
  m.fused = random.Chance(0.3);
  const bool some_turn = random.Chance(0.2);
  for (int64_t layer = 0; some_turn && layer < m.layers; ++layer) m.turns.push_back(random.Chance(0.5));
  // Where no layer turned, no operation would be handed the positions, which the plan has.
  if (some_turn && std::ranges::find(m.turns, true) == m.turns.end()) m.turns.back() = true;
  spec::TrainSpec& s = c.spec;
  s.lora_r = static_cast<int32_t>(random.Between(1, 40));
  s.lora_dropout = random.Chance(0.5) ? 0.1 : 0;
  for (const spec::Module module : spec::ModulesOf(m)) {
    if (random.Chance(0.6)) s.target_modules.push_back(module);
  }
  s.quant = static_cast<QuantKind>(random.Below(5));
  s.double_quant = random.Chance(0.5);
  s.sequence_len = static_cast<int32_t>(random.Between(8, 70));
  s.micro_batch_size = static_cast<int32_t>(random.Between(1, 3));
  s.gradient_accumulation_steps = static_cast<int32_t>(random.Between(1, 3));
  s.optimizer = static_cast<spec::OptimizerKind>(random.Below(2));
  constexpr Recompute kPolicies[] = {Recompute::kNone, Recompute::kKeepGemmOutputs,
                                     Recompute::kFull};
  s.recompute = kPolicies[random.Below(3)];
  if (s.recompute == Recompute::kFull) {
    s.keep_blocks = static_cast<int32_t>(random.Below(static_cast<uint64_t>(m.layers)));
  }
  const auto bodies = kernels::CpuBodies();
  c.table = random.Chance(0.3) ? &kernels::RefTable()
                               : kernels::CpuTableFor(bodies[random.Below(bodies.size())]);
  c.threads = static_cast<int>(random.Between(1, 3));
  return c;
}

// Documents that fill the micro-batch: as long as can be, or of one token each, so that every buffer
// is filled to its end by one or the other.
MicroBatch FullBatch(const Case& c, bool long_ones, uint64_t seed) {
  const int length = long_ones ? c.spec.sequence_len : 1;
  const int count = c.spec.sequence_len * c.spec.micro_batch_size / length;
  MicroBatch batch =
      testing::RandomBatch(std::vector<int>(static_cast<size_t>(count), length), c.model.vocab_size, seed);
  for (int32_t& position : batch.positions) position += spec::RopeFirstRow(c.model, length);
  return batch;
}

// A whole step and an evaluation; nothing may be allocated meanwhile.
void RunStep(StepRig& rig, const Case& c, const MicroBatch (&batches)[2]) {
  const int64_t accumulation = c.spec.gradient_accumulation_steps;
  testing::StartMallocCount();
  for (int64_t step = 1; step <= 2; ++step) {
    rig.executor().ZeroGradients();
    for (int64_t i = 0; i < accumulation; ++i) {
      rig.executor().Queue(batches[(i + step) % 2], 0.1, step, i);
    }
    rig.executor().Optimize(1e-3, step, accumulation);
  }
  for (int64_t i = 0; i < accumulation; ++i) rig.executor().QueueEvaluation(batches[i % 2], i);
  rig.executor().Losses(accumulation);
  const int64_t calls = testing::StopMallocCount();
  EXPECT_TRUE(calls == 0 || !testing::MallocCountWorks()) << calls << " allocations";
}

// What no buffer of `region` ever covers.
std::vector<char> Uncovered(const spec::MemoryPlan& plan, spec::Region region, int64_t bytes) {
  std::vector<char> free(static_cast<size_t>(bytes), 1);
  for (const spec::PlannedBuffer& b : plan.buffers) {
    if (b.region == region) std::fill_n(free.begin() + b.offset, b.size_bytes, 0);
  }
  return free;
}

void CheckRedZones(const Case& c, const TinyModel& model, const MicroBatch (&batches)[2]) {
  constexpr int64_t kRedZone = 128;
  StepRig rig(*c.table, model, c.spec, c.threads, kRedZone);
  const spec::MemoryPlan& plan = rig.plan().memory;
  const auto step_free = Uncovered(plan, spec::Region::kStep, plan.step_bytes);
  const auto kept_free = Uncovered(plan, spec::Region::kPersistent, plan.persistent_bytes);
  const auto fill = [](Region& region, const std::vector<char>& free) {
    for (size_t i = 0; i < free.size(); ++i) {
      if (free[i]) region.data()[i] = std::byte{0x5A};
    }
  };
  fill(rig.step(), step_free);
  fill(rig.persistent(), kept_free);
  RunStep(rig, c, batches);
  int64_t broken = 0;
  const auto count = [&](Region& region, const std::vector<char>& free) {
    for (size_t i = 0; i < free.size(); ++i) {
      broken += free[i] && region.data()[i] != std::byte{0x5A};
    }
  };
  count(rig.step(), step_free);
  count(rig.persistent(), kept_free);
  EXPECT_EQ(broken, 0);
}

void CheckExact(const Case& c, const TinyModel& model, const MicroBatch (&batches)[2]) {
  StepRig rig(testing::RecordingTable(*c.table), model, c.spec, c.threads);
  const spec::MemoryPlan& plan = rig.plan().memory;
  EXPECT_EQ(rig.step().mapped_bytes(), plan.step_bytes);
  EXPECT_EQ(rig.persistent().mapped_bytes(), plan.persistent_bytes);
  testing::Watch(rig.step().data(), plan.step_bytes, rig.persistent().data(),
                 plan.persistent_bytes);
  RunStep(rig, c, batches);
  const auto pages = [](int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; };
  EXPECT_GT(testing::OpsSeen(), 0);
  EXPECT_EQ(testing::Overruns(), 0);
  EXPECT_EQ(pages(testing::HighWater(0)), plan.step_bytes);
  EXPECT_EQ(pages(testing::HighWater(1)), plan.persistent_bytes);
  // Every page of what lasts is in use; of the step's, those of workspace an op did not need are not.
  EXPECT_EQ(rig.persistent().TouchedBytes(), plan.persistent_bytes);
  EXPECT_LE(rig.step().TouchedBytes(), plan.step_bytes);
}

TEST(Exactness, PlannedIsReservedIsUsedForRandomModelsAndRecipes) {
  const char* full = std::getenv("NIBBLE_FULL");
  const uint64_t cases = full != nullptr && std::string(full) == "1" ? 1000 : 100;
  int64_t policies[4] = {}, quants[5] = {}, optimizers[2] = {};
  for (uint64_t seed = 1; seed <= cases && !HasFailure(); ++seed) {
    const Case c = RandomCase(seed);
    SCOPED_TRACE(c.ToText());
    ++policies[static_cast<int>(c.spec.recompute)];
    ++quants[static_cast<int>(c.spec.quant)];
    ++optimizers[static_cast<int>(c.spec.optimizer)];
    const TinyModel model(c.model, c.spec.quant, c.spec.double_quant, seed);
    const MicroBatch batches[] = {FullBatch(c, true, seed), FullBatch(c, false, seed + 1)};
    CheckExact(c, model, batches);
    CheckRedZones(c, model, batches);
  }
  // The cases are as different as they should be.
  for (int i = 1; i < 4; ++i) EXPECT_GT(policies[i], 0);
  for (const int64_t count : quants) EXPECT_GT(count, 0);
  for (const int64_t count : optimizers) EXPECT_GT(count, 0);
}

}  // namespace
}  // namespace nibble::engine

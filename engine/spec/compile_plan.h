// The plan as the engine runs it: offsets by tensor key and by operation number.
//
// MemoryPlan is what people and the scheduler see of it; this is the same plan with the tables that
// the engine's executor looks up without strings. A value; pure.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/spec/adapter_layout.h"
#include "engine/spec/host_memory.h"
#include "engine/spec/memory_plan.h"
#include "engine/spec/workspace.h"

namespace nibble::spec {

// Offsets in the persistent region, bytes.
struct PersistentLayout {
  int64_t master = 0;    // real [elements]
  int64_t compute = 0;   // act [elements]
  int64_t gradient = 0;  // real [elements]
  // The moments, unless they are paged (host_memory.h):
  int64_t moment1 = 0;   // real [elements]; u8 with 8-bit moments
  int64_t moment2 = 0;
  // With 8-bit moments only:
  int64_t absmax1 = 0;   // f32 [elements / kMomentBlock]
  int64_t absmax2 = 0;
  int64_t maps = 0;      // f32 [2, 256]: signed, unsigned
  int64_t decoded = -1;  // act, every linear of the base (DecodedOffset); -1 = not kept
  int64_t tiles = -1;    // two, tile_bytes each (BaseCache::kAhead); -1 = none
  int64_t tile_bytes = 0;
  // Of a plan that pads: u64 bits of the dropout stream, f64 scale of the gradients, f64 loss, all of the
  // micro-batch under way.
  int64_t late = -1;
  int64_t rope = 0;  // f32, RopeTable of sequence_len
  // f64 [gradient_accumulation_steps + 1]: a loss per micro-batch, the sum of squares of the gradients
  int64_t scalars = 0;
  int64_t activations = -1;  // the tensors of the step; -1 = they are in the step region
};

// On the host a job of at most this many tokens a micro-batch keeps the tensors of its step to itself, if
// they take at most half of what is persistent anyway. Then it shares only the workspace, and its step can
// go beside those of others (engine/fused_turn.h) within base + sum(persistent) + max(step). Longer micro-
// batches would gain little: docs/results/2026-11-22-shared.md.
inline constexpr int64_t kFusedTokens = 128;

// Where in `decoded` a layer's matrix begins, bytes; one layer's are one behind the other.
int64_t DecodedOffset(const ModelConfig& model, int64_t layer, Module module, int64_t act_bytes);

struct CompiledPlan {
  MemoryPlan memory;
  Recomputation recompute;                 // of the spec, or chosen
  BaseCache base_cache = BaseCache::kOff;  // likewise; kOn: `persistent.decoded` is there
  // Micro-batches are padded to one of a few lengths, so that they can be recorded (Graphs in train_spec.h).
  bool pads = false;
  AdapterLayout adapters;
  PersistentLayout persistent;
  PinnedLayout pinned;
  bool paged = false;      // the moments are in pinned memory
  bool offloaded = false;  // the inputs of blocks are
  // By TensorKey::Index; -1 = unused. In the step region, or from persistent.activations on.
  std::vector<int64_t> tensor_offset;
  std::vector<int64_t> workspace_offset;  // by operation number
  std::vector<int64_t> workspace_bytes;
  // The layers whose weights the next operation reads that reads any in this walk, by operation number; of
  // linears only.
  std::vector<LinearUse> next_weights;
  bool grouped = false;    // layers of one input are one operation (step.h)
  int32_t optimizer_op = 0;  // number of the optimizer's first operation; training is 0
  int32_t evaluate_op = 0;
};

// Of the rows a job keeps of its steps and evaluations, for its checkpoints and its adapter: 128 bytes each,
// in blocks of a MiB, none of a few thousand steps.
int64_t HistoryBytes(const TrainSpec& spec);

// What the kernels of a device were not made for, whatever its memory: UNSUPPORTED_ARCHITECTURE for widths of
// the model, and the most tokens of it at once.
absl::Status CheckWidths(const ModelConfig& model, const DeviceProfile& profile);
int64_t MostTokens(const ModelConfig& model, const DeviceProfile& profile);

// Tokens of a padded micro-batch: one of about eight lengths up to the room.
int64_t PaddedTokens(const TrainSpec& spec, int64_t tokens);

struct CompileOptions {
  int64_t red_zone_bytes = 0;  // tests: untouched bytes behind every buffer; multiple of 64
  bool totals_only = false;    // PlanTotals: the tables by tensor and operation stay empty
};

absl::StatusOr<CompiledPlan> CompileForEngine(const ModelConfig& model, const TrainSpec& spec,
                                              const DeviceProfile& profile,
                                              const CompileOptions& options = {});

}  // namespace nibble::spec

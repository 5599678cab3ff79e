// What a device's job keeps in page-locked host memory: batches on their way, results read back, and by
// choice the optimizer's moments (paged) and the inputs of blocks (offloaded).
//
// The copies run on our own schedule beside the computation (step.h, KernelExecutor::AdamW), so they are
// in the plan like everything else. On the host both choices change nothing. Pure.
#pragma once

#include <cstdint>

#include "engine/spec/adapter_layout.h"
#include "engine/spec/memory_plan.h"

namespace nibble::spec {

// Whether the choice of the spec is in force on such a device.
bool Paged(const TrainSpec& spec, const DeviceProfile& profile);
bool Offloaded(const TrainSpec& spec, const DeviceProfile& profile);

// How paged moments pass through the device: a chunk holds those of `elements` parameters, first m, then v,
// and with 8-bit moments the scales of both. Multiples of kMomentBlock, so that no block is cut.
struct MomentChunk {
  int64_t elements = 0;
  int64_t bytes = 0;
};
MomentChunk ChunkOf(const TrainSpec& spec, int64_t adapter_elements);

// Bytes of both moments, of the 8-bit ones with their scales, of so many parameters (fp32 otherwise).
int64_t MomentBytes(const TrainSpec& spec, int64_t elements);

// One allocation; offsets in it, each a multiple of 256.
struct PinnedLayout {
  int64_t scalars = 0;  // f64, as on the device: losses, the sum of squares
  int64_t staging = 0;  // StagingSets batches
  // Only what is paged:
  int64_t moment1 = 0;
  int64_t moment2 = 0;
  int64_t absmax1 = 0;
  int64_t absmax2 = 0;
  // Only what is offloaded: act [tokens, hidden] of each layer but the top one, `input_stride` apart.
  int64_t inputs = 0;
  int64_t input_stride = 0;
  int64_t total_bytes = 0;
};

// Micro-batches on their way at once: those of a step, up to sixteen, so that the host does not wait in it.
int64_t StagingSets(const TrainSpec& spec);
int64_t StagingBytes(const TrainSpec& spec);        // ids, labels, positions, document bounds of one
int64_t ScalarBytes(const TrainSpec& spec);         // a loss per micro-batch, the sum of squares

// On the host there are the scalars alone.
PinnedLayout LayoutPinned(const ModelConfig& model, const TrainSpec& spec, const DeviceProfile& profile,
                          int64_t adapter_elements);

}  // namespace nibble::spec

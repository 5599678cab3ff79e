#include "engine/spec/host_memory.h"

#include <algorithm>

#include "engine/spec/round.h"
#include "engine/spec/workspace.h"

namespace nibble::spec {
namespace {

// 16 MiB in each direction with fp32 moments: long enough for a bus, short beside any model.
constexpr int64_t kChunkElements = int64_t{1} << 20;

}  // namespace

bool Paged(const TrainSpec& spec, const DeviceProfile& profile) {
  return spec.paged_optimizer && IsCuda(profile);
}
bool Offloaded(const TrainSpec& spec, const DeviceProfile& profile) {
  return spec.offload_activations && IsCuda(profile);
}

int64_t MomentBytes(const TrainSpec& spec, int64_t elements) {
  if (spec.optimizer != OptimizerKind::kAdamW8bit) return 2 * 4 * elements;
  return 2 * (elements + elements / kMomentBlock * 4);
}

MomentChunk ChunkOf(const TrainSpec& spec, int64_t adapter_elements) {
  static_assert(kChunkElements % kMomentBlock == 0);
  MomentChunk chunk;
  chunk.elements = std::min(kChunkElements, RoundUp(adapter_elements, kMomentBlock));
  chunk.bytes = RoundUp(MomentBytes(spec, chunk.elements), 256);
  return chunk;
}

int64_t StagingSets(const TrainSpec& spec) {
  return std::clamp<int64_t>(spec.gradient_accumulation_steps, 2, 16);
}
int64_t StagingBytes(const TrainSpec& spec) {
  return (4 * int64_t{spec.micro_batch_size} * spec.sequence_len + 1) * 4;
}
int64_t ScalarBytes(const TrainSpec& spec) {
  return 8 * (int64_t{spec.gradient_accumulation_steps} + 1);
}

PinnedLayout LayoutPinned(const ModelConfig& model, const TrainSpec& spec, const DeviceProfile& profile,
                          int64_t adapter_elements) {
  PinnedLayout layout;
  int64_t next = 0;
  const auto place = [&](int64_t bytes) {
    const int64_t offset = next;
    next = RoundUp(offset + bytes, 256);
    return offset;
  };
  layout.scalars = place(ScalarBytes(spec));
  if (IsCuda(profile)) layout.staging = place(StagingSets(spec) * StagingBytes(spec));
  if (Paged(spec, profile)) {
    const bool small = spec.optimizer == OptimizerKind::kAdamW8bit;
    layout.moment1 = place(adapter_elements * (small ? 1 : 4));
    layout.moment2 = place(adapter_elements * (small ? 1 : 4));
    if (small) {
      layout.absmax1 = place(adapter_elements / kMomentBlock * 4);
      layout.absmax2 = place(adapter_elements / kMomentBlock * 4);
    }
  }
  if (Offloaded(spec, profile)) {
    const int64_t tokens = int64_t{spec.micro_batch_size} * spec.sequence_len;
    layout.input_stride = RoundUp(tokens * model.hidden_size * profile.act_bytes, 256);
    layout.inputs = place((model.layers - 1) * layout.input_stride);
  }
  layout.total_bytes = next;
  return layout;
}

}  // namespace nibble::spec

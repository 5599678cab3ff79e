// What a job needs, to the byte: the estimate and the layout are one thing.
//
// CompilePlan walks the very step template the engine runs (step.h) with a counting executor and
// places every buffer. Pure, deterministic, byte-identical everywhere for equal inputs.
//
// A job's plan has two regions: persistent (adapters, gradients, moments: as long as it is
// attached) and step (activations, workspace, I/O staging: only during its turn). Jobs of one base
// on one device together need   fixed + base + sum(persistent) + max(step).   The base is the
// quantized weights.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/spec/model_config.h"
#include "engine/spec/train_spec.h"

namespace nibble::spec {

// The same eight everywhere.
enum class Category {
  kBaseCodes,
  kBaseScales,
  kBaseUnquantized,
  kAdapters,
  kGradients,
  kOptimizer,
  kActivations,
  kWorkspace,
};
inline constexpr int kCategoryCount = 8;
std::string_view CategoryName(Category category);  // "base_codes", ...

// What a plan depends on besides model and spec; measured by the engine when a worker starts.
struct DeviceProfile {
  std::string backend = "cpu";       // cpu, ref
  std::string body = "avx512_bf16";  // chosen kernel bodies; part of the numerics_id
  std::string build;                 // version of the engine
  int32_t threads = 1;
  int32_t act_bytes = 2;       // of the activation type
  int64_t fixed_bytes = 0;     // process, code and libraries
  int64_t capacity_bytes = 0;  // what the worker offers in all
  // Of a device: the host's memory for its jobs, page-locked and other. 0 = not said, so not limited.
  int64_t pinned_capacity_bytes = 0;
  int64_t host_capacity_bytes = 0;
  // How fast its linear layers are, measured when the worker started; no plan depends on it. 0 = not said.
  int64_t linear_mflop_per_s = 0;
  bool converts_head = false;  // the base's head is not in the activation type (fp16 compute)

  bool operator==(const DeviceProfile&) const = default;
};
std::string DeviceProfileToJson(const DeviceProfile& profile);
absl::StatusOr<DeviceProfile> DeviceProfileFromJson(std::string_view json);

enum class Region { kPersistent, kStep };

struct PlannedBuffer {
  std::string name;  // e.g. "layer3.q", "optimizer.m"
  Category category;
  Region region;
  int64_t offset = 0;  // in its region; multiple of 64
  int64_t size_bytes = 0;
  // Operation numbers, inclusive. 0 and 0 in the persistent region: as long as the job is attached.
  int32_t first_use = 0;
  int32_t last_use = 0;
};

// Operations from first_use on, up to the next phase.
struct PlanPhase {
  std::string name;  // e.g. "backward layer 0"
  int32_t first_use = 0;
};

// What was chosen for the device, and what of the spec takes effect there. None of it changes a result but
// cuda_graphs. kAuto: not said (plans kept from before these were).
struct PlanChoices {
  Recompute recompute = Recompute::kAuto;
  BaseCache base_cache = BaseCache::kAuto;
  bool paged_optimizer = false;      // the moments are in page-locked host memory
  bool offload_activations = false;  // the inputs of blocks are
  bool cuda_graphs = false;          // micro-batches are padded to a few lengths and recorded
  int32_t keep_blocks = 0;           // with Recompute::kFull
  bool operator==(const PlanChoices&) const = default;
};

// What of a spec says how much backward computes again.
struct Recomputation {
  Recompute policy = Recompute::kAuto;
  int32_t keep_blocks = 0;

  void SetIn(TrainSpec& spec) const {
    spec.recompute = policy;
    spec.keep_blocks = keep_blocks;
  }
  bool operator==(const Recomputation&) const = default;
};

struct MemoryPlan {
  PlanChoices choices;
  int64_t base_bytes = 0;
  int64_t persistent_bytes = 0;
  // Of persistent_bytes, and no part of the region: what the driver of a device takes for recordings.
  int64_t recording_bytes = 0;
  int64_t step_bytes = 0;
  int64_t fixed_bytes = 0;        // from the profile; on the host with the tokenizer and staging
  int64_t host_bytes = 0;         // of this job alone: where its rows begin, its history
  int64_t pinned_bytes = 0;       // page-locked host memory; of a device only: staging, and what is
                                  // offloaded and paged
  bool device = false;            // base, persistent, step and fixed are a device's memory, not the host's
  int64_t lower_bound_bytes = 0;  // of the total: largest live set instead of step_bytes
  std::string peak_phase;         // e.g. "backward layer 0"
  // At the peak. They sum to total - fixed - host - waste (alignment, and gaps no order could
  // fill).
  std::array<int64_t, kCategoryCount> category_bytes{};
  std::vector<PlannedBuffer> buffers;  // in order of creation
  std::vector<PlanPhase> phases;       // in order of time: training, optimizer, evaluation
  int32_t operations = 0;

  // What the job's own region is made of.
  int64_t PersistentRegionBytes() const { return persistent_bytes - recording_bytes; }
  // The plan is a vector: memory of the device, page-locked and other memory of the host, each to be
  // had apart. On the host the first is the host's, too.
  int64_t DeviceBytes() const { return fixed_bytes + base_bytes + persistent_bytes + step_bytes; }
  // Of what the worker's device offers.
  int64_t TotalBytes() const { return DeviceBytes() + (device ? 0 : host_bytes); }
  // Alone, each component apart.
  bool Fits(const DeviceProfile& profile) const {
    const auto within = [](int64_t bytes, int64_t bound) { return bound == 0 || bytes <= bound; };
    return TotalBytes() <= profile.capacity_bytes &&
           (!device || (within(pinned_bytes, profile.pinned_capacity_bytes) &&
                        within(host_bytes, profile.host_capacity_bytes)));
  }
};

// The fastest recompute policy with which the job fits every one of `devices` (by capacity_bytes) that
// it fits with full recomputation: the choice never costs a job a place. kFull when there is none such; one
// whose plan is refused is none. With kFull as many blocks keep their products as leave room on all of those
// devices. What the spec says itself stands. `spec` must be resolved.
absl::StatusOr<Recomputation> ChooseRecompute(const ModelConfig& model, const TrainSpec& spec,
                                              const std::vector<DeviceProfile>& devices);

// Whether a device of that much memory should hold what only makes a job faster (a decoded base, the products
// of some blocks), when the whole plan with it takes so much: a quarter must be left for neighbours.
constexpr bool LeavesRoom(int64_t total_bytes, int64_t capacity_bytes) {
  return total_bytes <= capacity_bytes / 4 * 3;
}
// Bytes of the decoded base that a plan with BaseCache::kOn has in its persistent region; 0 where it has
// none: on the host, and for a base that is not quantized.
int64_t BaseCacheBytes(const ModelConfig& model, QuantKind quant, const DeviceProfile& profile);

// `spec` must be resolved; what is still kAuto is chosen for this profile alone.
absl::StatusOr<MemoryPlan> CompilePlan(const ModelConfig& model, const TrainSpec& spec,
                                       const DeviceProfile& profile);

// The same without buffers and phases, several times as fast: for who searches. Every other field is equal.
absl::StatusOr<MemoryPlan> PlanTotals(const ModelConfig& model, const TrainSpec& spec,
                                      const DeviceProfile& profile);

// Bytes of the quantized base as the cache file holds it; equal to the file's size.
int64_t BaseBytes(const ModelConfig& model, QuantKind quant, bool double_quant);

// {"base_bytes":..,"persistent_bytes":..,...,"categories":{...}} without the buffers.
std::string MemoryPlanToJson(const MemoryPlan& plan);
// For people: one line per category, peak phase, lower bound, waste.
std::string MemoryPlanToText(const MemoryPlan& plan);

}  // namespace nibble::spec

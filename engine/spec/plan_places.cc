#include "engine/spec/plan_places.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/spec/base_layout.h"
#include "engine/spec/offset_planner.h"
#include "engine/spec/plan_names.h"
#include "engine/spec/rope.h"
#include "engine/spec/round.h"
#include "engine/spec/step_tensors.h"
#include "engine/spec/workspace.h"

namespace nibble::spec {
namespace {

// Of buffers: vector loads on the host, whole sectors of memory on a device.
int64_t Alignment(const DeviceProfile& profile) { return IsCuda(profile) ? 256 : 64; }
constexpr int64_t kPage = 4096;
// A device's driver gives whole pieces of this; a device may have many jobs, so it is counted.
constexpr int64_t kDevicePage = int64_t{2} << 20;

// Nobody tells what a recording takes; drivers are known for ten to sixteen KB a launch. One is planned with
// the latter; of smaller ones there are as many as go into that (KernelExecutor::Record). Four
// operations are at most thirteen launches, and the loss some for every chunk of 256 rows or more: four for
// each panel of the head.
constexpr int64_t kRecordedLaunchBytes = int64_t{16} << 10;
constexpr int64_t kLaunchesOfFourOps = 13, kLaunchesOfChunk = 3, kLaunchesOfPanel = 4;
constexpr int64_t kChunkRows = 256, kHeadPanelBytes = int64_t{64} << 20;

// What is decoded at once of any operation's weights: those of one input together, as if they were fused.
int64_t TileBytes(const ModelConfig& model) {
  int64_t most = 0;
  for (const Module module : {Module::kQkv, Module::kO, Module::kGateUp, Module::kDown}) {
    const LinearShape shape = ShapeOf(model, module);
    most = std::max(most, LinearPanelBytes(shape.n, shape.k));
  }
  return most;
}

// What is placed by its time in the step: tensors, and after them each operation's workspace.
struct TimedBuffers {
  std::vector<LiveBuffer> live;
  std::vector<TensorKey> tensors;   // of the first
  std::vector<int32_t> operations;  // of the others
};

TimedBuffers BuffersOf(const CountingExecutor& counted, const ModelConfig& model, int64_t red_zone) {
  TimedBuffers all;
  all.live.reserve(counted.keys().size() + counted.ops().size());
  for (const TensorKey& key : counted.keys()) {
    const CountedTensor& t = counted.tensors()[static_cast<size_t>(key.Index(model.layers))];
    if (t.first_use < 0) continue;
    all.live.push_back({t.size_bytes + red_zone, t.first_use, t.last_use});
    all.tensors.push_back(key);
  }
  for (size_t op = 0; op < counted.ops().size(); ++op) {
    const int64_t bytes = counted.ops()[op].workspace_bytes;
    if (bytes == 0) continue;
    const auto use = static_cast<int32_t>(op);
    all.live.push_back({bytes + red_zone, use, use});
    all.operations.push_back(use);
  }
  return all;
}

void NamePhases(const CountingExecutor& counted, MemoryPlan& plan) {
  for (size_t op = 0; op < counted.ops().size(); ++op) {
    if (op == 0 || counted.ops()[op].phase != counted.ops()[op - 1].phase ||
        counted.ops()[op].layer != counted.ops()[op - 1].layer) {
      plan.phases.push_back({PhaseText(counted.ops()[op]), static_cast<int32_t>(op)});
    }
  }
}

// Places all in the step region; or, where kFusedTokens says so, the tensors behind what is persistent so far
// and only workspaces, which never meet, in the step region. Fills in the plan's sizes.
OffsetPlan PlaceTimed(const TimedBuffers& all, bool may_own, int64_t alignment, bool totals_only,
                      CompiledPlan& plan) {
  MemoryPlan& memory = plan.memory;
  if (may_own) {
    const auto tensors = static_cast<std::ptrdiff_t>(all.tensors.size());
    OffsetPlan placed = PlanOffsets({all.live.begin(), all.live.begin() + tensors}, alignment);
    if (2 * placed.total_bytes <= memory.persistent_bytes) {
      int64_t workspace = 0;
      for (size_t i = all.tensors.size(); i < all.live.size(); ++i)
        workspace = std::max(workspace, all.live[i].size_bytes);
      plan.persistent.activations = memory.persistent_bytes;
      memory.persistent_bytes += RoundUp(placed.total_bytes, kPage);
      memory.step_bytes = RoundUp(workspace, kPage);
      placed.total_bytes += workspace;
      placed.lower_bound_bytes += workspace;
      placed.offsets.resize(all.live.size(), 0);
      return placed;
    }
  }
  OffsetPlan placed = PlanOffsets(all.live, alignment, totals_only ? kPage : 1);
  memory.step_bytes = RoundUp(placed.total_bytes, kPage);
  return placed;
}

// The buffers with their names, and the tables in which the engine finds them.
void NoteBuffers(const TimedBuffers& all, const OffsetPlan& placed, const CountingExecutor& counted,
                 const ModelConfig& model, CompiledPlan& plan) {
  const bool owns = plan.persistent.activations >= 0;
  plan.tensor_offset.assign(static_cast<size_t>(TensorKey::IndexCount(model.layers)), -1);
  plan.workspace_offset.assign(counted.ops().size(), 0);
  plan.workspace_bytes.assign(counted.ops().size(), 0);
  for (size_t i = 0; i < all.live.size(); ++i) {
    const LiveBuffer& live = all.live[i];
    const int64_t offset = placed.offsets[i];
    if (i < all.tensors.size()) {
      const TensorKey& key = all.tensors[i];
      const auto index = static_cast<size_t>(key.Index(model.layers));
      plan.tensor_offset[index] = offset;
      plan.memory.buffers.push_back({TensorName(key), Category::kActivations,
                                     owns ? Region::kPersistent : Region::kStep,
                                     offset + (owns ? plan.persistent.activations : 0),
                                     counted.tensors()[index].size_bytes, live.first_use, live.last_use});
      continue;
    }
    const int32_t op = all.operations[i - all.tensors.size()];
    const int64_t bytes = counted.ops()[static_cast<size_t>(op)].workspace_bytes;
    plan.workspace_offset[static_cast<size_t>(op)] = offset;
    plan.workspace_bytes[static_cast<size_t>(op)] = bytes;
    plan.memory.buffers.push_back(
        {absl::StrCat("workspace.", op), Category::kWorkspace, Region::kStep, offset, bytes, op, op});
  }
}

}  // namespace

void PlacePersistent(const ModelConfig& model, const TrainSpec& spec, const DeviceProfile& profile,
                     int64_t red_zone, CompiledPlan& plan) {
  const int64_t count = plan.adapters.elements;
  const int64_t real = std::max(4, profile.act_bytes);
  int64_t next = 0;
  const auto place = [&](const char* name, Category category, int64_t size) {
    const int64_t offset = next;
    plan.memory.buffers.push_back({name, category, Region::kPersistent, offset, size, 0, 0});
    plan.memory.category_bytes[static_cast<size_t>(category)] += size;
    next = RoundUp(offset + size, Alignment(profile)) + red_zone;
    return offset;
  };
  plan.persistent.master = place("adapters.master", Category::kAdapters, count * real);
  plan.persistent.compute =
      place("adapters.compute", Category::kAdapters, count * profile.act_bytes);
  plan.persistent.gradient = place("gradients", Category::kGradients, count * real);
  const bool small = spec.optimizer == OptimizerKind::kAdamW8bit;
  if (!plan.paged) {
    plan.persistent.moment1 = place("optimizer.m", Category::kOptimizer, count * (small ? 1 : real));
    plan.persistent.moment2 = place("optimizer.v", Category::kOptimizer, count * (small ? 1 : real));
  }
  if (small) {
    const int64_t absmax = count / kMomentBlock * 4;
    if (!plan.paged) {
      plan.persistent.absmax1 = place("optimizer.m_absmax", Category::kOptimizer, absmax);
      plan.persistent.absmax2 = place("optimizer.v_absmax", Category::kOptimizer, absmax);
    }
    plan.persistent.maps = place("optimizer.maps", Category::kOptimizer, 2 * 256 * 4);
  }
  if (plan.base_cache == BaseCache::kOn) {
    plan.persistent.decoded = place("base.decoded", Category::kBaseUnquantized,
                                    BaseCacheBytes(model, spec.quant, profile));
  }
  if (plan.base_cache == BaseCache::kAhead) {
    plan.persistent.tile_bytes = TileBytes(model);
    plan.persistent.tiles = place("base.tiles", Category::kWorkspace, 2 * plan.persistent.tile_bytes);
  }
  if (plan.pads) plan.persistent.late = place("late", Category::kWorkspace, 3 * 8);
  plan.persistent.rope =
      place("rope", Category::kActivations, 4 * RopeTableElements(model, spec.sequence_len));
  plan.persistent.scalars = place("scalars", Category::kWorkspace,
                                  ScalarBytes(spec));
  plan.memory.persistent_bytes = RoundUp(next, IsCuda(profile) ? kDevicePage : kPage);
}

void PlaceRecordings(const CountingExecutor& counted, const ModelConfig& model, const TrainSpec& spec,
                     const DeviceProfile& profile, CompiledPlan& plan) {
  if (!plan.pads || plan.offloaded) return;
  const int64_t chunks = CeilDiv(int64_t{spec.micro_batch_size} * spec.sequence_len, kChunkRows);
  const int64_t head_bytes = 2 * model.vocab_size * model.hidden_size;
  const int64_t panels = profile.converts_head ? CeilDiv(head_bytes, kHeadPanelBytes) : 1;
  const int64_t launches = CeilDiv(kLaunchesOfFourOps * static_cast<int64_t>(counted.ops().size()), 4) +
                           chunks * (kLaunchesOfChunk + kLaunchesOfPanel * panels);
  MemoryPlan& memory = plan.memory;
  memory.recording_bytes = RoundUp(launches * kRecordedLaunchBytes, kDevicePage);
  memory.buffers.push_back({"recordings", Category::kWorkspace, Region::kPersistent, memory.persistent_bytes,
                            memory.recording_bytes, 0, 0});
  memory.category_bytes[static_cast<size_t>(Category::kWorkspace)] += memory.recording_bytes;
  memory.persistent_bytes += memory.recording_bytes;
}

int64_t PlaceStep(const CountingExecutor& counted, const ModelConfig& model, const DeviceProfile& profile,
                  bool may_own, const CompileOptions& options, CompiledPlan& plan) {
  const TimedBuffers all = BuffersOf(counted, model, options.red_zone_bytes);
  const int64_t before = plan.memory.persistent_bytes;
  const OffsetPlan placed = PlaceTimed(all, may_own, Alignment(profile), options.totals_only, plan);
  const bool owns = plan.persistent.activations >= 0;
  if (!options.totals_only) {
    NamePhases(counted, plan.memory);
    NoteBuffers(all, placed, counted, model, plan);
  }
  int64_t tensors = 0, workspace = 0, largest_workspace = 0;  // the first two: at the peak
  for (size_t i = 0; i < all.live.size(); ++i) {
    const LiveBuffer& live = all.live[i];
    const int64_t bytes = live.size_bytes - options.red_zone_bytes;
    const bool at_peak = live.first_use <= placed.peak_use && placed.peak_use <= live.last_use;
    const bool tensor = i < all.tensors.size();
    if (!tensor) largest_workspace = std::max(largest_workspace, bytes);
    if (at_peak) (tensor ? tensors : workspace) += bytes;
  }
  auto& of = plan.memory.category_bytes;
  of[static_cast<size_t>(Category::kActivations)] += tensors;
  of[static_cast<size_t>(Category::kWorkspace)] += owns ? largest_workspace : workspace;
  plan.memory.operations = static_cast<int32_t>(counted.ops().size());
  plan.memory.peak_phase = PhaseText(counted.ops()[static_cast<size_t>(placed.peak_use)]);
  return plan.memory.step_bytes + plan.memory.persistent_bytes - before - placed.lower_bound_bytes;
}

}  // namespace nibble::spec

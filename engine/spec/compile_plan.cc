#include "engine/spec/compile_plan.h"

#include <algorithm>
#include <initializer_list>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "engine/spec/base_layout.h"
#include "engine/spec/counting_executor.h"
#include "engine/spec/offset_planner.h"
#include "engine/spec/plan_names.h"
#include "engine/spec/rope.h"
#include "engine/spec/round.h"
#include "engine/spec/step.h"
#include "engine/spec/workspace.h"

namespace nibble::spec {
namespace {

// Of buffers: vector loads on the host, whole sectors of memory on a device.
int64_t Alignment(const DeviceProfile& profile) { return IsCuda(profile) ? 256 : 64; }
constexpr int64_t kPage = 4096;

Category CategoryOf(BasePart part) {
  switch (part) {
    case BasePart::kCodes:
      return Category::kBaseCodes;
    case BasePart::kEmbedding:
    case BasePart::kHead:
    case BasePart::kFinalNorm:
    case BasePart::kInputNorm:
    case BasePart::kPostNorm:
    case BasePart::kAttentionNorm:
    case BasePart::kMlpNorm:
    case BasePart::kQueryNorm:
    case BasePart::kKeyNorm:
    case BasePart::kBias:
      return Category::kBaseUnquantized;
    default:
      return Category::kBaseScales;
  }
}

// What is decoded at once of any operation's weights: those of one input together, as if they were fused.
int64_t TileBytes(const ModelConfig& model) {
  int64_t most = 0;
  for (const Module module : {Module::kQkv, Module::kO, Module::kGateUp, Module::kDown}) {
    const LinearShape shape = ShapeOf(model, module);
    most = std::max(most, LinearPanelBytes(shape.n, shape.k));
  }
  return most;
}

// Fills next_weights for the operations first .. last-1.
void NoteNextWeights(const std::vector<CountedOp>& ops, size_t first, size_t last, CompiledPlan& plan) {
  LinearUse next;
  for (size_t op = last; op-- > first;) {
    plan.next_weights[op] = next;
    if (ops[op].weights.count > 0) next = ops[op].weights;
  }
}

// The persistent region: one buffer behind the other.
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
  plan.memory.persistent_bytes = RoundUp(next, kPage);
}

// What the plan does about the decoded base; spec.recompute is resolved.
absl::StatusOr<BaseCache> ChooseBaseCache(const ModelConfig& model, const TrainSpec& spec,
                                          const DeviceProfile& profile) {
  if (spec.base_cache == BaseCache::kOff || BaseCacheBytes(model, spec.quant, profile) == 0)
    return BaseCache::kOff;
  if (spec.base_cache != BaseCache::kAuto) return spec.base_cache;
  // Whoever moves memory to the host has none to spare; and without a capacity nobody knows.
  if (spec.paged_optimizer || spec.offload_activations || profile.capacity_bytes == 0)
    return BaseCache::kOff;
  TrainSpec with = spec;
  with.base_cache = BaseCache::kOn;
  ASSIGN_OR_RETURN(const MemoryPlan plan, PlanTotals(model, with, profile));
  return LeavesRoom(plan.TotalBytes(), profile.capacity_bytes) ? BaseCache::kOn : BaseCache::kOff;
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

// Returns the bytes above the largest set that is alive at once.
int64_t PlaceStep(const CountingExecutor& counted, const ModelConfig& model, bool may_own, int64_t alignment,
                  const CompileOptions& options, CompiledPlan& plan) {
  const TimedBuffers all = BuffersOf(counted, model, options.red_zone_bytes);
  const int64_t before = plan.memory.persistent_bytes;
  const OffsetPlan placed = PlaceTimed(all, may_own, alignment, options.totals_only, plan);
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

// What an engine keeps on the host for its base: the tokenizer's tables, lines to and from the worker,
// staging. Once, however many jobs share the base. Reading a tokenizer takes more for a moment than its
// tables do, but that is before the base is there. The most seen among published ones: 292 bytes an entry;
// 644 while it is read (Gemma 3's file of 33 MB), of which the 4 MiB take what is above the bound.
int64_t BaseHostBytes(const ModelConfig& model, int64_t base_bytes) {
  constexpr int64_t kEntryBytes = 320, kReadBytes = 640;
  return (int64_t{4} << 20) +
         std::max(kEntryBytes * model.vocab_size, kReadBytes * model.vocab_size - base_bytes);
}

// What a job keeps on the host besides its regions. Its tokens are on the disk; of each row of its data
// there is in memory where it begins, its length and its place in an epoch's order, and more while they are
// made: at most kRowBytes together. By blocks of rows, so that data sets of nearly one size have one plan.
int64_t JobHostBytes(const TrainSpec& spec) {
  constexpr int64_t kRowBytes = 64, kBlock = 1 << 14;
  return (int64_t{1} << 20) + (spec.data_rows / kBlock + 1) * kBlock * kRowBytes + HistoryBytes(spec);
}

constexpr int64_t kMaxDataRows = int64_t{1} << 31;

// More than this is no plan but a slip; below it no sum of sizes comes near the end of 64 bits.
constexpr double kAbsurdBytes = 0x1p50;  // 1 PiB
constexpr int64_t kMaxCudaHeadDim = 256;      // what kernels/cuda/attention.h takes

absl::Status RefuseAbsurd(const ModelConfig& model, const TrainSpec& spec,
                          const DeviceProfile& profile) {
  const auto tokens = static_cast<double>(int64_t{spec.micro_batch_size} * spec.sequence_len);
  const auto layers = static_cast<double>(model.layers);
  const auto width = static_cast<double>(4 * model.hidden_size + 4 * model.QueryWidth() +
                                         4 * model.KeyValueWidth() + 3 * model.intermediate_size +
                                         kModuleCount * spec.lora_r);
  const double adapters = 6 * layers * spec.lora_r * width;  // elements; each a few bytes
  const double base = static_cast<double>(model.LinearParameters()) +
                      4.0 * static_cast<double>(model.vocab_size) * static_cast<double>(model.hidden_size);
  const double workspace =
      profile.threads * tokens * (256.0 + 32.0 * static_cast<double>(model.head_dim + spec.lora_r));
  const double bytes = profile.act_bytes * (tokens * layers * width + adapters) + base + workspace;
  if (bytes <= kAbsurdBytes) return absl::OkStatus();
  return Error(Reason::kExceedsDeviceMemory,
               absl::StrCat("the job needs about ", bytes / kAbsurdBytes,
                            " PiB, which no device has: ", model.layers, " layers of hidden_size ",
                            model.hidden_size, " with ", tokens, " tokens a micro-batch and r ",
                            spec.lora_r, "; is one of them a slip?"));
}

}  // namespace

int64_t PaddedTokens(const TrainSpec& spec, int64_t tokens) {
  const int64_t room = int64_t{spec.micro_batch_size} * spec.sequence_len;
  return std::min(room, RoundUp(tokens, RoundUp((room + 7) / 8, 8)));
}

int64_t DecodedOffset(const ModelConfig& model, int64_t layer, Module module, int64_t act_bytes) {
  constexpr int64_t kUnit = 256;
  int64_t of_layer = 0, before = 0;
  for (const Module each : ModulesOf(model)) {
    if (each == module) before = of_layer;
    const LinearShape shape = ShapeOf(model, each);
    of_layer += RoundUp(shape.n * shape.k * act_bytes, kUnit);
  }
  return layer * of_layer + before;
}
int64_t BaseCacheBytes(const ModelConfig& model, QuantKind quant, const DeviceProfile& profile) {
  if (!IsCuda(profile) || quant == QuantKind::kBF16) return 0;
  return DecodedOffset(model, model.layers, ModulesOf(model)[0], profile.act_bytes);
}

int64_t BaseBytes(const ModelConfig& model, QuantKind quant, bool double_quant) {
  return LayoutBase(model, quant, double_quant).file_bytes;
}

absl::StatusOr<CompiledPlan> CompileForEngine(const ModelConfig& model, const TrainSpec& given,
                                              const DeviceProfile& profile,
                                              const CompileOptions& options) {
  if (profile.act_bytes != 2 && profile.act_bytes != 4 && profile.act_bytes != 8) {
    return Error(Reason::kInternal, absl::StrCat("the device profile has act_bytes ",
                                                 profile.act_bytes, "; it must be 2, 4 or 8"));
  }
  if (IsCuda(profile) && model.head_dim > kMaxCudaHeadDim) {
    return Error(Reason::kUnsupportedArchitecture,
                 absl::StrCat("config.json: heads are ", model.head_dim,
                              " wide; attention on a GPU takes at most ", kMaxCudaHeadDim,
                              ", train it on a processor"));
  }
  if (given.target_modules.empty()) {
    return Error(Reason::kSpecInvalid, "the training spec was not resolved: it targets no module");
  }
  if (given.data_rows < 0 || given.data_rows > kMaxDataRows) {
    return Error(Reason::kSpecInvalid, absl::StrCat("data_rows is ", given.data_rows,
                                                    ", outside 0 to ", kMaxDataRows));
  }
  RETURN_IF_ERROR(RefuseAbsurd(model, given, profile));
  TrainSpec spec = given;
  ASSIGN_OR_RETURN(spec.recompute, ChooseRecompute(model, given, {profile}));
  ASSIGN_OR_RETURN(spec.base_cache, ChooseBaseCache(model, spec, profile));
  CompiledPlan plan;
  plan.recompute = spec.recompute;
  plan.base_cache = spec.base_cache;
  plan.pads = IsCuda(profile) &&
              (spec.graphs == Graphs::kOn || (spec.graphs == Graphs::kAuto && spec.sample_packing &&
                                              model.LinearParameters() <= kGraphParameters));
  const BaseLayout base = LayoutBase(model, spec.quant, spec.double_quant);
  plan.memory.base_bytes = base.file_bytes;
  for (const BaseEntry& entry : base.entries) {
    plan.memory.category_bytes[static_cast<size_t>(CategoryOf(entry.part))] += entry.size_bytes;
  }
  plan.adapters = LayoutAdapters(model, spec);
  plan.paged = Paged(spec, profile);
  plan.offloaded = Offloaded(spec, profile);
  plan.pinned = LayoutPinned(model, spec, profile, plan.adapters.elements);
  PlacePersistent(model, spec, profile, options.red_zone_bytes, plan);
  plan.memory.choices = {plan.recompute, plan.base_cache, plan.paged, plan.offloaded, plan.pads};

  CountingExecutor counting(model, spec, profile);
  TrainMicroBatch(counting, model, spec);
  plan.optimizer_op = static_cast<int32_t>(counting.ops().size());
  OptimizerStep(counting);
  plan.evaluate_op = static_cast<int32_t>(counting.ops().size());
  EvalMicroBatch(counting, model, spec);
  if (!options.totals_only) {
    plan.next_weights.resize(counting.ops().size());
    NoteNextWeights(counting.ops(), 0, static_cast<size_t>(plan.optimizer_op), plan);
    NoteNextWeights(counting.ops(), static_cast<size_t>(plan.evaluate_op), counting.ops().size(), plan);
  }
  plan.grouped = counting.Groups();
  const bool may_own =
      !IsCuda(profile) && int64_t{spec.micro_batch_size} * spec.sequence_len <= kFusedTokens;
  const int64_t waste = PlaceStep(counting, model, may_own, Alignment(profile), options, plan);

  plan.memory.fixed_bytes = profile.fixed_bytes;
  plan.memory.host_bytes = JobHostBytes(spec);
  // On the host the tokenizer is the process's, and like that there once.
  if (IsCuda(profile)) {
    plan.memory.host_bytes += BaseHostBytes(model, 0);
  } else {
    plan.memory.fixed_bytes += BaseHostBytes(model, plan.memory.base_bytes);
  }
  if (IsCuda(profile)) {
    plan.memory.device = true;
    plan.memory.pinned_bytes = plan.pinned.total_bytes;
    // A checkpoint's copy of masters, and of moments that are the device's.
    plan.memory.host_bytes += plan.adapters.elements * 4 * (plan.paged ? 1 : 3);
  }
  plan.memory.lower_bound_bytes = plan.memory.TotalBytes() - waste;
  return plan;
}

int64_t HistoryBytes(const TrainSpec& spec) {
  constexpr int64_t kRowBytes = 128, kBlockRows = (int64_t{1} << 20) / kRowBytes;
  constexpr double kMostSteps = 1e9;  // max_steps may say no more
  const double batch = std::max(1.0, double{1} * spec.micro_batch_size * spec.gradient_accumulation_steps);
  const double epochs = std::max(0.0, spec.num_epochs);
  const double wanted = spec.max_steps > 0 ? static_cast<double>(spec.max_steps)
                                           : static_cast<double>(spec.data_rows) * epochs / batch;
  const auto steps = static_cast<int64_t>(std::min(kMostSteps, wanted));
  const double often = std::max(1.0, spec.evals_per_epoch) * epochs;
  const int64_t evaluations =
      spec.eval_steps > 0 ? steps / spec.eval_steps : static_cast<int64_t>(std::min<double>(steps, often));
  return (steps + evaluations + kBlockRows / 2) / kBlockRows * kBlockRows * kRowBytes;
}

absl::StatusOr<Recompute> ChooseRecompute(const ModelConfig& model, const TrainSpec& spec,
                                          const std::vector<DeviceProfile>& devices) {
  if (spec.recompute != Recompute::kAuto) return spec.recompute;
  const auto fits = [&](Recompute recompute, const DeviceProfile& device) -> absl::StatusOr<bool> {
    TrainSpec tried = spec;
    tried.recompute = recompute;
    if (tried.base_cache == BaseCache::kAuto) tried.base_cache = BaseCache::kOff;
    ASSIGN_OR_RETURN(const MemoryPlan plan, PlanTotals(model, tried, device));
    return plan.Fits(device);
  };
  std::vector<const DeviceProfile*> places;
  for (const DeviceProfile& device : devices) {
    if (device.capacity_bytes == 0) continue;  // not known
    ASSIGN_OR_RETURN(const bool place, fits(Recompute::kFull, device));
    if (place) places.push_back(&device);
  }
  if (places.empty()) return Recompute::kFull;
  for (const Recompute faster : {Recompute::kNone, Recompute::kKeepGemmOutputs}) {
    bool everywhere = true;
    for (size_t i = 0; everywhere && i < places.size(); ++i) {
      ASSIGN_OR_RETURN(everywhere, fits(faster, *places[i]));
    }
    if (everywhere) return faster;
  }
  return Recompute::kFull;
}

absl::StatusOr<MemoryPlan> CompilePlan(const ModelConfig& model, const TrainSpec& spec,
                                       const DeviceProfile& profile) {
  ASSIGN_OR_RETURN(CompiledPlan plan, CompileForEngine(model, spec, profile));
  return std::move(plan.memory);
}

absl::StatusOr<MemoryPlan> PlanTotals(const ModelConfig& model, const TrainSpec& spec,
                                      const DeviceProfile& profile) {
  ASSIGN_OR_RETURN(CompiledPlan plan, CompileForEngine(model, spec, profile, {.totals_only = true}));
  plan.memory.buffers.clear();  // the persistent ones
  return std::move(plan.memory);
}

}  // namespace nibble::spec

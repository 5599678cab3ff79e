#include "engine/spec/compile_plan.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "engine/spec/base_layout.h"
#include "engine/spec/counting_executor.h"
#include "engine/spec/plan_places.h"
#include "engine/spec/round.h"
#include "engine/spec/step.h"

namespace nibble::spec {
namespace {

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

// Fills next_weights for the operations first .. last-1.
void NoteNextWeights(const std::vector<CountedOp>& ops, size_t first, size_t last, CompiledPlan& plan) {
  LinearUse next;
  for (size_t op = last; op-- > first;) {
    plan.next_weights[op] = next;
    if (ops[op].weights.count > 0) next = ops[op].weights;
  }
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
// What kernels/cuda takes: heads in attention.h, rows in norm.cu, and what a launch of elementwise.cu or
// linear.cu counts in 32 bits, pairs that turn and eights of columns.
constexpr int64_t kMaxCudaHeadDim = 256, kMaxCudaHidden = 16384, kMaxCudaCount = (int64_t{1} << 31) - 1;

absl::Status RefuseManyTokens(const ModelConfig& model, const TrainSpec& spec, const DeviceProfile& profile) {
  const int64_t tokens = int64_t{spec.micro_batch_size} * spec.sequence_len;
  const int64_t most = MostTokens(model, profile);
  if (tokens <= most) return absl::OkStatus();
  return Error::Field(Reason::kSpecInvalid, "training.micro_batch_size",
                      absl::StrCat("times data.sequence_len is ", tokens, " tokens; a GPU takes at most ",
                                   most, " of this model at once, use gradient_accumulation_steps instead"));
}

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

absl::Status CheckGiven(const ModelConfig& model, const TrainSpec& given, const DeviceProfile& profile) {
  if (profile.act_bytes != 2 && profile.act_bytes != 4 && profile.act_bytes != 8) {
    return Error(Reason::kInternal, absl::StrCat("the device profile has act_bytes ",
                                                 profile.act_bytes, "; it must be 2, 4 or 8"));
  }
  RETURN_IF_ERROR(CheckWidths(model, profile));
  RETURN_IF_ERROR(RefuseManyTokens(model, given, profile));
  if (given.target_modules.empty()) {
    return Error(Reason::kSpecInvalid, "the training spec was not resolved: it targets no module");
  }
  if (given.data_rows < 0 || given.data_rows > kMaxDataRows) {
    return Error(Reason::kSpecInvalid, absl::StrCat("data_rows is ", given.data_rows,
                                                    ", outside 0 to ", kMaxDataRows));
  }
  return RefuseAbsurd(model, given, profile);
}

}  // namespace

absl::Status CheckWidths(const ModelConfig& model, const DeviceProfile& profile) {
  const auto wide = [&](const char* what, int64_t width, int64_t most, const char* where) {
    return Error(Reason::kUnsupportedArchitecture,
                 absl::StrCat("config.json: ", what, " ", width, " wide; ", where, " on a GPU takes at most ",
                              most, ", use a processor for it"));
  };
  if (!IsCuda(profile)) return absl::OkStatus();
  if (model.head_dim > kMaxCudaHeadDim) {
    return wide("heads are", model.head_dim, kMaxCudaHeadDim, "attention");
  }
  if (model.hidden_size > kMaxCudaHidden) {
    return wide("hidden states are", model.hidden_size, kMaxCudaHidden, "a norm");
  }
  return absl::OkStatus();
}

int64_t MostTokens(const ModelConfig& model, const DeviceProfile& profile) {
  if (!IsCuda(profile)) return std::numeric_limits<int64_t>::max();
  const int64_t columns = std::max({model.hidden_size, model.intermediate_size,
                                    model.QueryWidth() + 2 * model.KeyValueWidth()});
  return kMaxCudaCount / std::max(CeilDiv(columns, 8), model.heads * (model.RotaryWidth() / 2));
}

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
  RETURN_IF_ERROR(CheckGiven(model, given, profile));
  TrainSpec spec = given;
  ASSIGN_OR_RETURN(const Recomputation recompute, ChooseRecompute(model, given, {profile}));
  recompute.SetIn(spec);
  ASSIGN_OR_RETURN(spec.base_cache, ChooseBaseCache(model, spec, profile));
  CompiledPlan plan;
  plan.recompute = recompute;
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
  plan.memory.choices = {recompute.policy, plan.base_cache, plan.paged,
                         plan.offloaded,   plan.pads,       recompute.keep_blocks};

  CountingExecutor counting(model, spec, profile);
  TrainMicroBatch(counting, model, spec);
  plan.optimizer_op = static_cast<int32_t>(counting.ops().size());
  PlaceRecordings(counting, model, spec, profile, plan);
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
  const int64_t waste = PlaceStep(counting, model, profile, may_own, options, plan);

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

absl::StatusOr<Recomputation> ChooseRecompute(const ModelConfig& model, const TrainSpec& spec,
                                              const std::vector<DeviceProfile>& devices) {
  if (spec.recompute != Recompute::kAuto) return Recomputation{spec.recompute, spec.keep_blocks};
  const auto fits = [&](Recomputation tried, const DeviceProfile& device) -> absl::StatusOr<bool> {
    TrainSpec with = spec;
    tried.SetIn(with);
    if (with.base_cache == BaseCache::kAuto) with.base_cache = BaseCache::kOff;
    ASSIGN_OR_RETURN(const MemoryPlan plan, PlanTotals(model, with, device));
    return plan.Fits(device) &&
           (tried.keep_blocks == 0 || LeavesRoom(plan.TotalBytes(), device.capacity_bytes));
  };
  std::vector<const DeviceProfile*> places;
  for (const DeviceProfile& device : devices) {
    if (device.capacity_bytes == 0) continue;  // not known
    const absl::StatusOr<bool> place = fits({Recompute::kFull}, device);
    if (place.ok() && *place) places.push_back(&device);
  }
  if (places.empty()) return Recomputation{Recompute::kFull};
  const auto everywhere = [&](Recomputation tried) -> absl::StatusOr<bool> {
    for (const DeviceProfile* place : places) {
      ASSIGN_OR_RETURN(const bool fit, fits(tried, *place));
      if (!fit) return false;
    }
    return true;
  };
  for (const Recompute faster : {Recompute::kNone, Recompute::kKeepGemmOutputs}) {
    ASSIGN_OR_RETURN(const bool fit, everywhere({faster}));
    if (fit) return Recomputation{faster};
  }
  int32_t kept = 0;
  for (auto most = static_cast<int32_t>(model.layers) - 1; kept < most;) {
    const int32_t tried = kept + (most - kept + 1) / 2;
    ASSIGN_OR_RETURN(const bool fit, everywhere({Recompute::kFull, tried}));
    (fit ? kept : most) = fit ? tried : tried - 1;
  }
  return Recomputation{Recompute::kFull, kept};
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

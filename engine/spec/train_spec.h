// Everything that determines the result of a job, every default resolved: the effective spec.
//
// A value; pure functions; no I/O. The proto JobSpec is the schema users see, this is what the
// cores and the engine work with. Its JSON form is what travels to the engine and stands in
// checkpoints.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/spec/model_config.h"

namespace nibble::spec {

enum class QuantKind { kNF4, kFP4, kINT4, kINT8, kBF16 };
enum class LrSchedule { kCosine, kLinear, kConstant };
enum class ExcessLength { kDrop, kTruncate };
enum class OptimizerKind {
  kAdamW,
  kAdamW8bit,  // moments in 8-bit blocks, as bitsandbytes has them
};
// What is computed again in backward instead of being kept: fastest and largest first (see step.h).
// It never changes the result.
enum class Recompute { kAuto, kNone, kKeepGemmOutputs, kFull };
// Whether a GPU keeps the decoded base beside the quantized one, so that no step decodes it again. It costs
// two bytes a weight and never changes the result; elsewhere it means nothing.
// kAhead: only what the next product reads, two tiles of up to 64 MiB, decoded while the present one runs.
enum class BaseCache { kAuto, kOff, kOn, kAhead };
// Whether a GPU is given the micro-batches of a step as recordings (CUDA graphs): what a small model gains
// most. Batches are then padded to a few lengths, which changes rounding, so the choice is part of a job.
// kAuto: for models of up to kGraphParameters and packed rows. Elsewhere it means nothing.
enum class Graphs { kAuto, kOff, kOn };
inline constexpr int64_t kGraphParameters = 2'500'000'000;
std::string_view RecomputeName(Recompute recompute);  // "auto", "none", "keep_gemm_outputs", "full"

// The order in which modules of a layer appear everywhere (plans, checkpoints, adapters). kQkv has the rows
// of q, k and v, kGateUp those of gate and up, in models that have them in one linear (ModelConfig::fused).
enum class Module { kQ, kK, kV, kQkv, kO, kGate, kUp, kGateUp, kDown };
inline constexpr int kModuleCount = 9;
// Those that a model has: seven, or the four of a fused one.
std::span<const Module> ModulesOf(const ModelConfig& model);
// A module's number in its layer, of which its random numbers are made and by which a base keeps its offset.
// A fused one has that of its first part, which no model has beside it.
inline constexpr int kNumbersPerLayer = 7;
int NumberOf(Module module);
std::string_view ModuleName(Module module);  // "q_proj", ...
absl::StatusOr<Module> ModuleFromName(std::string_view name);

struct TrainSpec {
  // LoRA
  int32_t lora_r = 16;
  double lora_alpha = 32;
  double lora_dropout = 0.05;
  // Sorted, no duplicates, and such as the model has; Resolve fills in all of them when empty.
  std::vector<Module> target_modules;
  bool use_rslora = false;
  // Frozen base
  QuantKind quant = QuantKind::kNF4;
  bool double_quant = true;
  // Data
  std::string format = "auto";  // auto, messages, sharegpt, alpaca, completion, text
  std::string chat_template = "tokenizer_default";
  bool train_on_inputs = false;
  int32_t sequence_len = 2048;  // tokens; -1: 2048, or the model's positions where they are fewer
  bool sample_packing = true;
  ExcessLength excess_length = ExcessLength::kDrop;
  double val_set_size = -1;  // share of rows; -1: 0.05 when the data set has > 200 rows, else 0
  // Optimizer
  OptimizerKind optimizer = OptimizerKind::kAdamW;
  // On a device the moments stay in page-locked host memory and pass through the device by chunks; on
  // the host it changes nothing. Never changes the result.
  bool paged_optimizer = false;
  // On a device the inputs of blocks wait for backward in page-locked host memory; on the host it
  // changes nothing. Needs full recomputation. Never changes the result.
  bool offload_activations = false;
  double learning_rate = 2e-4;
  LrSchedule lr_schedule = LrSchedule::kCosine;
  double warmup_ratio = 0.1;
  int64_t warmup_steps = -1;  // -1: by ratio
  double weight_decay = 0;
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.999;
  double adam_epsilon = 1e-8;
  double max_grad_norm = 1.0;  // 0 = no clipping
  // Loop
  int32_t micro_batch_size = 1;  // sequences
  int32_t gradient_accumulation_steps = 4;
  double num_epochs = 1;
  int64_t max_steps = -1;  // -1: by epochs
  Recompute recompute = Recompute::kAuto;  // kAuto: the fastest that fits (see memory_plan.h)
  // With full recomputation: so many blocks below the top one keep what their products made, too. 0 to
  // layers - 1. Never changes the result.
  int32_t keep_blocks = 0;
  BaseCache base_cache = BaseCache::kAuto;  // kAuto: on where it leaves room (see memory_plan.h)
  Graphs graphs = Graphs::kAuto;
  int64_t logging_steps = 1;
  int64_t eval_steps = -1;              // -1: four times an epoch, at most 40 times in all
  int64_t save_steps = -1;              // -1: once an epoch, at most 10 times in all
  double evals_per_epoch = -1;  // instead of eval_steps; 0: at the end only; -1: not said
  double saves_per_epoch = -1;  // instead of save_steps; likewise
  int64_t save_interval_seconds = 300;  // 0 = by steps only
  int32_t save_total_limit = 3;
  uint64_t seed = 42;
  bool allow_numerics_change = false;
  // Rows of the data set and its evaluation file, as the server knows them; 0: unknown, a few. Nobody
  // writes this: the plan's host part follows it (see compile_plan.cc), and nothing else.
  int64_t data_rows = 0;

  bool operator==(const TrainSpec&) const = default;

  double LoraScale() const;  // alpha / r, or alpha / sqrt(r)
  bool Targets(Module module) const;
};

// Fills in what depends on the model and checks every field against its bounds. All violations are
// in the returned error, by path ("lora.r", "data.sequence_len"); messages name value, bound and
// remedy.
absl::StatusOr<TrainSpec> ResolveTrainSpec(TrainSpec spec, const ModelConfig& model);

std::string TrainSpecToJson(const TrainSpec& spec);                  // canonical: sorted keys
absl::StatusOr<TrainSpec> TrainSpecFromJson(std::string_view json);  // unknown keys refused

// Learning rate of optimizer step `step` (from 1) of `total_steps`; the schedule of transformers.
double LearningRateAt(const TrainSpec& spec, int64_t step, int64_t total_steps);

}  // namespace nibble::spec

#include "engine/spec/train_spec.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "engine/spec/words.h"

namespace nibble::spec {
namespace {

constexpr int64_t kUsualSequenceLen = 2048;  // tokens

constexpr std::string_view kModuleNames[kModuleCount] = {
    "q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj"};
constexpr Module kApart[] = {Module::kQ,    Module::kK,  Module::kV,   Module::kO,
                             Module::kGate, Module::kUp, Module::kDown};
constexpr Module kFused[] = {Module::kQkv, Module::kO, Module::kGateUp, Module::kDown};

std::string Names(std::span<const Module> modules) {
  std::string names;
  for (const Module module : modules)
    absl::StrAppend(&names, names.empty() ? "" : ", ", std::string(ModuleName(module)));
  return names;
}

// Whole numbers to the last digit: 2147483647, not 2.14748e+09.
std::string Written(double value) {
  if (value == std::floor(value) && std::abs(value) < 9e15) return absl::StrCat(static_cast<int64_t>(value));
  return absl::StrCat(value);
}

// Collects every violation, so that a user mends a recipe in one go.
class Checker {
 public:
  void Range(const char* field, double value, double low, double high, const char* remedy) {
    if (value >= low && value <= high) return;  // false for NaN
    Add(field, absl::StrCat("is ", Written(value), ", outside ", Written(low), " to ", Written(high), "; ",
                            remedy));
  }
  void Below(const char* field, double value, double low, double bound, const char* remedy) {
    if (value >= low && value < bound) return;
    Add(field,
        absl::StrCat("is ", value, ", must be at least ", low, " and below ", bound, "; ", remedy));
  }
  void Above(const char* field, double value, double bound, double high, const char* remedy) {
    if (value > bound && value <= high) return;
    Add(field,
        absl::StrCat("is ", Written(value), ", must be above ", bound, " and at most ", high, "; ", remedy));
  }
  void Add(const char* field, std::string description) {
    violations_.push_back({field, std::move(description)});
  }
  absl::Status status() const {
    if (violations_.empty()) return absl::OkStatus();
    const FieldViolation& first = violations_.front();
    std::string message = absl::StrCat(first.field, " ", first.description);
    if (violations_.size() > 1) {
      absl::StrAppend(&message, " (and ", violations_.size() - 1, " more)");
    }
    Error error(Reason::kSpecInvalid, message);
    error.With("field", first.field);
    for (const FieldViolation& v : violations_) error.Violation(v.field, v.description);
    return error.ToStatus();
  }

 private:
  std::vector<FieldViolation> violations_;
};

void CheckLora(const TrainSpec& spec, const ModelConfig& model, Checker& check) {
  check.Range("lora.r", spec.lora_r, 1, 256, "16 is a good start");
  check.Above("lora.alpha", spec.lora_alpha, 0, 65536, "32 is a good start");
  check.Below("lora.dropout", spec.lora_dropout, 0, 1, "0.05 is a good start");
  const std::span<const Module> all = ModulesOf(model);
  for (const Module module : spec.target_modules) {
    if (std::find(all.begin(), all.end(), module) != all.end()) continue;
    check.Add("lora.target_modules", absl::StrCat("has ", std::string(ModuleName(module)), ", which a ",
                                                  model.model_type, " model does not; its linears are ",
                                                  Names(all)));
    break;
  }
}

void CheckData(const TrainSpec& spec, const ModelConfig& model, Checker& check) {
  constexpr std::string_view kFormats[] = {"auto",   "messages",   "sharegpt",
                                           "alpaca", "completion", "text"};
  if (std::find(std::begin(kFormats), std::end(kFormats), spec.format) == std::end(kFormats)) {
    check.Add("data.format",
              absl::StrCat("is \"", spec.format,
                           "\"; use one of auto, messages, sharegpt, alpaca, completion, text"));
  }
  constexpr size_t kMaxTemplateName = 64;
  if (spec.chat_template.size() > kMaxTemplateName) {
    check.Add("data.chat_template", absl::StrCat("has ", spec.chat_template.size(), " bytes, at most ",
                                                 kMaxTemplateName,
                                                 "; it is a template's name, such as chatml, not its text"));
  } else if (std::find(std::begin(kChatTemplateNames), std::end(kChatTemplateNames), spec.chat_template) ==
             std::end(kChatTemplateNames)) {
    std::string names;
    for (const std::string_view name : kChatTemplateNames)
      absl::StrAppend(&names, names.empty() ? "" : ", ", std::string(name));
    check.Add("data.chat_template", absl::StrCat("is \"", spec.chat_template, "\"; use one of ", names));
  }
  check.Range("data.sequence_len", spec.sequence_len, 8, static_cast<double>(model.max_positions),
              "the upper bound is the model's max_position_embeddings");
  if (spec.val_set_size != -1) {
    check.Range("data.val_set_size", spec.val_set_size, 0, 0.9, "0 trains on every row");
  }
}

void CheckOptimizer(const TrainSpec& spec, Checker& check) {
  check.Above("optimizer.learning_rate", spec.learning_rate, 0, 1, "2e-4 is a good start");
  check.Range("optimizer.warmup_ratio", spec.warmup_ratio, 0, 1, "0.1 is a good start");
  check.Range("optimizer.warmup_steps", static_cast<double>(spec.warmup_steps), -1, 1e9,
              "-1 takes warmup_ratio");
  check.Range("optimizer.weight_decay", spec.weight_decay, 0, 10, "0 switches it off");
  check.Below("optimizer.adam_beta1", spec.adam_beta1, 0, 1, "0.9 is usual");
  check.Below("optimizer.adam_beta2", spec.adam_beta2, 0, 1, "0.999 is usual");
  check.Above("optimizer.adam_epsilon", spec.adam_epsilon, 0, 1, "1e-8 is usual");
  check.Range("optimizer.max_grad_norm", spec.max_grad_norm, 0, 1e9, "0 switches clipping off");
}

void CheckKeptBlocks(const TrainSpec& spec, const ModelConfig& model, Checker& check) {
  constexpr const char* kField = "training.keep_blocks";
  if (spec.recompute != Recompute::kFull) {
    check.Add(kField, absl::StrCat("is ", spec.keep_blocks, ", but training.recompute is ",
                                   std::string(RecomputeName(spec.recompute)),
                                   "; make that full, or leave keep_blocks out"));
    return;
  }
  check.Range(kField, spec.keep_blocks, 0, static_cast<double>(model.layers - 1),
              "the upper bound is the model's layers but the top one, which keeps its products anyway");
  if (spec.offload_activations) {
    check.Add(kField, absl::StrCat("is ", spec.keep_blocks,
                                   ", but training.offload_activations keeps nothing but the inputs of "
                                   "blocks; leave one of them out"));
  }
}

void CheckLoop(const TrainSpec& spec, const ModelConfig& model, Checker& check) {
  check.Range("training.micro_batch_size", spec.micro_batch_size, 1, 4096,
              "1 needs the least memory");
  check.Range("training.gradient_accumulation_steps", spec.gradient_accumulation_steps, 1, 65536,
              "4 is a good start");
  if (spec.max_steps < 0) {
    check.Above("training.num_epochs", spec.num_epochs, 0, 10000, "1 is a good start");
  }
  const auto steps = [&](const char* field, int64_t value) {
    if (value != -1) check.Range(field, static_cast<double>(value), 1, 1e9, "-1 chooses for you");
  };
  steps("training.max_steps", spec.max_steps);
  steps("training.eval_steps", spec.eval_steps);
  steps("training.save_steps", spec.save_steps);
  const auto per_epoch = [&](const char* field, double value, const char* other, int64_t steps) {
    if (value == -1) return;
    check.Range(field, value, 0, 1000, "0 does it at the end only");
    if (steps != -1) {
      check.Add(field, absl::StrCat("and ", other, " are both set; keep one of them"));
    }
  };
  per_epoch("training.evals_per_epoch", spec.evals_per_epoch, "training.eval_steps",
            spec.eval_steps);
  per_epoch("training.saves_per_epoch", spec.saves_per_epoch, "training.save_steps",
            spec.save_steps);
  check.Range("training.logging_steps", static_cast<double>(spec.logging_steps), 1, 1e9,
              "1 logs every step");
  check.Range("training.save_interval_seconds", static_cast<double>(spec.save_interval_seconds), 0,
              1e9, "0 saves by steps only");
  check.Range("training.save_total_limit", spec.save_total_limit, 1, 1000, "3 is a good start");
  if (spec.offload_activations && spec.recompute != Recompute::kAuto &&
      spec.recompute != Recompute::kFull) {
    check.Add("training.recompute",
              absl::StrCat("is ", std::string(RecomputeName(spec.recompute)),
                           ", but training.offload_activations keeps the inputs of blocks only; use "
                           "full or auto, or switch offloading off"));
  }
  if (spec.keep_blocks != 0) CheckKeptBlocks(spec, model, check);
  const int64_t tokens = int64_t{spec.micro_batch_size} * spec.sequence_len;
  if (spec.micro_batch_size > 0 && spec.sequence_len > 0 && tokens > (int64_t{1} << 24)) {
    check.Add("training.micro_batch_size",
              absl::StrCat("times data.sequence_len is ", tokens,
                           " tokens, above 16777216; use gradient_accumulation_steps instead"));
  }
}

int64_t WarmupSteps(const TrainSpec& spec, int64_t total_steps) {
  if (spec.warmup_steps >= 0) return spec.warmup_steps;
  return static_cast<int64_t>(std::ceil(static_cast<double>(total_steps) * spec.warmup_ratio));
}

}  // namespace

std::string_view RecomputeName(Recompute recompute) { return WordOf(kRecomputeWords, recompute); }

std::string_view ModuleName(Module module) { return kModuleNames[static_cast<int>(module)]; }

std::span<const Module> ModulesOf(const ModelConfig& model) {
  if (model.fused) return kFused;
  return kApart;
}

int NumberOf(Module module) {
  constexpr int kNumbers[kModuleCount] = {0, 1, 2, 0, 3, 4, 5, 4, 6};
  return kNumbers[static_cast<int>(module)];
}

absl::StatusOr<Module> ModuleFromName(std::string_view name) {
  for (int i = 0; i < kModuleCount; ++i) {
    if (kModuleNames[i] == name) return static_cast<Module>(i);
  }
  return Error::Field(Reason::kSpecInvalid, "lora.target_modules",
                      absl::StrCat("has \"", std::string(name), "\"; use ", Names(kApart), ", or ",
                                   Names(kFused), " of a model that has q, k and v in one linear"));
}

double TrainSpec::LoraScale() const {
  return use_rslora ? lora_alpha / std::sqrt(static_cast<double>(lora_r)) : lora_alpha / lora_r;
}

bool TrainSpec::Targets(Module module) const {
  return std::find(target_modules.begin(), target_modules.end(), module) != target_modules.end();
}

absl::StatusOr<TrainSpec> ResolveTrainSpec(TrainSpec spec, const ModelConfig& model) {
  if (spec.sequence_len == -1) {
    spec.sequence_len =
        static_cast<int32_t>(std::min<int64_t>(kUsualSequenceLen, model.max_positions));
  }
  Checker check;
  CheckLora(spec, model, check);
  CheckData(spec, model, check);
  CheckOptimizer(spec, check);
  CheckLoop(spec, model, check);
  RETURN_IF_ERROR(check.status());
  const std::span<const Module> all = ModulesOf(model);
  if (spec.target_modules.empty()) spec.target_modules.assign(all.begin(), all.end());
  std::sort(spec.target_modules.begin(), spec.target_modules.end());
  spec.target_modules.erase(std::unique(spec.target_modules.begin(), spec.target_modules.end()),
                            spec.target_modules.end());
  if (spec.offload_activations) spec.recompute = Recompute::kFull;
  if (spec.quant == QuantKind::kINT8 || spec.quant == QuantKind::kBF16) spec.double_quant = false;
  return spec;
}

double LearningRateAt(const TrainSpec& spec, int64_t step, int64_t total_steps) {
  // transformers sets the rate of lambda(0) before the first step and advances after each: step s
  // (from 1) runs with lambda(s - 1), so with warm-up the first step's rate is 0.
  const int64_t current = step - 1;
  const int64_t warmup = WarmupSteps(spec, total_steps);
  if (current < warmup) {
    return spec.learning_rate *
           (static_cast<double>(current) / static_cast<double>(std::max<int64_t>(1, warmup)));
  }
  const double rest = static_cast<double>(std::max<int64_t>(1, total_steps - warmup));
  switch (spec.lr_schedule) {
    case LrSchedule::kConstant:
      return spec.learning_rate;
    case LrSchedule::kLinear:
      return spec.learning_rate * std::max(0.0, static_cast<double>(total_steps - current) / rest);
    case LrSchedule::kCosine: {
      const double progress = static_cast<double>(current - warmup) / rest;
      return spec.learning_rate *
             std::max(0.0, 0.5 * (1.0 + std::cos(std::numbers::pi * 0.5 * 2.0 * progress)));
    }
  }
  return spec.learning_rate;
}

}  // namespace nibble::spec

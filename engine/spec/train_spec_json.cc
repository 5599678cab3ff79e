// The JSON form of a TrainSpec: flat, one key per field, sorted; unknown keys are refused.
#include <set>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "engine/spec/train_spec.h"
#include "engine/spec/words.h"
#include "nlohmann/json.hpp"

namespace nibble::spec {
namespace {

using nlohmann::json;

// Takes fields out of an object by key; what is left over at the end is unknown.
class Reader {
 public:
  explicit Reader(const json& object) : object_(object) {}

  template <typename T>
  void Number(const char* key, T& field) {
    const json* value = Take(key);
    if (value == nullptr) return;
    const bool fits = std::is_floating_point_v<T> ? value->is_number()
                      : std::is_unsigned_v<T>     ? value->is_number_unsigned()
                                                  : value->is_number_integer();
    if (!fits) return Fault(key, *value, "a number");
    if (std::is_signed_v<T> && value->is_number_unsigned() && value->get<uint64_t>() > INT64_MAX) {
      return Fault(key, *value, "a number of 63 bits");
    }
    if constexpr (std::is_same_v<T, int32_t>) {
      const int64_t wide = value->get<int64_t>();
      if (wide < INT32_MIN || wide > INT32_MAX) return Fault(key, *value, "a 32-bit number");
    }
    field = value->get<T>();
  }
  void Flag(const char* key, bool& field) {
    const json* value = Take(key);
    if (value == nullptr) return;
    if (!value->is_boolean()) return Fault(key, *value, "true or false");
    field = value->get<bool>();
  }
  void Text(const char* key, std::string& field) {
    const json* value = Take(key);
    if (value == nullptr) return;
    if (!value->is_string()) return Fault(key, *value, "a string");
    field = value->get<std::string>();
  }
  template <typename Enum, size_t kCount>
  void Choice(const char* key, const Word<Enum> (&words)[kCount], Enum& field) {
    const json* value = Take(key);
    if (value == nullptr) return;
    std::optional<Enum> known;
    if (value->is_string()) known = FromWord(words, value->get_ref<const std::string&>());
    if (!known.has_value()) return Fault(key, *value, "one of " + AllWords(words));
    field = *known;
  }
  void Modules(const char* key, std::vector<Module>& field) {
    const json* value = Take(key);
    if (value == nullptr) return;
    if (!value->is_array()) return Fault(key, *value, "a list of module names");
    field.clear();
    for (const json& name : *value) {
      if (!name.is_string()) return Fault(key, *value, "a list of module names");
      auto module = ModuleFromName(name.get<std::string>());
      if (!module.ok()) {
        if (status_.ok()) status_ = module.status();
        return;
      }
      field.push_back(*module);
    }
  }
  absl::Status Finish() {
    RETURN_IF_ERROR(status_);
    for (const auto& [key, unused] : object_.items()) {
      if (!taken_.contains(key)) {
        return Error::Field(Reason::kUnknownField, key, "is not a field of a training spec");
      }
    }
    return absl::OkStatus();
  }

 private:
  const json* Take(const char* key) {
    taken_.insert(key);
    const auto it = object_.find(key);
    return it == object_.end() ? nullptr : &*it;
  }
  void Fault(const char* key, const json& value, const std::string& wanted) {
    if (status_.ok()) {
      status_ = Error::Field(Reason::kSpecInvalid, key,
                             absl::StrCat("is ", value.dump(), ", not ", wanted));
    }
  }

  const json& object_;
  std::set<std::string> taken_;
  absl::Status status_;
};

}  // namespace

std::string TrainSpecToJson(const TrainSpec& spec) {
  json modules = json::array();
  for (const Module module : spec.target_modules)
    modules.push_back(std::string(ModuleName(module)));
  json object = {// nlohmann's objects are sorted by key
                       {"lora_r", spec.lora_r},
                       {"lora_alpha", spec.lora_alpha},
                       {"lora_dropout", spec.lora_dropout},
                       {"target_modules", modules},
                       {"use_rslora", spec.use_rslora},
                       {"quant", WordOf(kQuantWords, spec.quant)},
                       {"double_quant", spec.double_quant},
                       {"format", spec.format},
                       {"chat_template", spec.chat_template},
                       {"train_on_inputs", spec.train_on_inputs},
                       {"sequence_len", spec.sequence_len},
                       {"sample_packing", spec.sample_packing},
                       {"excess_length", WordOf(kExcessWords, spec.excess_length)},
                       {"val_set_size", spec.val_set_size},
                       {"optimizer", WordOf(kOptimizerWords, spec.optimizer)},
                       {"learning_rate", spec.learning_rate},
                       {"lr_schedule", WordOf(kScheduleWords, spec.lr_schedule)},
                       {"warmup_ratio", spec.warmup_ratio},
                       {"warmup_steps", spec.warmup_steps},
                       {"weight_decay", spec.weight_decay},
                       {"adam_beta1", spec.adam_beta1},
                       {"adam_beta2", spec.adam_beta2},
                       {"adam_epsilon", spec.adam_epsilon},
                       {"max_grad_norm", spec.max_grad_norm},
                       {"micro_batch_size", spec.micro_batch_size},
                       {"gradient_accumulation_steps", spec.gradient_accumulation_steps},
                       {"num_epochs", spec.num_epochs},
                       {"max_steps", spec.max_steps},
                       {"recompute", WordOf(kRecomputeWords, spec.recompute)},
                       {"logging_steps", spec.logging_steps},
                       {"eval_steps", spec.eval_steps},
                       {"save_steps", spec.save_steps},
                       {"evals_per_epoch", spec.evals_per_epoch},
                       {"saves_per_epoch", spec.saves_per_epoch},
                       {"save_interval_seconds", spec.save_interval_seconds},
                       {"save_total_limit", spec.save_total_limit},
                       {"seed", spec.seed},
                       {"allow_numerics_change", spec.allow_numerics_change}};
  // Younger than the first checkpoints: only when they say something, so that digests of older specs stay.
  if (spec.paged_optimizer) object["paged_optimizer"] = true;
  if (spec.offload_activations) object["offload_activations"] = true;
  if (spec.base_cache != BaseCache::kAuto) object["base_cache"] = WordOf(kBaseCacheWords, spec.base_cache);
  if (spec.graphs != Graphs::kAuto) object["cuda_graphs"] = WordOf(kGraphsWords, spec.graphs);
  if (spec.keep_blocks != 0) object["keep_blocks"] = spec.keep_blocks;
  if (spec.data_rows != 0) object["data_rows"] = spec.data_rows;
  return object.dump(-1, ' ', false, json::error_handler_t::replace);
}

absl::StatusOr<TrainSpec> TrainSpecFromJson(std::string_view text) {
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object())
    return Error(Reason::kSpecInvalid, "the training spec is no JSON object");
  TrainSpec spec;
  Reader read(object);
  read.Number("lora_r", spec.lora_r);
  read.Number("lora_alpha", spec.lora_alpha);
  read.Number("lora_dropout", spec.lora_dropout);
  read.Modules("target_modules", spec.target_modules);
  read.Flag("use_rslora", spec.use_rslora);
  read.Choice("quant", kQuantWords, spec.quant);
  read.Flag("double_quant", spec.double_quant);
  read.Text("format", spec.format);
  read.Text("chat_template", spec.chat_template);
  read.Flag("train_on_inputs", spec.train_on_inputs);
  read.Number("sequence_len", spec.sequence_len);
  read.Flag("sample_packing", spec.sample_packing);
  read.Choice("excess_length", kExcessWords, spec.excess_length);
  read.Number("val_set_size", spec.val_set_size);
  read.Choice("optimizer", kOptimizerWords, spec.optimizer);
  read.Flag("paged_optimizer", spec.paged_optimizer);
  read.Number("learning_rate", spec.learning_rate);
  read.Choice("lr_schedule", kScheduleWords, spec.lr_schedule);
  read.Number("warmup_ratio", spec.warmup_ratio);
  read.Number("warmup_steps", spec.warmup_steps);
  read.Number("weight_decay", spec.weight_decay);
  read.Number("adam_beta1", spec.adam_beta1);
  read.Number("adam_beta2", spec.adam_beta2);
  read.Number("adam_epsilon", spec.adam_epsilon);
  read.Number("max_grad_norm", spec.max_grad_norm);
  read.Number("micro_batch_size", spec.micro_batch_size);
  read.Number("gradient_accumulation_steps", spec.gradient_accumulation_steps);
  read.Number("num_epochs", spec.num_epochs);
  read.Number("max_steps", spec.max_steps);
  if (object.contains("gradient_checkpointing")) {  // what 0.1.0 wrote
    bool checkpointing = true;
    read.Flag("gradient_checkpointing", checkpointing);
    spec.recompute = checkpointing ? Recompute::kFull : Recompute::kNone;
  }
  read.Choice("recompute", kRecomputeWords, spec.recompute);
  read.Number("keep_blocks", spec.keep_blocks);
  read.Flag("offload_activations", spec.offload_activations);
  read.Choice("base_cache", kBaseCacheWords, spec.base_cache);
  read.Choice("cuda_graphs", kGraphsWords, spec.graphs);
  read.Number("logging_steps", spec.logging_steps);
  read.Number("eval_steps", spec.eval_steps);
  read.Number("save_steps", spec.save_steps);
  read.Number("evals_per_epoch", spec.evals_per_epoch);
  read.Number("saves_per_epoch", spec.saves_per_epoch);
  read.Number("save_interval_seconds", spec.save_interval_seconds);
  read.Number("save_total_limit", spec.save_total_limit);
  read.Number("seed", spec.seed);
  read.Flag("allow_numerics_change", spec.allow_numerics_change);
  read.Number("data_rows", spec.data_rows);
  RETURN_IF_ERROR(read.Finish());
  return spec;
}

}  // namespace nibble::spec

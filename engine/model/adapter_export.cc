#include <algorithm>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "base/digest.h"
#include "base/file.h"
#include "base/status.h"
#include "engine/model/adapter.h"
#include "engine/model/hashed_file.h"
#include "engine/model/safetensors.h"
#include "engine/model/safetensors_write.h"
#include "engine/spec/base_layout.h"
#include "engine/spec/checkpoint_tensors.h"
#include "engine/spec/words.h"
#include "engine/text/json.h"
#include "engine/text/text.h"

namespace nibble::engine {
namespace {

using nlohmann::json;
using spec::Module;

// JSON has no number for what is not finite; the strings are those of the worker protocol.
json Number(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  return value;
}

// Whole numbers without a fraction, as PEFT writes lora_alpha.
json Plain(double value) {
  if (value == std::floor(value) && std::abs(value) < 1e15) return static_cast<int64_t>(value);
  return value;
}

std::string Pretty(const json& value) {
  return value.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
}

json TargetNames(const AdapterConfig& config) {
  json names = json::array();
  for (const Module module : config.target_modules)
    names.push_back(std::string(spec::ModuleName(module)));
  return names;
}

// Names alone would match what sees pictures, too: its attention has a q_proj as well. One group at the end
// is what vLLM understands of a pattern.
json Targets(const AdapterConfig& config, const spec::ModelConfig& model) {
  if (!model.HasVision()) return TargetNames(config);
  std::string names;
  for (const Module module : config.target_modules)
    absl::StrAppend(&names, names.empty() ? "" : "|", View(spec::ModuleName(module)));
  return absl::StrCat(".*language_model\\..*\\.(", names, ")");
}

std::string ConfigJson(const AdapterConfig& config, const spec::ModelConfig& model) {
  const json null;
  const json value = {{"alpha_pattern", json::object()},
                      {"auto_mapping", null},
                      {"base_model_name_or_path", config.base_model_name},
                      {"bias", "none"},
                      {"fan_in_fan_out", false},
                      {"inference_mode", true},
                      {"init_lora_weights", true},
                      {"layer_replication", null},
                      {"layers_pattern", null},
                      {"layers_to_transform", null},
                      {"loftq_config", json::object()},
                      {"lora_alpha", Plain(config.alpha)},
                      {"lora_dropout", config.dropout},
                      {"megatron_config", null},
                      {"megatron_core", "megatron.core"},
                      {"modules_to_save", null},
                      {"peft_type", "LORA"},
                      {"r", config.r},
                      {"rank_pattern", json::object()},
                      {"revision", null},
                      {"target_modules", Targets(config, model)},
                      {"task_type", "CAUSAL_LM"},
                      {"use_dora", false},
                      {"use_rslora", config.use_rslora}};
  return Pretty(value);
}

// Beside, and renamed when it is durable. `fill` writes piece by piece: neither masters nor the rows of a
// long job are in memory twice.
absl::StatusOr<ExportedFile> WriteStreamed(const std::string& directory, const char* name,
                                           const std::function<absl::Status(HashedFile&)>& fill) {
  const std::string temporary = JoinPath(directory, absl::StrCat(name, ".tmp"));
  HashedFile file(temporary);
  RETURN_IF_ERROR(file.Open());
  absl::Cleanup nothing_half = [&] { RemoveFile(temporary).IgnoreError(); };
  RETURN_IF_ERROR(fill(file));
  RETURN_IF_ERROR(file.Finish());
  RETURN_IF_ERROR(Rename(temporary, JoinPath(directory, name)));
  std::move(nothing_half).Cancel();
  return ExportedFile{name, file.bytes(), file.digest()};
}

absl::Status WriteText(HashedFile& file, std::string_view text) {
  return file.Write(text.data(), static_cast<int64_t>(text.size()));
}

absl::Status WriteWeights(const AdapterExport& adapter, HashedFile& file) {
  std::vector<TensorToWrite> tensors;
  const int64_t r = adapter.config.r;
  for (const AdapterPairView& pair : adapter.pairs) {
    const spec::LinearShape shape = spec::ShapeOf(adapter.model, pair.module);
    const std::string path =
        absl::StrCat("base_model.model.", spec::ModulePath(adapter.model, pair.layer, pair.module));
    tensors.push_back({path + ".lora_A.weight", TensorType::kF32, {r, shape.k}, pair.a});
    tensors.push_back({path + ".lora_B.weight", TensorType::kF32, {shape.n, r}, pair.b});
  }
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
  if (!adapter.weights_digest.empty()) {
    metadata[kBaseWeightsKey] = adapter.weights_digest;
    metadata[kBaseQuantKey] = WordOf(spec::kQuantWords, adapter.spec.quant);
    metadata[kBaseDoubleQuantKey] = adapter.spec.double_quant ? "true" : "false";
  }
  return StreamSafetensors(tensors, metadata,
                           [&](const void* data, int64_t size) { return file.Write(data, size); });
}

absl::Status WriteMetrics(std::span<const MetricRow> metrics, HashedFile& file) {
  for (const MetricRow& row : metrics) {
    json line = {{"step", row.step},
                 {"epoch", Number(row.epoch)},
                 {"tokens", row.tokens},
                 {"time_us", row.step_time_us}};
    line[row.is_eval ? "eval_loss" : "loss"] = Number(row.loss);
    if (!row.is_eval) {
      line["grad_norm"] = Number(row.grad_norm);
      line["learning_rate"] = Number(row.learning_rate);
      line["target_tokens"] = row.target_tokens;
    }
    RETURN_IF_ERROR(WriteText(file, line.dump() + "\n"));
  }
  return absl::OkStatus();
}

json LogEntry(const MetricRow& row) {
  json entry = {{"epoch", Number(row.epoch)}, {"step", row.step}};
  if (row.is_eval) {
    entry["eval_loss"] = Number(row.loss);
  } else {
    entry["loss"] = Number(row.loss);
    entry["grad_norm"] = Number(row.grad_norm);
    entry["learning_rate"] = Number(row.learning_rate);
  }
  return entry;
}

// The form transformers' Trainer leaves behind, which plotting tools read.
absl::Status WriteTrainerState(const AdapterExport& adapter, HashedFile& file) {
  int64_t tokens = 0;
  double epoch = 0;
  for (const MetricRow& row : adapter.metrics) {
    if (row.is_eval) continue;
    tokens += row.tokens;
    epoch = row.epoch;
  }
  constexpr std::string_view kHere = "\"the rows\"";
  const json value = {{"best_metric", json()},
                      {"best_model_checkpoint", json()},
                      {"epoch", Number(epoch)},
                      {"eval_steps", adapter.spec.eval_steps},
                      {"global_step", adapter.step},
                      {"is_hyper_param_search", false},
                      {"is_local_process_zero", true},
                      {"is_world_process_zero", true},
                      {"log_history", "the rows"},
                      {"logging_steps", adapter.spec.logging_steps},
                      {"max_steps", adapter.total_steps},
                      {"num_input_tokens_seen", tokens},
                      {"num_train_epochs", Plain(adapter.spec.num_epochs)},
                      {"save_steps", adapter.spec.save_steps},
                      {"stateful_callbacks", json::object()},
                      {"total_flos", 0},
                      {"train_batch_size", adapter.spec.micro_batch_size},
                      {"trial_name", json()},
                      {"trial_params", json()}};
  const std::string text = Pretty(value);
  const size_t rows = text.find(kHere);
  RETURN_IF_ERROR(WriteText(file, std::string_view(text).substr(0, rows)));
  const char* before = "[\n    ";
  for (const MetricRow& row : adapter.metrics) {
    const std::string entry = LogEntry(row).dump(2);
    RETURN_IF_ERROR(WriteText(file, before + absl::StrReplaceAll(entry, {{"\n", "\n    "}})));
    before = ",\n    ";
  }
  RETURN_IF_ERROR(WriteText(file, adapter.metrics.empty() ? "[]" : "\n  ]"));
  return WriteText(file, std::string_view(text).substr(rows + kHere.size()));
}

// The recipe with every default written out; feeding it to `nibble run` with base and data set repeats the
// job. What never changes the result and hangs on the device (recomputation, a base kept decoded) is left
// open.
std::string Recipe(const AdapterExport& adapter) {
  const spec::TrainSpec& s = adapter.spec;
  std::string out = absl::StrCat(
      "# What this adapter was trained with, every default written out. To repeat it:\n"
      "# nibble run nibble_job.yaml base_model=DIR datasets=FILE",
      adapter.has_eval_dataset ? " test_datasets=FILE" : "", "\n");
  const auto put = [&](std::string_view key, const json& value) {
    absl::StrAppend(&out, View(key), ": ",
                    value.dump(-1, ' ', false, json::error_handler_t::replace), "\n");
  };
  put("base_model", adapter.config.base_model_name);
  put("adapter", s.quant == spec::QuantKind::kBF16 ? "lora" : "qlora");
  if (s.quant != spec::QuantKind::kBF16) {
    put("bnb_4bit_quant_type", WordOf(spec::kQuantWords, s.quant));
    put("bnb_4bit_use_double_quant", s.double_quant);
  }
  put("lora_r", s.lora_r);
  put("lora_alpha", Plain(s.lora_alpha));
  put("lora_dropout", s.lora_dropout);
  put("lora_target_modules", TargetNames(adapter.config));
  put("peft_use_rslora", s.use_rslora);
  // Rows may have the keys of two formats. The path is whoever's who repeats it.
  if (s.format != "auto") absl::StrAppend(&out, "datasets:\n  - type: ", s.format, "\n");
  put("chat_template", s.chat_template);
  put("train_on_inputs", s.train_on_inputs);
  put("sequence_len", s.sequence_len);
  put("sample_packing", s.sample_packing);
  put("excess_length_strategy", WordOf(spec::kExcessWords, s.excess_length));
  // Beside a file of its own for evaluation every row of the data set was trained on.
  const double held_out = adapter.has_eval_dataset ? 0 : s.val_set_size;
  if (held_out >= 0) put("val_set_size", held_out);
  put("optimizer", WordOf(spec::kOptimizerWords, s.optimizer));
  put("paged_optimizer", s.paged_optimizer);
  put("learning_rate", s.learning_rate);
  put("lr_scheduler", WordOf(spec::kScheduleWords, s.lr_schedule));
  if (s.warmup_steps >= 0) {
    put("warmup_steps", s.warmup_steps);
  } else {
    put("warmup_ratio", s.warmup_ratio);
  }
  put("weight_decay", s.weight_decay);
  put("adam_beta1", s.adam_beta1);
  put("adam_beta2", s.adam_beta2);
  put("adam_epsilon", s.adam_epsilon);
  put("max_grad_norm", s.max_grad_norm);
  put("micro_batch_size", s.micro_batch_size);
  put("gradient_accumulation_steps", s.gradient_accumulation_steps);
  put("num_epochs", Plain(s.num_epochs));
  if (s.max_steps > 0) put("max_steps", s.max_steps);
  put("recompute", WordOf(spec::kRecomputeWords, spec::Recompute::kAuto));
  put("activation_offloading", s.offload_activations);
  put("cuda_graphs", WordOf(spec::kGraphsWords, s.graphs));
  put("logging_steps", s.logging_steps);
  if (s.eval_steps > 0) put("eval_steps", s.eval_steps);
  if (s.save_steps > 0) put("save_steps", s.save_steps);
  if (s.evals_per_epoch >= 0) put("evals_per_epoch", Plain(s.evals_per_epoch));
  if (s.saves_per_epoch >= 0) put("saves_per_epoch", Plain(s.saves_per_epoch));
  put("save_total_limit", s.save_total_limit);
  put("seed", s.seed);
  absl::StrAppend(&out, "nibble:\n  save_interval_seconds: ", s.save_interval_seconds,
                  "\n  allow_numerics_change: ", s.allow_numerics_change ? "true" : "false", "\n");
  return out;
}

std::string ModelCard(const AdapterExport& adapter) {
  const AdapterConfig& config = adapter.config;
  double first_loss = 0, last_loss = 0, eval_loss = 0;
  bool has_loss = false, has_eval = false;
  int64_t tokens = 0;
  for (const MetricRow& row : adapter.metrics) {
    if (row.is_eval) {
      eval_loss = row.loss;
      has_eval = true;
      continue;
    }
    if (!has_loss) first_loss = row.loss;
    last_loss = row.loss;
    has_loss = true;
    tokens += row.tokens;
  }
  std::string targets;
  for (const Module module : config.target_modules) {
    absl::StrAppend(&targets, targets.empty() ? "" : ", ", View(spec::ModuleName(module)));
  }
  std::string out =
      absl::StrCat("---\nbase_model: ", JsonString(config.base_model_name),
                   "\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n- lora\n"
                   "- nibble\n---\n\n# ",
                   adapter.job_name.empty() ? "LoRA adapter" : adapter.job_name, "\n\n");
  absl::StrAppend(&out, "A LoRA adapter for `", config.base_model_name,
                  "`, trained with Nibble.\n\n");
  absl::StrAppend(
      &out, "| | |\n|---|---|\n| rank, alpha | ", config.r, ", ", Plain(config.alpha).dump(),
      config.use_rslora ? " (rsLoRA)" : "", " |\n| modules | ", targets, " |\n| frozen base | ",
      View(WordOf(spec::kQuantWords, adapter.spec.quant)),
      adapter.spec.double_quant ? ", double quantization" : "", " |\n| optimizer steps | ",
      adapter.step, " of ", adapter.total_steps, " |\n| tokens | ", tokens, " |\n");
  if (has_loss) {
    absl::StrAppend(&out, "| loss, first and last step | ",
                    absl::StrFormat("%.4f, %.4f", first_loss, last_loss), " |\n");
  }
  if (has_eval)
    absl::StrAppend(&out, "| held-out loss | ", absl::StrFormat("%.4f", eval_loss), " |\n");
  absl::StrAppend(&out, "| base digest | `", adapter.base_digest, "` |\n| numerics | `",
                  adapter.numerics_id, "` |\n\n");
  absl::StrAppend(
      &out,
      "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
      "base = AutoModelForCausalLM.from_pretrained(",
      JsonString(config.base_model_name),
      ")\nmodel = PeftModel.from_pretrained(base, \"path/to/this/directory\")\n```\n\n"
      "`nibble_job.yaml` is the recipe with every default written out, `metrics.jsonl` and\n"
      "`trainer_state.json` the course of the run; `sha256sum -c checksums.txt` checks the "
      "files.\n");
  return out;
}

}  // namespace

absl::StatusOr<std::vector<ExportedFile>> ExportAdapter(const std::string& directory,
                                                        const AdapterExport& adapter) {
  RETURN_IF_ERROR(MakeDirs(directory));
  std::vector<ExportedFile> files;
  std::string checksums;
  const auto write = [&](const std::string& name, const std::string& data) -> absl::Status {
    RETURN_IF_ERROR(WriteFileAtomic(JoinPath(directory, name), data));
    files.push_back({name, static_cast<int64_t>(data.size()), Sha256Hex(data)});
    return absl::OkStatus();
  };
  const auto stream = [&](const char* name, const auto& fill) -> absl::Status {
    ASSIGN_OR_RETURN(ExportedFile file, WriteStreamed(directory, name, fill));
    files.push_back(std::move(file));
    return absl::OkStatus();
  };
  // They are listed by name.
  RETURN_IF_ERROR(write("README.md", ModelCard(adapter)));
  RETURN_IF_ERROR(write("adapter_config.json", ConfigJson(adapter.config, adapter.model)));
  RETURN_IF_ERROR(
      stream("adapter_model.safetensors", [&](HashedFile& f) { return WriteWeights(adapter, f); }));
  RETURN_IF_ERROR(stream("metrics.jsonl", [&](HashedFile& f) { return WriteMetrics(adapter.metrics, f); }));
  RETURN_IF_ERROR(write("nibble_job.yaml", Recipe(adapter)));
  RETURN_IF_ERROR(
      stream("trainer_state.json", [&](HashedFile& f) { return WriteTrainerState(adapter, f); }));
  for (const ExportedFile& file : files) {
    absl::StrAppend(&checksums, file.sha256, "  ", file.name, "\n");
  }
  RETURN_IF_ERROR(write("checksums.txt", checksums));
  RETURN_IF_ERROR(SyncDir(directory));
  return files;
}

}  // namespace nibble::engine

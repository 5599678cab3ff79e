#include "client/recipe_reader.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/id.h"
#include "client/recipe_values.h"

namespace nibble::client {
namespace {

// What `preset` writes wherever the recipe itself does not: settings others have published, as a recipe's
// keys. Left out where the recipe says the same by the other key.
struct PresetKey {
  std::string_view key;
  std::string_view value;
  std::string_view other = {};
};
// Of the QLoRA paper and its scripts, for 7B and 13B.
constexpr PresetKey kQloraPaper[] = {
    {"lora_r", "64"},
    {"lora_alpha", "16"},
    {"lora_dropout", "0.1"},
    {"learning_rate", "2e-4"},
    {"lr_scheduler", "constant"},
    {"warmup_ratio", "0.03", "warmup_steps"},
    {"optimizer", "paged_adamw_32bit", "paged_optimizer"},
    {"weight_decay", "0"},
    {"adam_beta1", "0.9"},
    {"adam_beta2", "0.999"},
    {"max_grad_norm", "0.3"},
    {"micro_batch_size", "1"},
    {"gradient_accumulation_steps", "16"},
    {"max_steps", "1875", "num_epochs"},
    // 16 tokens of prompt, 512 of answer, cut there.
    {"sequence_len", "528"},
    {"excess_length_strategy", "truncate"},
    {"sample_packing", "false"},
    {"seed", "0"},
};

}  // namespace

void RecipeReader::ApplyPreset() {
  if (preset_.empty()) return;
  // As the recipe has them: what is set below must not hide what comes after it.
  const std::map<std::string_view, std::string> said = used_;
  for (const PresetKey& entry : kQloraPaper) {
    if (said.contains(entry.key) || said.contains(entry.other)) continue;
    Yaml value;
    value.kind = Yaml::Kind::kScalar;
    value.text = std::string(entry.value);
    ReadKey(std::string(entry.key), value);
  }
}

void RecipeReader::ReadNibble(const Yaml& value) {
  static const std::vector<std::string_view> kKeys = {"name",
                                                      "preset",
                                                      "priority",
                                                      "labels",
                                                      "queue",
                                                      "resources",
                                                      "max_run_time",
                                                      "retries",
                                                      "retention",
                                                      "report_to",
                                                      "secrets",
                                                      "quantization_type",
                                                      "save_interval_seconds",
                                                      "allow_numerics_change"};
  if (!value.IsMap()) return Wrong("nibble", value, "a map");
  for (const auto& [name, field] : value.fields) {
    if (std::find(kKeys.begin(), kKeys.end(), name) == kKeys.end()) {
      const std::string close = ClosestKey(name, kKeys);
      Refuse(Reason::kUnknownField, "nibble." + name, field,
             close.empty() ? "is not a key we know"
                           : absl::StrCat("is not a key we know; did you mean ", close, "?"));
    } else if (!field.IsEmpty()) {
      ReadNibbleField("nibble." + name, name, field);
    }
  }
}

void RecipeReader::ReadNibbleField(const std::string& key, const std::string& name, const Yaml& value) {
  int64_t number = 0;
  bool flag = false;
  if (name == "name") {
    if (!value.IsScalar() || !IsValidId(value.text)) {
      return Wrong(key, value, "1 to 63 characters of a-z, 0-9 and -");
    }
    recipe_.name = value.text;
  } else if (name == "preset") {
    if (!value.IsScalar() || value.text != "qlora-paper") return Wrong(key, value, "qlora-paper");
    preset_ = value.text;
  } else if (name == "priority") {
    if (!ReadInteger(value, number) || number < -1000 || number > 1000) {
      return Wrong(key, value, "a whole number from -1000 to 1000");
    }
    recipe_.priority = static_cast<int32_t>(number);
  } else if (name == "labels") {
    if (!value.IsMap()) return Wrong(key, value, "a map of texts");
    for (const auto& [label, text] : value.fields) {
      if (text.IsList() || text.IsMap()) return Wrong(key + "." + label, text, "a text");
      recipe_.labels[label] = text.text;
    }
  } else if (name == "quantization_type") {
    if (!value.IsScalar()) return Wrong(key, value, "nf4, fp4, int4, int8 or bf16");
    Set("quantization.type", value.text);
  } else if (name == "save_interval_seconds") {
    if (!ReadInteger(value, number) || number < 0) return Wrong(key, value, "seconds, 0 or more");
    Set("training.saveIntervalSeconds", number);
  } else if (name == "allow_numerics_change") {
    if (!ReadFlag(value, flag)) return Wrong(key, value, "true or false");
    Set("training.allowNumericsChange", flag);
  } else if (name == "queue") {
    if (value.text != "default")
      Unsupported(key, value, "there is one queue, default; use priority");
  } else if (name == "resources" || name == "retention" || name == "report_to") {
    Notice(key, "the server decides by its memory plan and its own settings");
  } else {
    Unsupported(key, value, "");
  }
}

// What depends on several keys.
void RecipeReader::Finish(const Yaml& root) {
  ApplyPreset();
  ApplyTemplates();
  if (recipe_.base_model.empty() && !used_.contains("base_model")) {
    Refuse(Reason::kSpecInvalid, "base_model", root, "is required: a directory, or models/{id}");
  }
  if (recipe_.dataset.empty() && !used_.contains("datasets")) {
    Refuse(Reason::kSpecInvalid, "datasets", root, "is required: a JSONL file, or datasets/{id}");
  }
  if (!all_linear_ && !targets_.empty()) Set("lora.targetModules", targets_);
  // Plain "constant" means no warm-up unless the recipe itself asks for one.
  if (constant_without_warmup_ && !used_.contains("warmup_ratio") &&
      !used_.contains("warmup_steps")) {
    Set("optimizer.warmupSteps", 0);
  }
  if (used_.contains("warmup_steps") && used_.contains("warmup_ratio"))
    Notice("warmup_ratio", "warmup_steps counts");
  if (used_.contains("num_epochs") && spec_.contains("training") && spec_["training"].contains("maxSteps"))
    Notice("num_epochs", "max_steps counts");
  const bool has_type = spec_.contains("quantization") && spec_["quantization"].contains("type");
  // Where that key comes from, the base is then in 16 bits.
  if (used_.contains("finetuning_type") && adapter_.empty() && four_bit_ == -1 && !has_type) {
    recipe_.notices.push_back(
        "finetuning_type lora: the base is held in 4 bits, as quantization_bit: 4 says; "
        "adapter: lora holds it in 16");
  }
  if (adapter_ == "qlora" && four_bit_ == 0) {
    Refuse(Reason::kSpecInvalid, "load_in_4bit", root,
           "is false, but adapter: qlora means 4 bit");
  } else if (!has_type && four_bit_ != 1 && (adapter_ == "lora" || four_bit_ == 0)) {
    Set("quantization.type", "bf16");
  }
  if (root.Find("revision_of_model") && !recipe_.base_revision.empty() &&
      IsDirectory(recipe_.base_model)) {
    Notice("revision_of_model", "the base model is a directory");
  }
}

}  // namespace nibble::client

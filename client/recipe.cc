#include "client/recipe.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/error.h"
#include "base/file.h"
#include "base/id.h"
#include "base/status.h"
#include "client/recipe_keys.h"
#include "client/yaml.h"

namespace nibble::client {
namespace {

using nlohmann::json;

std::string Quote(const Yaml& value) {
  if (value.IsScalar()) return absl::StrCat("\"", value.text.substr(0, 80), "\"");
  return value.IsList() ? "a list" : value.IsMap() ? "a map" : "nothing";
}

bool OneOf(std::string_view text, std::string_view choices) {
  for (absl::string_view choice :
       absl::StrSplit(absl::string_view(choices.data(), choices.size()), '|')) {
    if (std::string_view(choice.data(), choice.size()) == text) return true;
  }
  return false;
}

bool ReadFlag(const Yaml& value, bool& out) {
  if (!value.IsScalar()) return false;
  const std::string text = absl::AsciiStrToLower(value.text);
  if (OneOf(text, "true|yes|on")) {
    out = true;
  } else if (OneOf(text, "false|no|off")) {
    out = false;
  } else {
    return false;
  }
  return true;
}

bool ReadInteger(const Yaml& value, int64_t& out) {
  if (!value.IsScalar()) return false;
  if (absl::SimpleAtoi(value.text, &out)) return true;
  double number = 0;  // 1e3 and 4.0 are whole numbers too
  if (!absl::SimpleAtod(value.text, &number) || number != std::floor(number) ||
      std::abs(number) > 9e15) {
    return false;
  }
  out = static_cast<int64_t>(number);
  return true;
}

bool ReadNumber(const Yaml& value, double& out) {
  return value.IsScalar() && absl::SimpleAtod(value.text, &out) && std::isfinite(out);
}

// Says "off" in one of the ways recipes have for it.
bool IsNeutral(const Yaml& value) {
  if (value.IsEmpty()) return true;
  if (!value.IsScalar()) return false;
  double number = 1;
  return OneOf(absl::AsciiStrToLower(value.text), "false|no|off|none") ||
         (ReadNumber(value, number) && number == 0);
}

class Reader {
 public:
  Reader(std::string source, std::string directory)
      : source_(std::move(source)), directory_(std::move(directory)) {}

  absl::StatusOr<Recipe> Read(const Yaml& root) {
    if (!root.IsMap()) {
      return Error(Reason::kSpecInvalid, absl::StrCat(source_, ": a recipe is a map of keys"))
          .ToStatus();
    }
    for (const auto& [key, value] : root.fields) ReadKey(key, value);
    Finish(root);
    if (!faults_.empty()) return Faults();
    recipe_.spec_json = spec_.dump();
    return std::move(recipe_);
  }

 private:
  struct Fault {
    Reason reason;
    std::string key;
    std::string place;
    std::string text;
  };

  std::string Place(const Yaml& value) const {
    return value.line ? absl::StrCat(source_, ":", value.line, ":", value.column) : "override";
  }
  void Refuse(Reason reason, const std::string& key, const Yaml& value, std::string text) {
    faults_.push_back({reason, key, Place(value), std::move(text)});
  }
  void Wrong(const std::string& key, const Yaml& value, const std::string& expected) {
    Refuse(Reason::kSpecInvalid, key, value,
           absl::StrCat("must be ", expected, ", got ", Quote(value)));
  }
  void Unsupported(const std::string& key, const Yaml& value, std::string_view advice) {
    std::string text = absl::StrCat("is not supported (", Quote(value), ")");
    if (!advice.empty()) absl::StrAppend(&text, "; ", std::string(advice));
    Refuse(Reason::kUnsupportedOption, key, value, text);
  }
  void Notice(const std::string& key, std::string_view why) {
    recipe_.notices.push_back(absl::StrCat(key, " has no effect here: ", std::string(why)));
  }

  absl::Status Faults() const {
    // The file's worst fault names the whole: unknown and unsupported keys before bad values.
    Reason reason = faults_[0].reason;
    std::vector<std::string> lines;
    for (const Fault& f : faults_) lines.push_back(absl::StrCat(f.place, ": ", f.key, " ", f.text));
    Error error(reason, absl::StrJoin(lines, "\n"));
    for (const Fault& f : faults_) error.Violation(f.key, f.text);
    return error.ToStatus();
  }

  void Set(std::string_view path, json value) {
    json* at = &spec_;
    for (absl::string_view part :
         absl::StrSplit(absl::string_view(path.data(), path.size()), '.')) {
      at = &(*at)[std::string(part)];
    }
    *at = std::move(value);
  }

  void ReadKey(const std::string& key, const Yaml& value) {
    const KeyRule* rule = FindKeyRule(key);
    if (!rule) {
      const std::string close = ClosestKey(key, KnownKeys());
      Refuse(Reason::kUnknownField, key, value,
             close.empty() ? "is not a key we know"
                           : absl::StrCat("is not a key we know; did you mean ", close, "?"));
      return;
    }
    if (value.IsEmpty()) return;
    const bool once = rule->action != KeyAction::kIgnored && rule->action != KeyAction::kRefused;
    if (once && !rule->key.ends_with("*")) {
      const auto [first, fresh] = used_.emplace(rule->key, key);
      if (!fresh) {
        Refuse(Reason::kSpecInvalid, key, value,
               absl::StrCat("means the same as ", first->second, "; keep one of them"));
        return;
      }
    }
    Apply(*rule, key, value);
  }

  void Apply(const KeyRule& rule, const std::string& key, const Yaml& value) {
    switch (rule.action) {
      case KeyAction::kText:
        if (!value.IsScalar()) return Wrong(key, value, "a text");
        return Set(rule.path, value.text);
      case KeyAction::kInteger: {
        constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
        int64_t number = 0;
        if (!ReadInteger(value, number)) return Wrong(key, value, "a whole number");
        if (number < 0 || number > kMost) {
          return Wrong(key, value, absl::StrCat("between 0 and ", kMost));
        }
        return Set(rule.path, number);
      }
      case KeyAction::kNumber: {
        double number = 0;
        if (!ReadNumber(value, number)) return Wrong(key, value, "a number");
        return Set(rule.path, number);
      }
      case KeyAction::kFlag:
      case KeyAction::kInverseFlag: {
        bool flag = false;
        if (!ReadFlag(value, flag)) return Wrong(key, value, "true or false");
        return Set(rule.path, flag != (rule.action == KeyAction::kInverseFlag));
      }
      case KeyAction::kIgnored:
        if (IsNeutral(value) || (value.IsScalar() && OneOf(value.text, rule.path))) return;
        return Notice(key, rule.note);
      case KeyAction::kMustBe:
        return MustBe(rule, key, value);
      case KeyAction::kRefused:
        if (!IsNeutral(value)) Unsupported(key, value, rule.note);
        return;
      case KeyAction::kSpecial:
        return Special(rule, key, value);
    }
  }

  void MustBe(const KeyRule& rule, const std::string& key, const Yaml& value) {
    const Yaml& one = value.IsList() && value.items.size() == 1 ? value.items[0] : value;
    if (one.IsScalar() && OneOf(one.text, rule.path)) return;
    Unsupported(key, value, rule.note);
  }

  void Special(const KeyRule& rule, const std::string& key, const Yaml& value) {
    if (rule.key == "datasets") return ReadDatasets(key, value, recipe_.dataset, true);
    if (rule.key == "test_datasets") return ReadDatasets(key, value, recipe_.eval_dataset, false);
    if (rule.key == "nibble") return ReadNibble(value);
    if (rule.key == "lora_target_modules") return ReadTargets(key, value);
    if (rule.key == "plugins") return ReadPlugins(key, value);
    if (!value.IsScalar()) return Wrong(key, value, "one value");
    const std::string& text = value.text;
    if (rule.key == "base_model") {
      recipe_.base_model = Located(key, value, "models");
    } else if (rule.key == "revision_of_model") {
      recipe_.base_revision = text;
    } else if (rule.key == "adapter") {
      if (text != "qlora" && text != "lora") {
        return Unsupported(key, value, "adapter is qlora or lora");
      }
      adapter_ = text;
    } else if (rule.key == "load_in_4bit") {
      bool flag = false;
      if (!ReadFlag(value, flag)) return Wrong(key, value, "true or false");
      four_bit_ = flag ? 1 : 0;
    } else if (rule.key == "quantization_bit") {
      if (text != "4") return Unsupported(key, value, "the base is held in 4 bit");
      four_bit_ = 1;
    } else if (rule.key == "lora_target_linear") {
      if (!ReadFlag(value, all_linear_)) return Wrong(key, value, "true or false");
    } else if (rule.key == "optimizer") {
      ReadOptimizer(key, value);
    } else if (rule.key == "lr_scheduler") {
      ReadScheduler(key, value);
    } else if (rule.key == "max_steps") {
      int64_t steps = 0;
      if (!ReadInteger(value, steps)) return Wrong(key, value, "a whole number");
      // -1 and 0 are how other trainers write "by epochs".
      if (steps > 0) Set(rule.path, steps);
    }
  }

  void ReadOptimizer(const std::string& key, const Yaml& value) {
    if (OneOf(value.text, "adamw|adamw_torch|adamw_torch_fused|adamw_hf|adamw_apex_fused")) return;
    if (OneOf(value.text,
              "adamw_bnb_8bit|adamw_8bit|paged_adamw_8bit|paged_adamw_32bit|paged_adamw|"
              "adamw_torch_8bit|adamw_torch_4bit|adamw_anyprecision")) {
      recipe_.notices.push_back(
          absl::StrCat(key, " ", value.text,
                       ": AdamW with 32-bit moments is used; for an adapter they are small"));
      return;
    }
    Unsupported(key, value, "use adamw");
  }

  void ReadScheduler(const std::string& key, const Yaml& value) {
    if (OneOf(value.text, "cosine|linear")) return Set("optimizer.lrScheduler", value.text);
    if (OneOf(value.text, "constant|constant_with_warmup")) {
      constant_without_warmup_ = value.text == "constant";
      return Set("optimizer.lrScheduler", "constant");
    }
    Unsupported(key, value, "use cosine, linear or constant");
  }

  void ReadTargets(const std::string& key, const Yaml& value) {
    static constexpr std::string_view kModules =
        "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj";
    std::vector<Yaml> names = value.items;
    if (value.IsScalar()) {
      for (absl::string_view name : absl::StrSplit(value.text, ',')) {
        Yaml item = value;
        item.text = std::string(absl::StripAsciiWhitespace(name));
        names.push_back(std::move(item));
      }
    } else if (!value.IsList()) {
      return Wrong(key, value, "a list of module names");
    }
    for (const Yaml& name : names) {
      if (name.IsScalar() && OneOf(name.text, "all|all-linear")) {
        all_linear_ = true;
      } else if (name.IsScalar() && OneOf(name.text, kModules)) {
        if (std::find(targets_.begin(), targets_.end(), name.text) == targets_.end()) {
          targets_.push_back(name.text);
        }
      } else {
        Unsupported(key, name,
                    "modules are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, "
                    "down_proj; patterns are not matched");
      }
    }
  }

  void ReadPlugins(const std::string& key, const Yaml& value) {
    std::vector<Yaml> names = value.items;
    if (value.IsScalar()) names.push_back(value);
    for (const Yaml& name : names) {
      if (name.text.find("liger") != std::string::npos ||
          name.text.find("cut_cross_entropy") != std::string::npos) {
        Notice(absl::StrCat(key, " ", name.text), "the engine has its own kernels");
      } else {
        Unsupported(key, name, "remove it");
      }
    }
  }

  // A path, made absolute or at least relative to the right place, or a resource name.
  std::string Located(const std::string& key, const Yaml& value, const std::string& collection) {
    const std::string& text = value.text;
    const std::string singular = collection.substr(0, collection.size() - 1) + ":";
    if (text.rfind(singular, 0) == 0) {
      const std::string name = absl::StrCat(collection, "/", text.substr(singular.size()));
      if (!ParseName(name, collection, key).ok())
        Wrong(key, value, "a name like " + singular + "my-id");
      return name;
    }
    if (text.find("://") != std::string::npos) {
      Unsupported(key, value, "download it first and give the path");
      return text;
    }
    if (text[0] == '/') return text;
    if (text.rfind("~/", 0) == 0) {
      const char* home = std::getenv("HOME");
      return absl::StrCat(home ? home : "", text.substr(1));
    }
    const std::string path = value.line && !directory_.empty() ? JoinPath(directory_, text) : text;
    if (!FileExists(path) && ParseName(text, collection, key).ok()) return text;
    // org/name stays as it is: the hub's cache knows it, the recipe's directory does not.
    if (collection == "models" && !FileExists(path) &&
        std::count(text.begin(), text.end(), '/') == 1 && text[0] != '.') {
      return text;
    }
    return path;
  }

  void ReadDatasets(const std::string& key, const Yaml& value, std::string& out, bool training) {
    if (value.IsScalar()) {
      out = Located(key, value, "datasets");
      return;
    }
    const Yaml* entry = &value;
    if (value.IsList()) {
      if (value.items.size() > 1) {
        return Unsupported(key, value.items[1], "join the files into one data set");
      }
      entry = &value.items[0];
    }
    if (entry->IsScalar()) {
      out = Located(key + "[0]", *entry, "datasets");
      return;
    }
    if (!entry->IsMap()) return Wrong(key, *entry, "a path, or a map with path");
    std::string format;
    for (const auto& [name, field] : entry->fields) {
      if (!field.IsEmpty())
        ReadDatasetField(absl::StrCat(key, "[0].", name), name, field, out, format);
    }
    if (out.empty()) Refuse(Reason::kSpecInvalid, key + "[0].path", *entry, "is required");
    if (training && !format.empty()) Set("data.format", format);
  }

  void ReadDatasetField(const std::string& path, const std::string& name, const Yaml& value,
                        std::string& out, std::string& format) {
    if (name == "path" || name == "data_files") {
      const Yaml& one = value.IsList() && value.items.size() == 1 ? value.items[0] : value;
      if (!one.IsScalar()) return Unsupported(path, value, "give one file");
      // data_files says which file of the directory or format in path.
      if (name == "data_files" || out.empty()) out = Located(path, one, "datasets");
      return;
    }
    if (!value.IsScalar()) {
      if (name == "message_property_mappings" || name == "roles" || name == "roles_to_train") {
        return ReadMessageMapping(path, name, value, format);
      }
      return Unsupported(path, value, "rename the fields of the data instead");
    }
    const std::string& text = value.text;
    if (name == "type") {
      if (text == "chat_template") {
        if (format.empty()) format = "messages";
      } else if (OneOf(text, "auto|messages|sharegpt|alpaca|text")) {
        format = text;
      } else if (text == "completion") {
        // Elsewhere this names rows of plain text, here rows of prompt and completion. The shapes
        // share no field, so the rows themselves say which it is.
        format = "auto";
      } else {
        Unsupported(path, value,
                    "types are chat_template, sharegpt, alpaca, completion, text, auto");
      }
    } else if (name == "field_messages") {
      if (text == "conversations") {
        format = "sharegpt";
      } else if (text != "messages") {
        Unsupported(path, value, "rename the field to messages");
      }
    } else if (name == "chat_template") {
      Set("data.chatTemplate", text);
    } else if (name == "split") {
      if (text != "train") Unsupported(path, value, "give a file with the rows wanted");
    } else if (name == "ds_type") {
      if (text != "json" && text != "jsonl") Unsupported(path, value, "convert the data to JSONL");
    } else if (OneOf(name, "field_instruction|field_input|field_output|field_system|field")) {
      const std::string usual = name == "field" ? "text" : name.substr(6);
      if (text != usual) Unsupported(path, value, absl::StrCat("rename the field to ", usual));
    } else if (OneOf(name, "message_field_role|message_field_content")) {
      if (OneOf(text, "from|value")) {
        format = "sharegpt";
      } else if (!OneOf(text, "role|content")) {
        Unsupported(path, value, "rename the fields to role and content");
      }
    } else if (name == "train_on_eos" ? OneOf(text, "turn|all")
                                      : name == "roles_to_train" && text == "assistant") {
      return;
    } else if (OneOf(name,
                     "trust_remote_code|conversation|name|shards|preprocess_shards|revision|"
                     "train_on_eos|train_on_eot|roles_to_train|train_on_split|input_format|"
                     "input_transform|message_field_training|message_field_training_detail|"
                     "drop_system_message|split_thinking|field_tools|field_thinking")) {
      if (!IsNeutral(value)) Unsupported(path, value, "");
    } else {
      Refuse(Reason::kUnknownField, path, value, "is not a key we know");
    }
  }

  void ReadMessageMapping(const std::string& path, const std::string& name, const Yaml& value,
                          std::string& format) {
    if (name == "roles_to_train") {
      if (value.items.size() == 1 && value.items[0].text == "assistant") return;
      return Unsupported(path, value, "answers of the assistant are what is trained on");
    }
    if (name == "roles") {
      // The usual table of role names is what both formats accept anyway.
      for (const auto& [role, names] : value.fields) {
        for (const Yaml& alias : names.items) {
          if (!OneOf(alias.text, "user|human|assistant|gpt|model|system|tool")) {
            Unsupported(path, alias, "rename the roles in the data");
          }
        }
      }
      return;
    }
    for (const auto& [property, field] : value.fields) {
      if (OneOf(field.text, "from|value")) {
        format = "sharegpt";
      } else if (!(OneOf(property, "role|content") && field.text == property)) {
        Unsupported(absl::StrCat(path, ".", property), field, "rename the fields of the data");
      }
    }
  }

  void ReadNibble(const Yaml& value) {
    static const std::vector<std::string_view> kKeys = {"name",
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

  void ReadNibbleField(const std::string& key, const std::string& name, const Yaml& value) {
    int64_t number = 0;
    bool flag = false;
    if (name == "name") {
      if (!value.IsScalar() || !IsValidId(value.text)) {
        return Wrong(key, value, "1 to 63 characters of a-z, 0-9 and -");
      }
      recipe_.name = value.text;
    } else if (name == "priority") {
      if (!ReadInteger(value, number) || std::abs(number) > 1000) {
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
  void Finish(const Yaml& root) {
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
    const bool has_type = spec_.contains("quantization") && spec_["quantization"].contains("type");
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

  const std::string source_;
  const std::string directory_;
  Recipe recipe_;
  json spec_ = json::object();
  std::vector<Fault> faults_;
  std::map<std::string_view, std::string> used_;
  std::string adapter_;
  int four_bit_ = -1;  // -1: not said
  bool all_linear_ = false;
  bool constant_without_warmup_ = false;
  std::vector<std::string> targets_;
};

}  // namespace

absl::StatusOr<Recipe> ReadRecipe(std::string_view text, const std::string& source,
                                  const std::string& directory,
                                  const std::vector<std::string>& overrides) {
  ASSIGN_OR_RETURN(Yaml root, ParseYaml(text, source));
  if (root.kind == Yaml::Kind::kNull) root.kind = Yaml::Kind::kMap;
  for (const std::string& text_override : overrides) {
    const size_t equals = text_override.find('=');
    std::string key = text_override.substr(0, equals);
    if (equals == std::string::npos || key.empty()) {
      return Error(Reason::kSpecInvalid,
                   absl::StrCat("\"", text_override,
                                "\" is not key=value; overrides come after the "
                                "recipe, like learning_rate=1e-4"))
          .ToStatus();
    }
    // One data set is the usual case, so its name alone is short for its path.
    if (key == "datasets" || key == "test_datasets") key += "[0].path";
    const std::string list = key.substr(0, key.find('['));
    if (const Yaml* before = root.Find(list); before && before->IsScalar() && key != list) {
      Yaml entry{Yaml::Kind::kMap};
      entry.fields.emplace_back("path", *before);
      for (auto& [name, field] : root.fields) {
        if (name == list)
          field = Yaml{Yaml::Kind::kList, "", false, before->line, before->column, {entry}, {}};
      }
    }
    RETURN_IF_ERROR(ApplyOverride(root, key, text_override.substr(equals + 1)));
  }
  return Reader(source, directory).Read(root);
}

absl::StatusOr<Recipe> LoadRecipe(const std::string& path,
                                  const std::vector<std::string>& overrides) {
  if (IsDirectory(path) || !FileExists(path)) {
    return Error(Reason::kSpecInvalid, absl::StrCat("recipe ", path, ": no such file")).ToStatus();
  }
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, int64_t{1} << 20));
  return ReadRecipe(text, path, DirName(path), overrides);
}

}  // namespace nibble::client

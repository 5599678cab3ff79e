#include "client/recipe_reader.h"

#include <algorithm>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/recipe_values.h"

namespace nibble::client {
namespace {

constexpr char kOnGpus[] = " moves memory from a GPU to its machine; on a CPU it changes nothing";

}  // namespace

absl::StatusOr<Recipe> RecipeReader::Read(const Yaml& root) {
  if (!root.IsMap()) {
    return Error(Reason::kSpecInvalid, absl::StrCat(source_, ": a recipe is a map of keys"))
        .ToStatus();
  }
  root_ = &root;
  for (const auto& [key, value] : root.fields) ReadKey(key, value);
  Finish(root);
  if (!faults_.empty()) return Faults();
  recipe_.spec_json = spec_.dump();
  return std::move(recipe_);
}

std::string RecipeReader::Place(const Yaml& value) const {
  if (value.line) return absl::StrCat(source_, ":", value.line, ":", value.column);
  return &value == root_ ? source_ : "override";
}

void RecipeReader::Refuse(Reason reason, const std::string& key, const Yaml& value, std::string text) {
  faults_.push_back({reason, key, Place(value), std::move(text)});
}

void RecipeReader::Wrong(const std::string& key, const Yaml& value, const std::string& expected) {
  Refuse(Reason::kSpecInvalid, key, value,
         absl::StrCat("must be ", expected, ", got ", Quote(value)));
}

void RecipeReader::Unsupported(const std::string& key, const Yaml& value, std::string_view advice) {
  std::string text = absl::StrCat("is not supported (", Quote(value), ")");
  if (!advice.empty()) absl::StrAppend(&text, "; ", std::string(advice));
  Refuse(Reason::kUnsupportedOption, key, value, text);
}

void RecipeReader::Notice(const std::string& key, std::string_view why) {
  recipe_.notices.push_back(absl::StrCat(key, " has no effect here: ", std::string(why)));
}

absl::Status RecipeReader::Faults() const {
  // The file's worst fault names the whole: unknown and unsupported keys before bad values.
  Reason reason = faults_[0].reason;
  std::vector<std::string> lines;
  for (const Fault& f : faults_) lines.push_back(absl::StrCat(f.place, ": ", f.key, " ", f.text));
  Error error(reason, absl::StrJoin(lines, "\n"));
  for (const Fault& f : faults_) error.Violation(f.key, f.text);
  return error.ToStatus();
}

void RecipeReader::Set(std::string_view path, nlohmann::json value) {
  nlohmann::json* at = &spec_;
  for (absl::string_view part :
       absl::StrSplit(absl::string_view(path.data(), path.size()), '.')) {
    at = &(*at)[std::string(part)];
  }
  *at = std::move(value);
}

void RecipeReader::ReadKey(const std::string& key, const Yaml& value) {
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

void RecipeReader::Apply(const KeyRule& rule, const std::string& key, const Yaml& value) {
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
      if (rule.key == "gradient_checkpointing" && value.IsScalar() && OneOf(value.text, "offload|unsloth")) {
        recipe_.notices.push_back(absl::StrCat(key, kOnGpus));
        Set("training.offloadActivations", true);
        return Set(rule.path, true);
      }
      if (!ReadFlag(value, flag)) return Wrong(key, value, "true or false");
      if (flag && OneOf(rule.path, "training.offloadActivations|optimizer.paged"))
        recipe_.notices.push_back(absl::StrCat(key, kOnGpus));
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

void RecipeReader::MustBe(const KeyRule& rule, const std::string& key, const Yaml& value) {
  const Yaml& one = value.IsList() && value.items.size() == 1 ? value.items[0] : value;
  if (one.IsScalar() && OneOf(one.text, rule.path)) return;
  Unsupported(key, value, rule.note);
}

void RecipeReader::Special(const KeyRule& rule, const std::string& key, const Yaml& value) {
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
    if (steps < -1) return Wrong(key, value, "above 0; -1 and 0 mean by epochs");
    if (steps > 0) Set(rule.path, steps);
  }
}

void RecipeReader::ReadOptimizer(const std::string& key, const Yaml& value) {
  if (OneOf(value.text, "adamw|adamw_torch|adamw_torch_fused|adamw_hf|adamw_apex_fused")) return;
  if (OneOf(value.text, "paged_adamw_32bit|paged_adamw|paged_adamw_8bit")) {
    recipe_.notices.push_back(absl::StrCat(key, kOnGpus));
    Set("optimizer.paged", true);
    if (value.text != "paged_adamw_8bit") return;
  }
  if (OneOf(value.text, "adamw8bit|adamw_bnb_8bit|adamw_8bit|paged_adamw_8bit")) {
    return Set("optimizer.type", "adamw8bit");
  }
  if (OneOf(value.text, "adamw_torch_8bit|adamw_torch_4bit|adamw_anyprecision")) {
    recipe_.notices.push_back(
        absl::StrCat(key, " ", value.text,
                     ": AdamW with 32-bit moments is used; for an adapter they are small"));
    return;
  }
  Unsupported(key, value, "use adamw");
}

void RecipeReader::ReadScheduler(const std::string& key, const Yaml& value) {
  if (OneOf(value.text, "cosine|linear")) return Set("optimizer.lrScheduler", value.text);
  if (OneOf(value.text, "constant|constant_with_warmup")) {
    constant_without_warmup_ = value.text == "constant";
    return Set("optimizer.lrScheduler", "constant");
  }
  Unsupported(key, value, "use cosine, linear or constant");
}

void RecipeReader::ReadTargets(const std::string& key, const Yaml& value) {
  static constexpr std::string_view kModules =
      "q_proj|k_proj|v_proj|qkv_proj|o_proj|gate_proj|up_proj|gate_up_proj|down_proj";
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
                  "down_proj, of Phi also qkv_proj, gate_up_proj; patterns are not matched");
    }
  }
}

void RecipeReader::ReadPlugins(const std::string& key, const Yaml& value) {
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

}  // namespace nibble::client

#include "client/recipe_text.h"

#include <nlohmann/json.hpp>
#include <string_view>
#include <tuple>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "base/view.h"
#include "client/output.h"
#include "client/recipe_keys.h"

namespace nibble::client {
namespace {

using Json = nlohmann::ordered_json;

// The value at "a.b", or null.
const Json* At(const Json& spec, std::string_view path) {
  const Json* at = &spec;
  for (absl::string_view part : absl::StrSplit(View(path), '.')) {
    if (!at->is_object()) return nullptr;
    const auto it = at->find(std::string(part));
    if (it == at->end()) return nullptr;
    at = &*it;
  }
  return at;
}

bool IsPlainWord(const std::string& text) {
  if (text.empty()) return false;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '_' || c == '.' || c == '/' || c == '-';
    if (!plain) return false;
  }
  return !(text[0] == '-');
}

// JSON is YAML; plain words read better without quotes. 64-bit numbers are texts in protobuf's JSON.
std::string Value(const Json& value) {
  if (value.is_string()) {
    const std::string text = value.get<std::string>();
    // The directory we are in may have any name.
    return IsPlainWord(text) ? text : value.dump(-1, ' ', false, Json::error_handler_t::replace);
  }
  if (value.is_number_float()) {
    const std::string brief = absl::StrFormat("%g", value.get<double>());
    double read = 0;
    return absl::SimpleAtod(brief, &read) && read == value.get<double>() ? brief : value.dump();
  }
  if (!value.is_array()) return value.dump();
  std::string list;
  for (const Json& item : value) absl::StrAppend(&list, list.empty() ? "" : ", ", Value(item));
  return absl::StrCat("[", list, "]");
}

struct Unset {
  std::string_view key;
  std::string_view means;
};
// What only the data decides, and what stands in for something else.
constexpr Unset kUnset[] = {{"val_set_size", "0.05 of more than 200 rows, else 0"},
                            {"warmup_steps", "instead of warmup_ratio"},
                            {"max_steps", "instead of num_epochs"},
                            {"eval_steps", "4 times an epoch, at most 40 times"},
                            {"save_steps", "once an epoch, at most 10 times"},
                            {"evals_per_epoch", "instead of eval_steps"},
                            {"saves_per_epoch", "instead of save_steps"}};

void PathLine(std::string& out, std::string_view key, const std::string& value) {
  if (!value.empty()) absl::StrAppend(&out, View(key), ": ", Value(Json(value)), "\n");
}

Json TypeOf(const KeyRule& rule) {
  switch (rule.action) {
    case KeyAction::kText:
      return {{"type", {"string", "null"}}};
    case KeyAction::kInteger:
      return {{"type", {"integer", "null"}}, {"minimum", 0}};
    case KeyAction::kNumber:
      return {{"type", {"number", "null"}}};
    case KeyAction::kFlag:
    case KeyAction::kInverseFlag:
      return {{"type", {"boolean", "null"}}};
    case KeyAction::kIgnored:
      return {{"description", absl::StrCat("No effect here: ", View(rule.note))}};
    case KeyAction::kMustBe: {
      Json values = Json::array();
      for (absl::string_view value : absl::StrSplit(View(rule.path), '|')) {
        values.push_back(std::string(value));
        if (value == "true") values.push_back(true);
      }
      values.push_back(nullptr);
      return {{"enum", values}};
    }
    default:
      return Json::object();
  }
}

}  // namespace

std::string RecipeText(const Recipe& recipe, const v1::JobSpec& effective) {
  const Json spec = Json::parse(ToJson(effective), nullptr, false);
  const Json given = Json::parse(recipe.spec_json, nullptr, false);
  std::string out;
  PathLine(out, "base_model", recipe.base_model);
  PathLine(out, "revision_of_model", recipe.base_revision);
  absl::StrAppend(&out, "adapter: ", effective.quantization().type() == "bf16" ? "lora" : "qlora", "\n");
  // Rows may have the keys of two formats.
  const std::string& format = effective.data().format();
  const bool has_format = !format.empty() && format != "auto";
  const std::string type = has_format ? absl::StrCat("    type: ", format, "\n") : "";
  for (const auto& [key, path, more] : {std::tuple{"datasets", recipe.dataset, type},
                                        {"test_datasets", recipe.eval_dataset, std::string()}}) {
    if (!path.empty()) absl::StrAppend(&out, key, ":\n  - path: ", Value(Json(path)), "\n", more);
  }
  // Left to the server, it stays so: what is chosen depends on the devices there are.
  const Json* policy = At(given, "training.recompute");
  const bool chosen = policy ? *policy != "auto" : At(given, "training.gradientCheckpointing") != nullptr;
  const Json* cache = At(given, "training.baseCache");
  const bool cache_chosen = cache != nullptr && *cache != "auto";
  for (const KeyRule& rule : KeyRules()) {
    if (rule.action == KeyAction::kIgnored || rule.action == KeyAction::kRefused ||
        rule.action == KeyAction::kMustBe || rule.action == KeyAction::kInverseFlag || rule.path.empty()) {
      if (rule.key == "optimizer") {
        absl::StrAppend(&out, "optimizer: ", effective.optimizer().type(), "\n");
      }
      continue;
    }
    if (rule.path == "training.gradientCheckpointing") continue;  // said by recompute
    if (rule.path == "training.keepBlocks" && !chosen) continue;
    const Json* value = At(spec, rule.path);
    if (rule.path == "training.recompute" && !chosen) {
      absl::StrAppend(&out, "recompute: auto\n");
    } else if (rule.path == "training.baseCache" && !cache_chosen) {
      absl::StrAppend(&out, "base_cache: auto\n");
    } else if (value != nullptr && rule.key != "base_model" && rule.key != "datasets" &&
               rule.key != "test_datasets") {
      absl::StrAppend(&out, View(rule.key), ": ", Value(*value), "\n");
    } else {
      for (const Unset& unset : kUnset) {
        if (unset.key != rule.key) continue;
        absl::StrAppend(&out, "# ", View(unset.key), ":  (", View(unset.means), ")\n");
      }
    }
  }
  const Json* interval = At(spec, "training.saveIntervalSeconds");
  absl::StrAppend(&out, "nibble:\n");
  if (!recipe.name.empty()) absl::StrAppend(&out, "  name: ", recipe.name, "\n");
  absl::StrAppend(&out, "  priority: ", recipe.priority, "\n");
  for (const auto& [key, value] : recipe.labels) {
    absl::StrAppend(&out, &value == &recipe.labels.begin()->second ? "  labels:\n" : "", "    ", key, ": ",
                    Value(Json(value)), "\n");
  }
  if (interval != nullptr) absl::StrAppend(&out, "  save_interval_seconds: ", Value(*interval), "\n");
  const bool moves = effective.training().allow_numerics_change();
  absl::StrAppend(&out, "  allow_numerics_change: ", moves ? "true" : "false", "\n");
  return out;
}

std::string RecipeSchema() {
  Json properties = Json::object(), patterns = Json::object();
  for (const KeyRule& rule : KeyRules()) {
    if (rule.action == KeyAction::kRefused) continue;
    std::vector<std::string> names = {std::string(rule.key)};
    for (absl::string_view alias : absl::StrSplit(View(rule.aliases), ' ', absl::SkipEmpty())) {
      names.emplace_back(alias);
    }
    for (std::string& name : names) {
      Json type = TypeOf(rule);
      if (name != rule.key && rule.action != KeyAction::kIgnored) {
        type["description"] = absl::StrCat("The same as ", View(rule.key), ".");
      }
      if (name.back() != '*') {
        properties[name] = std::move(type);
        continue;
      }
      name.pop_back();
      patterns[absl::StrCat("^", name)] = std::move(type);
    }
  }
  const Json schema = {{"$schema", "https://json-schema.org/draft/2020-12/schema"},
                       {"title", "Nibble recipe"},
                       {"type", "object"},
                       {"properties", properties},
                       {"patternProperties", patterns},
                       {"additionalProperties", false}};
  return schema.dump(2) + "\n";
}

}  // namespace nibble::client

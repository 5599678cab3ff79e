#include "tests/fleet/scenario.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "nlohmann/json.hpp"
#include "tests/fleet/policy.h"

namespace nibble::fleet {
namespace {

using nlohmann::json;

absl::Status Bad(const std::string& path, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

absl::StatusOr<json> ReadJson(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, int64_t{1} << 20));
  json value = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!value.is_object()) return Bad(path, "is no JSON object");
  return value;
}

double Number(const json& object, const char* key, double fallback) {
  const auto it = object.find(key);
  return it != object.end() && it->is_number() ? it->get<double>() : fallback;
}
int64_t Whole(const json& object, const char* key, int64_t fallback) {
  const auto it = object.find(key);
  return it != object.end() && it->is_number_integer() ? it->get<int64_t>() : fallback;
}
std::string Text(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}
// The pair under `key`, or {fallback, fallback}.
std::pair<double, double> Pair(const json& object, const char* key, double fallback) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_array() || it->size() != 2) return {fallback, fallback};
  if (!(*it)[0].is_number() || !(*it)[1].is_number()) return {fallback, fallback};
  return {(*it)[0].get<double>(), (*it)[1].get<double>()};
}
// The list under `key`; empty when there is none.
json List(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_array() ? *it : json::array();
}
json Part(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_object() ? *it : json::object();
}
int64_t SecondsUs(const json& object, const char* key) {
  return static_cast<int64_t>(Number(object, key, 0) * 1e6);
}

absl::StatusOr<std::vector<Recipe>> ReadRecipes(const std::string& path) {
  ASSIGN_OR_RETURN(const json root, ReadJson(path));
  std::vector<Recipe> recipes;
  for (const json& entry : List(root, "recipes")) {
    Recipe recipe;
    recipe.name = Text(entry, "name");
    recipe.weight = Number(entry, "weight", 0);
    recipe.busy_share = Number(entry, "busy_share", 0);
    recipe.step_s = Number(entry, "step_s", 0);
    if (recipe.name.empty() || recipe.weight <= 0 || recipe.step_s <= 0 || recipe.busy_share <= 0 ||
        recipe.busy_share > 1) {
      return Bad(path, absl::StrCat("recipe '", recipe.name,
                                    "' needs a name, and weight, step_s, busy_share above 0"));
    }
    recipe.model_json = Part(entry, "model").dump();
    ASSIGN_OR_RETURN(recipe.model, spec::ParseModelConfig(recipe.model_json));
    const json train = Part(entry, "train");
    spec::TrainSpec spec;
    spec.sequence_len = static_cast<int32_t>(Whole(train, "sequence_len", spec.sequence_len));
    spec.micro_batch_size = static_cast<int32_t>(Whole(train, "micro_batch_size", 1));
    spec.lora_r = static_cast<int32_t>(Whole(train, "lora_r", spec.lora_r));
    // What depends on the devices is stated, so that all policies count the same bytes.
    spec.recompute = spec::Recompute::kFull;
    spec.base_cache = spec::BaseCache::kOff;
    ASSIGN_OR_RETURN(recipe.train, spec::ResolveTrainSpec(spec, recipe.model));
    recipes.push_back(std::move(recipe));
  }
  if (recipes.empty()) return Bad(path, "has no recipes");
  return recipes;
}

void ReadFleet(const json& root, Scenario& s) {
  for (const json& kind : List(root, "fleet")) {
    s.fleet.push_back({Whole(kind, "count", 0),
                       static_cast<int64_t>(Number(kind, "capacity_gb", 0) * 1e9),
                       std::max(0.01, Number(kind, "speed", 1))});
  }
  for (const json& tenant : List(root, "tenants")) {
    s.tenants.push_back({Text(tenant, "name"), Number(tenant, "weight", 1)});
  }
  if (s.tenants.empty()) s.tenants.push_back({"t0", 1});
  const json random = Part(root, "random_fleet");
  const auto devices = Pair(random, "devices", 0);
  const auto jobs = Pair(random, "jobs", 0);
  const auto load = Pair(random, "load", 0);
  s.random_fleet = {static_cast<int64_t>(devices.first),
                    static_cast<int64_t>(devices.second),
                    static_cast<int64_t>(jobs.first),
                    static_cast<int64_t>(jobs.second),
                    load.first,
                    load.second};
}

}  // namespace

absl::StatusOr<Scenario> LoadScenario(const std::string& path) {
  ASSIGN_OR_RETURN(const json root, ReadJson(path));
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  Scenario s;
  ASSIGN_OR_RETURN(s.recipes, ReadRecipes((folder / ".." / "recipes.json").string()));
  s.name = Text(root, "name");
  s.about = Text(root, "about");
  ReadFleet(root, s);
  for (const json& law : List(root, "durations")) {
    const auto range = Pair(law, "log10_minutes", 0);
    s.durations.push_back({Number(law, "share", 0), range.first, range.second});
  }
  const json trace = Part(root, "trace");
  s.trace = {Text(trace, "kind"), Text(trace, "file"), Whole(trace, "skip", 0),
             Number(trace, "load", 1)};
  const std::string requests = Text(Part(root, "fill"), "requests");
  s.fill = {root.contains("fill"), requests == "thousandths"};
  if (s.fill.wanted && requests != "thousandths" && requests != "recipes")
    return Bad(path, absl::StrCat("fill.requests is '", requests, "', neither thousandths nor recipes"));
  if (s.fill.wanted && s.fleet.empty()) return Bad(path, "states no fleet to fill");
  if (s.fill.thousandths && s.trace.kind.empty()) return Bad(path, "has no trace to take thousandths from");
  s.jobs = Whole(root, "jobs", 0);
  s.arrivals_per_minute = Number(root, "arrivals_per_minute", 0);
  s.busy_share_scale = Number(root, "busy_share_scale", 1);
  s.step_time_noise = Number(root, "step_time_noise", 0);
  s.early_end_share = Number(root, "early_end_share", 0);
  const json costs = Part(root, "costs");
  s.costs = {SecondsUs(costs, "check_s"), SecondsUs(costs, "start_s"),
             SecondsUs(costs, "release_s"), Number(costs, "sharing_overhead", 0)};
  const json core = Part(root, "core");
  for (const auto& [key, value] : core.items()) {
    if (!value.is_number_integer() && !value.is_boolean())
      return Bad(path, absl::StrCat("core.", key, " is not a whole number"));
    s.core[key] = value.is_boolean() ? int64_t{value.get<bool>()} : value.get<int64_t>();
    if (!IsCoreOption(key)) return Bad(path, absl::StrCat("the core has no option ", key));
  }
  const auto seeds = Pair(root, "seeds", 1);
  s.first_seed = static_cast<int64_t>(seeds.first);
  s.last_seed = static_cast<int64_t>(seeds.second);
  if (s.name.empty()) return Bad(path, "has no name");
  if (!s.fill.wanted && s.random_fleet.devices_high == 0 && (s.fleet.empty() || s.jobs <= 0))
    return Bad(path, "states neither a fleet with jobs nor a random fleet");
  if (!s.fill.wanted && s.trace.kind.empty() && s.durations.empty())
    return Bad(path, "has no law of durations");
  return s;
}

}  // namespace nibble::fleet

#include "engine/spec/rope_config.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "engine/spec/config_fields.h"
#include "engine/spec/gemma_config.h"

namespace nibble::spec {
namespace {

using nlohmann::json;

// Of keys that transformers takes for absent when they are zero.
double NumberOr(ConfigFields& fields, const json& object, const char* key, double fallback) {
  return fields.Has(key) && object[key] == 0 ? fallback : fields.Number(key, fallback);
}

// transformers turns a part of each head in Phi alone; of a Llama it leaves the key out of account, or fails.
absl::Status ReadRotaryWidth(double part, const std::string& key, ModelConfig& model) {
  if (part == 1) return absl::OkStatus();
  if (model.model_type != "phi3") {
    return UnsupportedConfig(
        absl::StrCat(key, " ", part, " is not supported in a ", model.model_type, " model; supported: 1"));
  }
  const double width = static_cast<double>(model.head_dim) * part;
  if (part > 1 || width < 2 || static_cast<int64_t>(width) % 2 != 0) {
    return UnsupportedConfig(absl::StrCat(key, " is ", part, ": of ", model.head_dim, " numbers of a head ",
                                          static_cast<int64_t>(width),
                                          " would turn; they must be even, at least 2 and at most all"));
  }
  model.rotary_dim = static_cast<int64_t>(width);
  return absl::OkStatus();
}

absl::Status ReadLlama3(ConfigFields& rope, const std::string& key, ModelConfig& model) {
  model.rope = RopeKind::kLlama3;
  model.rope_low_freq_factor = rope.Number("low_freq_factor", 1);
  model.rope_high_freq_factor = rope.Number("high_freq_factor", 4);
  if (model.rope_high_freq_factor <= model.rope_low_freq_factor) {
    return InvalidConfig(key + ".high_freq_factor must be above low_freq_factor");
  }
  return rope.status();
}

// What stretching the positions does to the size of scores, undone on cos and sin.
double YarnScale(double factor, double by) { return factor <= 1 ? 1 : 0.1 * by * std::log(factor) + 1; }

absl::Status ReadYarn(ConfigFields& rope, const json& scaling, const std::string& key, ModelConfig& model) {
  model.rope = RopeKind::kYarn;
  if (!scaling.contains("factor")) return InvalidConfig(key + ".factor is missing");
  const auto positions = static_cast<double>(model.max_positions);
  model.rope_factor = rope.Number("factor", positions / static_cast<double>(model.rope_original_positions));
  model.rope_beta_fast = NumberOr(rope, scaling, "beta_fast", 32);
  model.rope_beta_slow = NumberOr(rope, scaling, "beta_slow", 1);
  model.rope_truncate = rope.Flag("truncate", true);
  const double mscale = NumberOr(rope, scaling, "mscale", 0);
  const double mscale_all_dim = NumberOr(rope, scaling, "mscale_all_dim", 0);
  const double usual = mscale > 0 && mscale_all_dim > 0 ? YarnScale(model.rope_factor, mscale) /
                                                              YarnScale(model.rope_factor, mscale_all_dim)
                                                        : YarnScale(model.rope_factor, 1);
  model.rope_scale = rope.Number("attention_factor", usual);
  RETURN_IF_ERROR(rope.status());
  if (model.rope_theta <= 1) {
    return InvalidConfig(absl::StrCat("rope_theta is ", model.rope_theta, "; with yarn it must be above 1"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<double>> ReadFactors(const json& scaling, const char* name, const std::string& key,
                                                const ModelConfig& model) {
  const auto count = static_cast<size_t>(model.RotaryWidth() / 2);
  if (!scaling.contains(name) || !scaling[name].is_array() || scaling[name].size() != count) {
    return InvalidConfig(absl::StrCat(key, ".", name, " is no list of ", count,
                                      " numbers, one for each two of a head that turn"));
  }
  std::vector<double> factors;
  for (const json& factor : scaling[name]) {
    if (!factor.is_number() || !(factor.get<double>() > 0) ||
        !std::isnormal(static_cast<float>(factor.get<double>()))) {
      return InvalidConfig(absl::StrCat(key, ".", name, " has ", factor.dump(),
                                        ", not a positive number of single precision"));
    }
    factors.push_back(factor.get<double>());
  }
  return factors;
}

absl::Status ReadLong(ConfigFields& rope, const json& scaling, const std::string& key, ModelConfig& model) {
  model.rope = RopeKind::kLong;
  const auto original = static_cast<double>(model.rope_original_positions);
  model.rope_factor = rope.Number("factor", static_cast<double>(model.max_positions) / original);
  const double usual =
      model.rope_factor <= 1 ? 1 : std::sqrt(1 + std::log(model.rope_factor) / std::log(original));
  model.rope_scale = rope.Number("attention_factor", usual);
  RETURN_IF_ERROR(rope.status());
  if (!std::isfinite(model.rope_scale)) {
    return InvalidConfig(absl::StrCat("original_max_position_embeddings is ", model.rope_original_positions,
                                      "; with longrope it must be above 1"));
  }
  ASSIGN_OR_RETURN(model.rope_short_factors, ReadFactors(scaling, "short_factor", key, model));
  ASSIGN_OR_RETURN(model.rope_long_factors, ReadFactors(scaling, "long_factor", key, model));
  return absl::OkStatus();
}

// `key` names the object in errors; `by_kind`: it is of one kind of layer.
absl::Status ReadRopeObject(const json& config, const json& scaling, const std::string& key, bool by_kind,
                            ModelConfig& model) {
  if (!scaling.is_object()) return InvalidConfig(key + " is no object");
  ConfigFields top(config), rope(scaling);
  model.rope_theta = rope.Number("rope_theta", model.rope_theta);
  const double part = top.Number("partial_rotary_factor", 1);
  const bool inside = rope.Has("partial_rotary_factor");
  const double of_heads = rope.Number("partial_rotary_factor", part);
  std::string type = rope.Text("rope_type", rope.Text("type", "default"));
  // The original positions of a Phi stand beside the object; transformers lets that go first in all models.
  constexpr int64_t kMost = int64_t{1} << 30;
  const bool phi = model.model_type == "phi3";
  if (phi && (type == "su" || type == "yarn")) type = "longrope";  // its names in early files
  model.rope_original_positions =
      rope.Integer("original_max_position_embeddings", model.max_positions, 1, kMost);
  if (phi) model.rope_original_positions = 4096;
  if (!by_kind) {
    model.rope_original_positions =
        top.Integer("original_max_position_embeddings", model.rope_original_positions, 1, kMost);
  }
  RETURN_IF_ERROR(top.status());
  RETURN_IF_ERROR(rope.status());
  RETURN_IF_ERROR(
      ReadRotaryWidth(of_heads, inside ? key + ".partial_rotary_factor" : "partial_rotary_factor", model));
  if (type == "default") return absl::OkStatus();
  if (type == "longrope" && !by_kind) return ReadLong(rope, scaling, key, model);
  if (type == "yarn" && !by_kind) return ReadYarn(rope, scaling, key, model);
  model.rope_factor = rope.Number("factor", 1);
  if (type == "linear" && !phi) {
    model.rope = RopeKind::kLinear;
    return rope.status();
  }
  if (type == "llama3" && !phi) return ReadLlama3(rope, key, model);
  return UnsupportedConfig(absl::StrCat(
      key, ".rope_type \"", type, "\" is not supported; supported: ",
      phi       ? "default, longrope"
      : by_kind ? "default, linear, llama3"
                : "default, linear, llama3, yarn, longrope",
      type == "dynamic" ? " (dynamic changes the angles of a whole batch with its longest text)" : ""));
}

// Gemma 3 turns by another base in layers with a window; what is said of scaling is of the others.
absl::Status ReadLocalRope(const json& config, ModelConfig& model) {
  ConfigFields fields(config);
  model.local_rope_theta = fields.Number("rope_local_base_freq", 10000);
  RETURN_IF_ERROR(fields.status());
  if (!fields.Has("rope_parameters") || !config["rope_parameters"].is_object()) return absl::OkStatus();
  const json& by_kind = config["rope_parameters"];
  if (!by_kind.contains("sliding_attention") || by_kind["sliding_attention"].is_null())
    return absl::OkStatus();
  ModelConfig local = model;
  local.rope_theta = model.local_rope_theta;
  RETURN_IF_ERROR(
      ReadRopeObject(config, by_kind["sliding_attention"], "rope_parameters.sliding_attention", true, local));
  if (local.rope != RopeKind::kDefault) {
    return UnsupportedConfig("rope_parameters.sliding_attention other than default is not supported");
  }
  model.local_rope_theta = local.rope_theta;
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadRope(const json& config, ModelConfig& model) {
  const bool two = IsGemma3(model);
  ConfigFields top(config);
  model.rope_theta = top.Number("rope_theta", two ? 1e6 : model.model_type == "smollm3" ? 2e6 : 1e4);
  RETURN_IF_ERROR(top.status());
  if (two) RETURN_IF_ERROR(ReadLocalRope(config, model));
  // transformers 5 writes rope_parameters with rope_theta inside, earlier ones rope_scaling. Where a file has
  // both the latter goes first; of a Gemma 3 it changes the former.
  static const json kNothing = json::object();
  const bool both =
      top.Has("rope_parameters") && top.Has("rope_scaling") && config["rope_scaling"] != kNothing;
  std::string key = top.Has("rope_parameters") && (two || !both) ? "rope_parameters" : "rope_scaling";
  json scaling = top.Has(key.c_str()) ? config[key] : kNothing;
  if (two && scaling.is_object() &&
      (scaling.contains("full_attention") || scaling.contains("sliding_attention"))) {
    const json full = scaling.value("full_attention", json());
    scaling = full.is_null() ? kNothing : full;
    key += ".full_attention";
  }
  if (two && both) {
    if (!scaling.is_object() || !config["rope_scaling"].is_object())
      return InvalidConfig("rope_parameters and rope_scaling are not both objects");
    scaling.update(config["rope_scaling"]);
  }
  return ReadRopeObject(config, scaling, key, two, model);
}

absl::Status ReadUnturnedLayers(const json& config, ModelConfig& model) {
  ConfigFields fields(config);
  const int64_t interval = fields.Integer("no_rope_layer_interval", 4, 1, 1 << 20);
  RETURN_IF_ERROR(fields.status());
  const auto layers = static_cast<size_t>(model.layers);
  for (size_t layer = 0; layer < layers; ++layer)
    model.turns.push_back((layer + 1) % static_cast<size_t>(interval) != 0);
  if (!fields.Has("no_rope_layers")) return absl::OkStatus();
  const json& turns = config["no_rope_layers"];  // 1: turns, in spite of the name
  if (!turns.is_array() || turns.size() < layers) {
    return InvalidConfig(absl::StrCat("no_rope_layers is no list of ", layers, " layers"));
  }
  for (size_t layer = 0; layer < layers; ++layer) {
    if (turns[layer] != 0 && turns[layer] != 1)
      return InvalidConfig(absl::StrCat("no_rope_layers has ", turns[layer].dump(), ", not 0 or 1"));
    model.turns[layer] = turns[layer] == 1;
  }
  return absl::OkStatus();
}

}  // namespace nibble::spec

#include "engine/spec/model_config.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/error.h"
#include "base/outside_text.h"
#include "base/status.h"
#include "engine/spec/config_fields.h"
#include "engine/spec/gemma_config.h"
#include "nlohmann/json.hpp"

namespace nibble::spec {
namespace {

using nlohmann::json;

constexpr int64_t kMaxHeadDim = 1024;
constexpr std::array<const char*, 7> kModelTypes = {"llama", "mistral", "qwen2",      "qwen3",
                                                    "gemma", "gemma2",  "gemma3_text"};

// `key` names the object in errors.
absl::Status ReadRopeObject(const json& scaling, const std::string& key, ModelConfig& model) {
  if (!scaling.is_object()) return InvalidConfig(key + " is no object");
  ConfigFields rope(scaling);
  model.rope_theta = rope.Number("rope_theta", model.rope_theta);
  if (rope.Number("partial_rotary_factor", 1) != 1) {
    return UnsupportedConfig(key + ".partial_rotary_factor other than 1 is not supported");
  }
  const std::string type = rope.Text("rope_type", rope.Text("type", "default"));
  if (type == "default") return rope.status();
  model.rope_factor = rope.Number("factor", 1);
  if (type == "linear") {
    model.rope = RopeKind::kLinear;
    return rope.status();
  }
  if (type != "llama3") {
    return UnsupportedConfig(
        absl::StrCat(key, ".rope_type \"", type, "\" is not supported; supported: default, linear, llama3"));
  }
  model.rope = RopeKind::kLlama3;
  model.rope_low_freq_factor = rope.Number("low_freq_factor", 1);
  model.rope_high_freq_factor = rope.Number("high_freq_factor", 4);
  model.rope_original_positions =
      rope.Integer("original_max_position_embeddings", 8192, 1, int64_t{1} << 30);
  if (model.rope_high_freq_factor <= model.rope_low_freq_factor) {
    return InvalidConfig(key + ".high_freq_factor must be above low_freq_factor");
  }
  return rope.status();
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
  ModelConfig local;
  local.rope_theta = model.local_rope_theta;
  RETURN_IF_ERROR(ReadRopeObject(by_kind["sliding_attention"], "rope_parameters.sliding_attention", local));
  if (local.rope != RopeKind::kDefault) {
    return UnsupportedConfig("rope_parameters.sliding_attention other than default is not supported");
  }
  model.local_rope_theta = local.rope_theta;
  return absl::OkStatus();
}

absl::Status ReadRope(const json& config, ModelConfig& model) {
  const bool two = model.model_type == "gemma3_text";
  ConfigFields top(config);
  model.rope_theta = top.Number("rope_theta", two ? 1e6 : 1e4);
  RETURN_IF_ERROR(top.status());
  if (two) RETURN_IF_ERROR(ReadLocalRope(config, model));
  // transformers 5 writes rope_parameters with rope_theta inside, earlier ones rope_scaling.
  std::string key = top.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!top.Has(key.c_str())) return absl::OkStatus();
  const json* scaling = &config[key];
  if (two && scaling->is_object() &&
      (scaling->contains("full_attention") || scaling->contains("sliding_attention"))) {
    if (!scaling->contains("full_attention") || (*scaling)["full_attention"].is_null())
      return absl::OkStatus();
    scaling = &(*scaling)["full_attention"];
    key += ".full_attention";
  }
  return ReadRopeObject(*scaling, key, model);
}

// Options that change the result and that no supported model sets otherwise.
absl::Status RefuseOddities(const json& config, const ModelConfig& model) {
  ConfigFields fields(config);
  const std::string act = fields.Text("hidden_act", "silu");
  if (!IsGemma(model) && act != "silu") {
    return UnsupportedConfig(absl::StrCat("hidden_act \"", act, "\" is not supported in a ", model.model_type,
                                          " model; supported: silu"));
  }
  if (fields.Flag("attention_bias", false)) return UnsupportedConfig("attention_bias true is not supported");
  if (fields.Flag("mlp_bias", false)) return UnsupportedConfig("mlp_bias true is not supported");
  if (fields.Has("partial_rotary_factor") && fields.Number("partial_rotary_factor", 1) != 1) {
    return UnsupportedConfig("partial_rotary_factor other than 1 is not supported");
  }
  for (const char* key : {"num_local_experts", "num_experts"}) {
    if (fields.Has(key)) return UnsupportedConfig(absl::StrCat(key, " is not supported"));
  }
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"}) {
    if (fields.Has(key) && !model.post_norms) {
      return UnsupportedConfig(absl::StrCat(key, " is not supported in a ", model.model_type, " model"));
    }
  }
  if (fields.Has("attention_dropout") && config["attention_dropout"].is_number() &&
      config["attention_dropout"].get<double>() != 0) {
    return UnsupportedConfig("attention_dropout other than 0 is not supported");
  }
  if (fields.Has("quantization_config")) {
    // Four-bit weights of bitsandbytes are read; each tensor says for itself whether it is one.
    const json& quantization = config["quantization_config"];
    if (!quantization.is_object() || quantization.value("quant_method", json()) != "bitsandbytes" ||
        quantization.value("load_in_4bit", json()) != true) {
      return UnsupportedConfig(
          "quantization_config is set; give the unquantized model (it is quantized "
          "here), or one that bitsandbytes quantized to four bits");
    }
  }
  // One that follows from hidden_size has not been held against the bound yet.
  if (model.head_dim > kMaxHeadDim) {
    return UnsupportedConfig(absl::StrCat("heads are ", model.head_dim, " wide (hidden_size by ",
                                          "num_attention_heads); at most ", kMaxHeadDim, " are supported"));
  }
  if (model.head_dim % 2 != 0) {
    return UnsupportedConfig(absl::StrCat("head_dim ", model.head_dim, " is odd"));
  }
  if (model.heads % model.kv_heads != 0) {
    return InvalidConfig(absl::StrCat("num_attention_heads ", model.heads,
                                      " is no multiple of num_key_value_heads ", model.kv_heads));
  }
  return fields.status();
}

absl::Status ReadSlidingWindow(const json& config, ModelConfig& model) {
  ConfigFields fields(config);
  // Without a word about it transformers gives a Mistral 4096, with a null none.
  const int64_t usual = model.model_type == "mistral" && !config.contains("sliding_window") ? 4096 : 0;
  const int64_t window = fields.Integer("sliding_window", usual, 0, int64_t{1} << 30);
  // Qwen writes a window but switches it off; Mistral has no switch.
  const bool used = fields.Flag("use_sliding_window", model.model_type == "mistral");
  RETURN_IF_ERROR(fields.status());
  if (!used) return absl::OkStatus();
  if (model.model_type != "mistral") {
    return UnsupportedConfig("use_sliding_window true is not supported");
  }
  model.sliding_window = window;
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> FromJson(const json& config) {
  if (!config.is_object()) return InvalidConfig("not a JSON object");
  ConfigFields fields(config);
  ModelConfig model;
  model.model_type = fields.Text("model_type", "");
  if (std::find(kModelTypes.begin(), kModelTypes.end(), model.model_type) == kModelTypes.end()) {
    return UnsupportedConfig(absl::StrCat(
        "model_type \"", model.model_type,
        "\" is not supported; supported: ", absl::StrJoin(kModelTypes, ", "),
        model.model_type == "gemma3" ? " (Gemma 3 with pictures is gemma3; its text models are gemma3_text)"
                                     : ""));
  }
  model.vocab_size = fields.Needed("vocab_size", 1 << 24);
  model.hidden_size = fields.Needed("hidden_size", 1 << 17);
  model.intermediate_size = fields.Needed("intermediate_size", 1 << 20);
  model.layers = fields.Needed("num_hidden_layers", 256);
  model.heads = fields.Needed("num_attention_heads", 1024);
  model.kv_heads = fields.Integer("num_key_value_heads", model.heads, 1, 1024);
  RETURN_IF_ERROR(fields.status());
  if (!fields.Has("head_dim") && !IsGemma(model) && model.hidden_size % model.heads != 0) {
    return InvalidConfig(absl::StrCat("hidden_size ", model.hidden_size,
                                      " is no multiple of num_attention_heads ", model.heads));
  }
  const bool gemma = IsGemma(model);
  const int64_t default_head_dim = model.model_type == "qwen3" ? 128
                                   : gemma                     ? 256
                                                               : model.hidden_size / model.heads;
  model.head_dim = fields.Integer("head_dim", default_head_dim, 2, kMaxHeadDim);
  model.max_positions = fields.Integer("max_position_embeddings", gemma ? 8192 : 2048, 1, 1 << 24);
  model.rms_norm_eps = fields.Number("rms_norm_eps", 1e-6);
  model.tie_word_embeddings = fields.Flag("tie_word_embeddings", gemma);
  model.qkv_bias = model.model_type == "qwen2";
  model.qk_norm = model.model_type == "qwen3";
  const std::string dtype = fields.Text("dtype", fields.Text("torch_dtype", "bfloat16"));
  if (dtype != "bfloat16" && dtype != "float16" && dtype != "float32" && dtype != "auto") {
    return UnsupportedConfig(
        absl::StrCat("dtype \"", dtype, "\" is not supported; supported: bfloat16, float16, float32"));
  }
  RETURN_IF_ERROR(fields.status());
  RETURN_IF_ERROR(ReadRope(config, model));
  RETURN_IF_ERROR(gemma ? ReadGemma(config, model) : ReadSlidingWindow(config, model));
  RETURN_IF_ERROR(RefuseOddities(config, model));
  return model;
}

}  // namespace

float ModelConfig::ScoreScale() const {
  return 1.0f /
         std::sqrt(static_cast<float>(query_scalar > 0 ? query_scalar : static_cast<double>(head_dim)));
}

int64_t ModelConfig::LinearParameters() const {
  return layers * (2 * hidden_size * QueryWidth() + 2 * hidden_size * KeyValueWidth() +
                   3 * hidden_size * intermediate_size);
}

int64_t ModelConfig::TotalParameters() const {
  int64_t per_layer = (post_norms ? 4 : 2) * hidden_size;
  if (qkv_bias) per_layer += QueryWidth() + 2 * KeyValueWidth();
  if (qk_norm) per_layer += 2 * head_dim;
  return LinearParameters() + layers * per_layer + hidden_size +
         vocab_size * hidden_size * (tie_word_embeddings ? 1 : 2);
}

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view config_json) {
  if (JsonDepth(config_json) > kMaxJsonDepth) {
    return InvalidConfig(absl::StrCat("nested deeper than ", kMaxJsonDepth, " levels"));
  }
  const json config = json::parse(config_json, nullptr, /*allow_exceptions=*/false);
  if (config.is_discarded()) return InvalidConfig("not valid JSON");
  return FromJson(config);
}

}  // namespace nibble::spec

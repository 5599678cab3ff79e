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
#include "engine/spec/rope_config.h"
#include "nlohmann/json.hpp"

namespace nibble::spec {
namespace {

using nlohmann::json;

constexpr int64_t kMaxHeadDim = 1024;
constexpr std::array<const char*, 10> kModelTypes = {"llama",  "mistral",     "qwen2",  "qwen3", "gemma",
                                                     "gemma2", "gemma3_text", "gemma3", "phi3",  "smollm3"};

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
  for (const char* key : {"num_local_experts", "num_experts"}) {
    if (fields.Has(key)) return UnsupportedConfig(absl::StrCat(key, " is not supported"));
  }
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"}) {
    if (fields.Has(key) && !model.post_norms) {
      return UnsupportedConfig(absl::StrCat(key, " is not supported in a ", model.model_type, " model"));
    }
  }
  for (const char* key : {"attention_dropout", "resid_pdrop", "embd_pdrop"}) {
    if (fields.Has(key) && config[key].is_number() && config[key].get<double>() != 0)
      return UnsupportedConfig(absl::StrCat(key, " other than 0 is not supported"));
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
  // Qwen writes a window but switches it off; Mistral and Phi have no switch.
  const bool has = model.model_type == "mistral" || model.model_type == "phi3";
  const bool used = fields.Flag("use_sliding_window", has);
  RETURN_IF_ERROR(fields.status());
  if (!used) return absl::OkStatus();
  if (!has) {
    return UnsupportedConfig("use_sliding_window true is not supported");
  }
  model.sliding_window = window;
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> FromJson(const json& config) {
  ConfigFields fields(config);
  ModelConfig model;
  model.model_type = fields.Text("model_type", "");
  if (std::find(kModelTypes.begin(), kModelTypes.end(), model.model_type) == kModelTypes.end()) {
    return UnsupportedConfig(
        absl::StrCat("model_type \"", model.model_type,
                     "\" is not supported; supported: ", absl::StrJoin(kModelTypes, ", ")));
  }
  model.vocab_size = fields.Needed("vocab_size", 1 << 24);
  model.hidden_size = fields.Needed("hidden_size", 1 << 17);
  model.intermediate_size = fields.Needed("intermediate_size", 1 << 20);
  model.layers = fields.Needed("num_hidden_layers", 256);
  model.heads = fields.Needed("num_attention_heads", 1024);
  const bool smollm3 = model.model_type == "smollm3";
  const bool four_keys = smollm3 && !config.contains("num_key_value_heads");
  model.kv_heads = fields.Integer("num_key_value_heads", four_keys ? 4 : model.heads, 1, 1024);
  RETURN_IF_ERROR(fields.status());
  if (!fields.Has("head_dim") && !IsGemma(model) && model.hidden_size % model.heads != 0) {
    return InvalidConfig(absl::StrCat("hidden_size ", model.hidden_size,
                                      " is no multiple of num_attention_heads ", model.heads));
  }
  const bool gemma = IsGemma(model);
  model.fused = model.model_type == "phi3";
  const int64_t default_head_dim = model.model_type == "qwen3" ? 128
                                   : gemma                     ? 256
                                                               : model.hidden_size / model.heads;
  model.head_dim = fields.Integer("head_dim", default_head_dim, 2, kMaxHeadDim);
  const int64_t default_positions = gemma ? 8192 : smollm3 ? 32768 : model.fused ? 4096 : 2048;
  model.max_positions = fields.Integer("max_position_embeddings", default_positions, 1, 1 << 24);
  model.rms_norm_eps = fields.Number("rms_norm_eps", model.fused ? 1e-5 : 1e-6);
  model.tie_word_embeddings = fields.Flag("tie_word_embeddings", gemma || smollm3);
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
  if (smollm3) RETURN_IF_ERROR(ReadUnturnedLayers(config, model));
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
  if (!config.is_object()) return InvalidConfig("not a JSON object");
  ASSIGN_OR_RETURN(const json text, Gemma3TextConfig(config));
  return FromJson(text);
}

}  // namespace nibble::spec

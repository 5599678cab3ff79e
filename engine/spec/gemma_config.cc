#include "engine/spec/gemma_config.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "engine/spec/config_fields.h"

namespace nibble::spec {
namespace {

using nlohmann::json;

// Gemma 1 wrote "gelu" and meant the one by tanh (huggingface/transformers#29402); later ones have another
// key.
absl::Status ReadActivation(const json& config, ModelConfig& model) {
  ConfigFields fields(config);
  const bool first = model.model_type == "gemma";
  const char* key = first && !fields.Has("hidden_activation") ? "hidden_act" : "hidden_activation";
  const std::string act = fields.Text(key, "gelu_pytorch_tanh");
  if (act != "gelu_pytorch_tanh" && !(act == "gelu" && first)) {
    return UnsupportedConfig(absl::StrCat(key, " \"", act, "\" is not supported in a ", model.model_type,
                                          " model; supported: gelu_pytorch_tanh"));
  }
  model.gelu = true;
  return fields.status();
}

// Absent is `usual`, null is none.
double Cap(ConfigFields& fields, const json& config, const char* key, double usual) {
  if (!config.contains(key)) return usual;
  return fields.Has(key) ? fields.Number(key, usual) : 0;
}

// Every second layer has no window in Gemma 2, every sixth in Gemma 3, unless layer_types says which.
absl::Status ReadWindows(const json& config, ModelConfig& model) {
  ConfigFields fields(config);
  const int64_t usual = config.contains("sliding_window") ? 0 : 4096;
  model.sliding_window = fields.Integer("sliding_window", usual, 0, int64_t{1} << 30);
  int64_t period = 2;
  if (IsGemma3(model)) {
    const int64_t named = fields.Integer("_sliding_window_pattern", 6, 1, 256);
    period = fields.Integer("sliding_window_pattern", named, 1, 256);
  }
  RETURN_IF_ERROR(fields.status());
  if (model.sliding_window == 0) return absl::OkStatus();
  model.slides.resize(static_cast<size_t>(model.layers));
  for (int64_t layer = 0; layer < model.layers; ++layer)
    model.slides[static_cast<size_t>(layer)] = (layer + 1) % period != 0;
  if (!fields.Has("layer_types")) return absl::OkStatus();
  const json& types = config["layer_types"];
  if (!types.is_array() || types.size() != model.slides.size()) {
    return InvalidConfig(absl::StrCat("layer_types is no list of ", model.layers, " layers"));
  }
  for (size_t layer = 0; layer < types.size(); ++layer) {
    if (types[layer] != "sliding_attention" && types[layer] != "full_attention") {
      return UnsupportedConfig(absl::StrCat("layer_types has ", types[layer].dump(),
                                            "; supported: sliding_attention, full_attention"));
    }
    model.slides[layer] = types[layer] == "sliding_attention";
  }
  return absl::OkStatus();
}

}  // namespace

bool IsGemma3(const ModelConfig& model) {
  return model.model_type == "gemma3_text" || model.model_type == "gemma3";
}

bool IsGemma(const ModelConfig& model) {
  return model.model_type == "gemma" || model.model_type == "gemma2" || IsGemma3(model);
}

absl::StatusOr<json> Gemma3TextConfig(const json& config) {
  const json type = config.value("model_type", json());
  if (type != "gemma3_text" && type != "gemma3") return config;
  json text = {{"vocab_size", 262208},      {"hidden_size", 2304},
               {"intermediate_size", 9216}, {"num_hidden_layers", 26},
               {"num_attention_heads", 8},  {"num_key_value_heads", 4},
               {"head_dim", 256},           {"max_position_embeddings", 131072}};
  if (type == "gemma3_text") {
    text.update(config);
    return text;
  }
  const json given = config.value("text_config", json());
  if (!given.is_null() && !given.is_object()) return InvalidConfig("text_config is no object");
  if (given.is_object()) text.update(given);
  if (const json of = text.value("model_type", json("gemma3_text")); of != "gemma3_text") {
    return UnsupportedConfig(absl::StrCat("text_config.model_type ", of.dump(),
                                          " is not supported in a gemma3 model; supported: gemma3_text"));
  }
  // What transformers' model with pictures does with these is not what its text model does.
  for (const json* part : {&config, static_cast<const json*>(&text)}) {
    if (part->value("tie_word_embeddings", json()) == false)
      return UnsupportedConfig("tie_word_embeddings false is not supported in a gemma3 model");
  }
  if (!text.value("final_logit_softcapping", json()).is_null())
    return UnsupportedConfig("text_config.final_logit_softcapping is not supported in a gemma3 model");
  text["model_type"] = type;
  text["quantization_config"] = config.value("quantization_config", json());
  return text;
}

absl::Status ReadGemma(const json& config, ModelConfig& model) {
  RETURN_IF_ERROR(ReadActivation(config, model));
  model.unit_norms = model.scaled_embedding = true;
  ConfigFields fields(config);
  if (fields.Flag("use_bidirectional_attention", false)) {
    return UnsupportedConfig(
        "use_bidirectional_attention true is not supported: it is no model that writes text");
  }
  if (model.model_type == "gemma") return fields.status();
  const bool second = model.model_type == "gemma2";
  model.post_norms = true;
  model.qk_norm = !second;
  model.query_scalar = fields.Number("query_pre_attn_scalar", 256);
  model.attention_soft_cap = Cap(fields, config, "attn_logit_softcapping", second ? 50 : 0);
  model.logit_soft_cap = Cap(fields, config, "final_logit_softcapping", second ? 30 : 0);
  RETURN_IF_ERROR(fields.status());
  return ReadWindows(config, model);
}

}  // namespace nibble::spec

#include "engine/spec/model_config.h"

#include <cmath>
#include <set>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/outside_text.h"
#include "base/status.h"
#include "nlohmann/json.hpp"

namespace nibble::spec {
namespace {

using nlohmann::json;

constexpr int64_t kMaxHeadDim = 1024;

absl::Status Unsupported(const std::string& message) {
  return Error(Reason::kUnsupportedArchitecture, message);
}
absl::Status Invalid(const std::string& message) {
  return Error(Reason::kModelFileInvalid, message);
}

// Reads typed fields of one JSON object; the first fault sticks.
class Fields {
 public:
  explicit Fields(const json& object) : object_(object) {}

  bool Has(const char* key) const { return object_.contains(key) && !object_[key].is_null(); }

  int64_t Integer(const char* key, int64_t fallback, int64_t low, int64_t high) {
    if (!Has(key)) return fallback;
    const json& value = object_[key];
    if (!value.is_number_integer()) {
      Fault(absl::StrCat("config.json: ", key, " is ", value.dump(), ", not a whole number"));
      return fallback;
    }
    const int64_t number = value.get<int64_t>();
    if (number < low || number > high) {
      Fault(absl::StrCat("config.json: ", key, " is ", number, ", outside ", low, " to ", high));
    }
    return number;
  }
  int64_t Needed(const char* key, int64_t high) {
    if (!Has(key)) Fault(absl::StrCat("config.json: ", key, " is missing"));
    return Integer(key, 1, 1, high);
  }
  double Number(const char* key, double fallback) {
    if (!Has(key)) return fallback;
    const json& value = object_[key];
    // As a float, which is what it is used as.
    if (!value.is_number() || !(value.get<double>() > 0) ||
        !std::isnormal(static_cast<float>(value.get<double>()))) {
      Fault(absl::StrCat("config.json: ", key, " is ", value.dump(),
                         ", not a positive number of single precision"));
      return fallback;
    }
    return value.get<double>();
  }
  bool Flag(const char* key, bool fallback) {
    if (!Has(key)) return fallback;
    if (!object_[key].is_boolean()) {
      Fault(absl::StrCat("config.json: ", key, " is ", object_[key].dump(), ", not true or false"));
      return fallback;
    }
    return object_[key].get<bool>();
  }
  std::string Text(const char* key, const std::string& fallback) {
    if (!Has(key)) return fallback;
    if (!object_[key].is_string()) {
      Fault(absl::StrCat("config.json: ", key, " is ", object_[key].dump(), ", not a string"));
      return fallback;
    }
    return object_[key].get<std::string>();
  }
  void Fault(const std::string& message) {
    if (status_.ok()) status_ = Invalid(message);
  }
  const absl::Status& status() const { return status_; }

 private:
  const json& object_;
  absl::Status status_;
};

absl::Status ReadRope(const json& config, ModelConfig& model) {
  Fields top(config);
  model.rope_theta = top.Number("rope_theta", 10000);
  RETURN_IF_ERROR(top.status());
  // transformers 5 writes rope_parameters with rope_theta inside, earlier ones rope_scaling.
  const char* key = top.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!top.Has(key)) return absl::OkStatus();
  const json& scaling = config[key];
  if (!scaling.is_object()) return Invalid(absl::StrCat("config.json: ", key, " is no object"));
  Fields rope(scaling);
  model.rope_theta = rope.Number("rope_theta", model.rope_theta);
  if (rope.Number("partial_rotary_factor", 1) != 1) {
    return Unsupported(
        absl::StrCat("config.json: ", key, ".partial_rotary_factor other than 1 is not supported"));
  }
  const std::string type = rope.Text("rope_type", rope.Text("type", "default"));
  if (type == "default") return rope.status();
  model.rope_factor = rope.Number("factor", 1);
  if (type == "linear") {
    model.rope = RopeKind::kLinear;
    return rope.status();
  }
  if (type != "llama3") {
    return Unsupported(absl::StrCat("config.json: ", key, ".rope_type \"", type,
                                    "\" is not supported; supported: default, linear, llama3"));
  }
  model.rope = RopeKind::kLlama3;
  model.rope_low_freq_factor = rope.Number("low_freq_factor", 1);
  model.rope_high_freq_factor = rope.Number("high_freq_factor", 4);
  model.rope_original_positions =
      rope.Integer("original_max_position_embeddings", 8192, 1, int64_t{1} << 30);
  if (model.rope_high_freq_factor <= model.rope_low_freq_factor) {
    return Invalid(
        absl::StrCat("config.json: ", key, ".high_freq_factor must be above low_freq_factor"));
  }
  return rope.status();
}

// Options that change the result and that no supported model sets otherwise.
absl::Status RefuseOddities(const json& config, const ModelConfig& model) {
  Fields fields(config);
  const std::string act = fields.Text("hidden_act", "silu");
  if (act != "silu") {
    return Unsupported(
        absl::StrCat("config.json: hidden_act \"", act, "\" is not supported; supported: silu"));
  }
  const bool qkv_bias = fields.Flag("attention_bias", false);
  if (qkv_bias) return Unsupported("config.json: attention_bias true is not supported");
  if (fields.Flag("mlp_bias", false))
    return Unsupported("config.json: mlp_bias true is not supported");
  if (fields.Has("partial_rotary_factor") && fields.Number("partial_rotary_factor", 1) != 1) {
    return Unsupported("config.json: partial_rotary_factor other than 1 is not supported");
  }
  for (const char* key :
       {"attn_logit_softcapping", "final_logit_softcapping", "num_local_experts", "num_experts"}) {
    if (fields.Has(key))
      return Unsupported(absl::StrCat("config.json: ", key, " is not supported"));
  }
  if (fields.Has("attention_dropout") && config["attention_dropout"].is_number() &&
      config["attention_dropout"].get<double>() != 0) {
    return Unsupported("config.json: attention_dropout other than 0 is not supported");
  }
  if (fields.Has("quantization_config")) {
    // Four-bit weights of bitsandbytes are read; each tensor says for itself whether it is one.
    const json& quantization = config["quantization_config"];
    if (!quantization.is_object() || quantization.value("quant_method", json()) != "bitsandbytes" ||
        quantization.value("load_in_4bit", json()) != true) {
      return Unsupported(
          "config.json: quantization_config is set; give the unquantized model (it is quantized "
          "here), or one that bitsandbytes quantized to four bits");
    }
  }
  // One that follows from hidden_size has not been held against the bound yet.
  if (model.head_dim > kMaxHeadDim) {
    return Unsupported(absl::StrCat("config.json: heads are ", model.head_dim, " wide (hidden_size by ",
                                    "num_attention_heads); at most ", kMaxHeadDim, " are supported"));
  }
  if (model.head_dim % 2 != 0) {
    return Unsupported(absl::StrCat("config.json: head_dim ", model.head_dim, " is odd"));
  }
  if (model.heads % model.kv_heads != 0) {
    return Invalid(absl::StrCat("config.json: num_attention_heads ", model.heads,
                                " is no multiple of num_key_value_heads ", model.kv_heads));
  }
  return fields.status();
}

absl::Status ReadSlidingWindow(const json& config, ModelConfig& model) {
  Fields fields(config);
  // Without a word about it transformers gives a Mistral 4096, with a null none.
  const int64_t usual = model.model_type == "mistral" && !config.contains("sliding_window") ? 4096 : 0;
  const int64_t window = fields.Integer("sliding_window", usual, 0, int64_t{1} << 30);
  // Qwen writes a window but switches it off; Mistral has no switch.
  const bool used = fields.Flag("use_sliding_window", model.model_type == "mistral");
  RETURN_IF_ERROR(fields.status());
  if (!used) return absl::OkStatus();
  if (model.model_type != "mistral") {
    return Unsupported("config.json: use_sliding_window true is not supported");
  }
  model.sliding_window = window;
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> FromJson(const json& config) {
  if (!config.is_object()) return Invalid("config.json: not a JSON object");
  Fields fields(config);
  ModelConfig model;
  model.model_type = fields.Text("model_type", "");
  static const std::set<std::string> kKnown = {"llama", "mistral", "qwen2", "qwen3"};
  if (!kKnown.contains(model.model_type)) {
    return Unsupported(
        absl::StrCat("config.json: model_type \"", model.model_type,
                     "\" is not supported; supported: llama, mistral, qwen2, qwen3"));
  }
  model.vocab_size = fields.Needed("vocab_size", 1 << 24);
  model.hidden_size = fields.Needed("hidden_size", 1 << 17);
  model.intermediate_size = fields.Needed("intermediate_size", 1 << 20);
  model.layers = fields.Needed("num_hidden_layers", 256);
  model.heads = fields.Needed("num_attention_heads", 1024);
  model.kv_heads = fields.Integer("num_key_value_heads", model.heads, 1, 1024);
  RETURN_IF_ERROR(fields.status());
  if (!fields.Has("head_dim") && model.hidden_size % model.heads != 0) {
    return Invalid(absl::StrCat("config.json: hidden_size ", model.hidden_size,
                                " is no multiple of num_attention_heads ", model.heads));
  }
  const int64_t default_head_dim =
      model.model_type == "qwen3" ? 128 : model.hidden_size / model.heads;
  model.head_dim = fields.Integer("head_dim", default_head_dim, 2, kMaxHeadDim);
  model.max_positions = fields.Integer("max_position_embeddings", 2048, 1, 1 << 24);
  model.rms_norm_eps = fields.Number("rms_norm_eps", 1e-6);
  model.tie_word_embeddings = fields.Flag("tie_word_embeddings", false);
  model.qkv_bias = model.model_type == "qwen2";
  model.qk_norm = model.model_type == "qwen3";
  const std::string dtype = fields.Text("dtype", fields.Text("torch_dtype", "bfloat16"));
  if (dtype != "bfloat16" && dtype != "float16" && dtype != "float32" && dtype != "auto") {
    return Unsupported(absl::StrCat("config.json: dtype \"", dtype,
                                    "\" is not supported; supported: bfloat16, float16, float32"));
  }
  RETURN_IF_ERROR(fields.status());
  RETURN_IF_ERROR(ReadRope(config, model));
  RETURN_IF_ERROR(ReadSlidingWindow(config, model));
  RETURN_IF_ERROR(RefuseOddities(config, model));
  return model;
}

}  // namespace

int64_t ModelConfig::LinearParameters() const {
  return layers * (2 * hidden_size * QueryWidth() + 2 * hidden_size * KeyValueWidth() +
                   3 * hidden_size * intermediate_size);
}

int64_t ModelConfig::TotalParameters() const {
  int64_t per_layer = 2 * hidden_size;
  if (qkv_bias) per_layer += QueryWidth() + 2 * KeyValueWidth();
  if (qk_norm) per_layer += 2 * head_dim;
  return LinearParameters() + layers * per_layer + hidden_size +
         vocab_size * hidden_size * (tie_word_embeddings ? 1 : 2);
}

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view config_json) {
  if (JsonDepth(config_json) > kMaxJsonDepth) {
    return Invalid(absl::StrCat("config.json: nested deeper than ", kMaxJsonDepth, " levels"));
  }
  const json config = json::parse(config_json, nullptr, /*allow_exceptions=*/false);
  if (config.is_discarded()) return Invalid("config.json: not valid JSON");
  return FromJson(config);
}

}  // namespace nibble::spec

// The architecture numbers of a Llama-family base model, read from the bytes of its config.json.
//
// A value; pure. Unknown architectures, and options that would change the result and that we do not
// honour, are refused by name (UNSUPPORTED_ARCHITECTURE).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace nibble::spec {

enum class RopeKind { kDefault, kLinear, kLlama3 };

struct ModelConfig {
  std::string model_type;  // llama, mistral, qwen2, qwen3
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_positions = 0;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  RopeKind rope = RopeKind::kDefault;
  double rope_factor = 1;
  double rope_low_freq_factor = 1;  // llama3
  double rope_high_freq_factor = 4;
  int64_t rope_original_positions = 8192;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;       // qwen2
  bool qk_norm = false;        // qwen3
  int64_t sliding_window = 0;  // 0 = none
  std::string hidden_act = "silu";

  bool operator==(const ModelConfig&) const = default;

  int64_t QueryWidth() const { return heads * head_dim; }
  int64_t KeyValueWidth() const { return kv_heads * head_dim; }
  int64_t LinearParameters() const;  // of the quantized linears
  int64_t TotalParameters() const;
};

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view config_json);

// cos and sin of every position and frequency, fp32 arithmetic as transformers has it:
// f32 [positions, head_dim / 2, 2].
std::vector<float> RopeTable(const ModelConfig& model, int64_t positions);

}  // namespace nibble::spec

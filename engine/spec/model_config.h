// The architecture numbers of a base model of the Llama, Gemma or Phi kind, read from the bytes of its
// config.json.
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

enum class RopeKind { kDefault, kLinear, kLlama3, kYarn, kLong };

struct ModelConfig {
  // llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3_text, gemma3, phi3, smollm3
  std::string model_type;
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
  int64_t rope_original_positions = 8192;  // llama3, yarn, longrope
  double rope_scale = 1;                   // cos and sin are multiplied by it; yarn, longrope
  double rope_beta_fast = 32;              // yarn
  double rope_beta_slow = 1;
  bool rope_truncate = true;
  std::vector<double> rope_short_factors;  // longrope: of each frequency, of documents up to the original
  std::vector<double> rope_long_factors;   // positions and of longer ones
  int64_t rotary_dim = 0;                  // how many first elements of a head turn; 0 = all
  bool tie_word_embeddings = false;
  bool qkv_bias = false;       // qwen2
  bool fused = false;          // qkv_proj and gate_up_proj, each one linear
  bool qk_norm = false;        // qwen3, gemma3_text, gemma3
  int64_t sliding_window = 0;  // 0 = none
  std::vector<bool> slides;    // by layer: whether the window is there; empty = in all
  std::vector<bool> turns;     // by layer: whether queries and keys turn; empty = in all; smollm3

  // Of the Gemma kinds:
  bool gelu = false;              // the gate's activation is GELU by tanh, not SiLU
  bool unit_norms = false;        // norms multiply by 1 + weight
  bool post_norms = false;        // also behind attention and the gated product, before the sum (not gemma)
  bool scaled_embedding = false;  // by sqrt(hidden_size)
  double query_scalar = 0;        // scores are divided by its square root; 0 = head_dim
  double attention_soft_cap = 0;  // of scores; 0 = none
  double logit_soft_cap = 0;
  double local_rope_theta = 0;  // of layers with the window, unscaled; 0 = as all

  bool operator==(const ModelConfig&) const = default;

  int64_t QueryWidth() const { return heads * head_dim; }
  int64_t KeyValueWidth() const { return kv_heads * head_dim; }
  int64_t WindowOf(int64_t layer) const {
    return slides.empty() || slides[static_cast<size_t>(layer)] ? sliding_window : 0;
  }
  // The text part of a model that sees pictures, too: the numbers are of that part alone.
  bool HasVision() const { return model_type == "gemma3"; }
  int64_t RotaryWidth() const { return rotary_dim > 0 ? rotary_dim : head_dim; }
  bool TurnsIn(int64_t layer) const { return turns.empty() || turns[static_cast<size_t>(layer)]; }
  // Of RopeTable's (rope.h).
  int64_t RopeTables() const { return local_rope_theta > 0 ? 2 : 1; }
  int64_t RopeTableOf(int64_t layer) const { return local_rope_theta > 0 && WindowOf(layer) > 0 ? 1 : 0; }
  float ScoreScale() const;          // on q k^T
  int64_t LinearParameters() const;  // of the quantized linears
  int64_t TotalParameters() const;
};

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view config_json);

}  // namespace nibble::spec

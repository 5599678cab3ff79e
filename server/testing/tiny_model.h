// The smallest model a server registers, for tests and benchmarks of the server: one layer, a tokenizer
// of three tokens, weights that have names and no meaning.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"

namespace nibble::server {

inline std::string TinyConfig(int positions) {
  return absl::StrCat(
      R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","vocab_size":64,"hidden_size":32,)"
      R"("intermediate_size":64,"num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1,)"
      R"("max_position_embeddings":)",
      positions, R"(,"rms_norm_eps":1e-5,"rope_theta":10000.0,)",
      R"("tie_word_embeddings":true,"hidden_act":"silu"})");
}

inline constexpr char kTinyTokenizer[] =
    R"({"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}})";

// All tensors the config asks for, one float each: the server checks headers, not shapes.
inline std::string TinyWeights() {
  std::string header = "{";
  int64_t at = 0;
  const auto add = [&](const std::string& name) {
    absl::StrAppend(&header, at == 0 ? "" : ",", "\"", name,
                    "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[", at, ",", at + 4,
                    "]}");
    at += 4;
  };
  add("model.embed_tokens.weight");
  add("model.norm.weight");
  for (const char* part :
       {"input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj",
        "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}) {
    add(absl::StrCat("model.layers.0.", part, ".weight"));
  }
  header += "}";
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(header.size() >> (8 * i));
  return file + header + std::string(static_cast<size_t>(at), '\0');
}

}  // namespace nibble::server

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

struct TinyShape {
  int64_t vocab = 64;
  int64_t hidden = 32;
  int64_t key_value = 16;
  int64_t middle = 64;
};
// All tensors of such a config: what stands before their data_bytes.
inline std::string TinyHeader(const TinyShape& shape, int64_t& data_bytes) {
  std::string header = "{";
  int64_t at = 0;
  const auto add = [&](const std::string& name, int64_t rows, int64_t columns) {
    const int64_t bytes = 4 * rows * (columns > 0 ? columns : 1);
    absl::StrAppend(&header, at == 0 ? "" : ",", "\"", name, "\":{\"dtype\":\"F32\",\"shape\":[", rows,
                    columns > 0 ? absl::StrCat(",", columns) : "", "],\"data_offsets\":[", at, ",",
                    at + bytes, "]}");
    at += bytes;
  };
  add("model.embed_tokens.weight", shape.vocab, shape.hidden);
  add("model.norm.weight", shape.hidden, 0);
  const auto part = [&](const char* name, int64_t rows, int64_t columns) {
    add(absl::StrCat("model.layers.0.", name, ".weight"), rows, columns);
  };
  part("input_layernorm", shape.hidden, 0);
  part("post_attention_layernorm", shape.hidden, 0);
  part("self_attn.q_proj", shape.hidden, shape.hidden);
  part("self_attn.k_proj", shape.key_value, shape.hidden);
  part("self_attn.v_proj", shape.key_value, shape.hidden);
  part("self_attn.o_proj", shape.hidden, shape.hidden);
  part("mlp.gate_proj", shape.middle, shape.hidden);
  part("mlp.up_proj", shape.middle, shape.hidden);
  part("mlp.down_proj", shape.hidden, shape.middle);
  header += "}";
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(header.size() >> (8 * i));
  data_bytes = at;
  return file + header;
}

// Of TinyConfig, zero.
inline std::string TinyWeights() {
  int64_t bytes = 0;
  const std::string header = TinyHeader({}, bytes);
  return header + std::string(static_cast<size_t>(bytes), '\0');
}

}  // namespace nibble::server

// Text from a prompt: greedy or sampled, token by token until a stop token.
//
// Sampling is counter-based: the same seed, prompt and settings give the same text. One thread.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "engine/decoder.h"
#include "engine/text/chat_template.h"

namespace nibble::engine {

struct SamplingOptions {
  int64_t max_tokens = 128;  // new ones
  double temperature = 0;    // 0 = the likeliest token
  double top_p = 1;          // of what is left, the likeliest tokens that make up this share
  uint64_t seed = 42;
  uint64_t stream = 0;  // e.g. the prompt's number
};

// The new tokens, without the stop token. Stops also when the decoder is full.
std::vector<int32_t> Generate(Decoder& decoder, std::span<const int32_t> prompt,
                              const std::set<int32_t>& stop_ids, const SamplingOptions& options,
                              int64_t room_tokens);

// One choice; `draw` is uniform in [0, 1).
int32_t Sample(std::span<const float> logits, double temperature, double top_p, double draw);

// What ends an answer: EOS and BOS of the tokenizer, eos_token_id of config.json and
// generation_config.json, and what ends a turn of `chat`, if one talks in a template.
std::set<int32_t> StopIds(const std::string& model_dir, const Tokenizer& tokenizer,
                          const std::optional<ChatTemplate>& chat);

}  // namespace nibble::engine

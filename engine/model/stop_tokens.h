// Where answers end: what a model's files say, and what an adapter has learned on top. Reads files;
// thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>

namespace nibble::engine {

// eos_token_id of config.json and generation_config.json.
std::set<int32_t> EosIds(const std::string& model_dir);

struct EndOfTurn {
  int32_t id = 0;
  std::string token;
};
// The token that ends a turn in the chat template an adapter was trained with, as its nibble_job.yaml has it
// and the base's tokenizer renders it; nothing when that is not known.
std::optional<EndOfTurn> LearnedEndOfTurn(const std::string& adapter_dir, const std::string& model_dir);

// The model's generation_config.json with `id` among what ends an answer; made of config.json where there is
// none. "" when the file cannot be read as one.
std::string GenerationConfigWith(const std::string& model_dir, int32_t id);

}  // namespace nibble::engine

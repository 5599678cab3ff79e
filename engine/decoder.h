// The frozen base with or without an adapter as a generator of text: logits of the next token.
//
// Keeps keys and values of what it has seen. Memory is taken from the backend when it is made, in one
// region, for at most `max_tokens` tokens. One thread drives it; Device outlives it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/device.h"
#include "engine/model/adapter.h"
#include "engine/region.h"

namespace nibble::engine {

class Decoder {
 public:
  // `adapter` may be null. `max_tokens`: of prompt and answer together; at most max_prompt of them
  // come at once.
  static absl::StatusOr<std::unique_ptr<Decoder>> Make(Device& device, const Adapter* adapter,
                                                       int64_t max_tokens, int64_t max_prompt);

  // Forgets everything seen.
  void Reset() { length_ = 0; }
  // Takes in more tokens and returns the logits [vocab] after the last. Several tokens only right
  // after Reset. The length of the first call's decides which of longrope's angles the text gets; a text that
  // starts with those of short ones must stay within the model's original positions.
  std::span<const float> Feed(std::span<const int32_t> ids);
  // Logits [ids, vocab] after every token, from the start. For tests and scores.
  std::vector<float> AllLogits(std::span<const int32_t> ids);
  int64_t length() const { return length_; }

 private:
  using Buffer = std::byte*;
  struct Pair {
    bool present = false;
    Buffer a = nullptr, b = nullptr;  // in the activation type
  };

  Decoder(Device& device, const Adapter* adapter, int64_t max_tokens, int64_t max_prompt);
  // Places every buffer: counts the bytes while `base` is null.
  int64_t Place(const Adapter* adapter, std::byte* base);
  absl::Status Fill(const Adapter* adapter);
  void Blocks(std::span<const int32_t> ids);
  void Project(int64_t layer, int64_t m);
  void Attend(int64_t layer, int64_t m);
  void Linear(Buffer y, Buffer x, int64_t layer, spec::Module module, int64_t m);
  void Norm(Buffer y, Buffer x, kernels::ParamView weight, int64_t rows, int64_t dim);
  std::span<const float> Head(int64_t first_row, int64_t rows);

  Device& device_;
  const kernels::KernelTable& table_;
  const spec::ModelConfig& model_;
  const int64_t max_tokens_;
  const int64_t max_prompt_;
  double scale_ = 0;
  int64_t rank_ = 0;
  std::vector<Pair> adapter_;  // by layer and module
  Region region_;
  std::vector<int32_t> positions_;
  Buffer x_, h_, qkv_, q_, k_, v_, o_, gate_, up_, act_, u_, rstd_, lse_, workspace_;
  Buffer ids_, places_, starts_, rope_, converted_, head_;
  std::vector<Buffer> key_cache_, value_cache_;  // by layer
  int64_t workspace_bytes_ = 0;
  std::vector<float> logits_;
  int64_t length_ = 0;
  int32_t first_row_ = 0;  // of the text's, in the RoPE table
};

}  // namespace nibble::engine

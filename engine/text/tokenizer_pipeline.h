// The parts of a loaded tokenizer, in the order in which text goes through them.
//
// Made by LoadPipeline (tokenizer_load.cc), run by Tokenizer (tokenizer.cc); immutable afterwards.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "engine/text/text.h"
#include "engine/text/tokenizer_added.h"
#include "engine/text/tokenizer_bpe.h"
#include "engine/text/tokenizer_pre.h"

namespace nibble::engine::tokenizer {

struct NormalizeStep {
  enum class Kind { kForm, kPrepend, kReplace, kStrip, kLowercase };
  Kind kind = Kind::kForm;
  NormalForm form = NormalForm::kNfc;
  std::string from;   // replace
  std::string to;     // replace, prepend
  bool left = false;  // strip
  bool right = false;
};

struct DecodeStep {
  enum class Kind { kByteLevel, kReplace, kByteFallback, kFuse, kStrip, kMetaspace };
  Kind kind = Kind::kFuse;
  std::string from;  // replace, strip (the character), metaspace (the replacement)
  std::string to;
  int64_t start = 0;  // strip: at most so many from the front, and from the back
  int64_t stop = 0;
  bool drop_first = false;  // metaspace: the first token's replacement goes
};

struct Pipeline {
  AddedTokenSet raw_tokens;
  std::vector<NormalizeStep> normalizer;
  AddedTokenSet normalized_tokens;
  std::vector<PreStep> pre_tokenizer;
  Bpe model;
  std::vector<int32_t> prefix;  // ids the post-processor puts around a text
  std::vector<int32_t> suffix;
  std::vector<DecodeStep> decoder;
  bool join_with_spaces = false;  // the file has no decoder

  std::vector<std::string> contents;  // by id; empty = no such token
  absl::flat_hash_map<std::string, int32_t> ids;
  absl::flat_hash_set<int32_t> special;
  absl::flat_hash_set<int32_t> takes_space_behind;  // "rstrip"
  std::optional<int32_t> bos, eos, pad;
  std::string chat_template;
  std::string digest;
};

// continues: the text is no beginning, so nothing is prepended.
std::string NormalizeText(const std::vector<NormalizeStep>& steps, std::string_view text,
                          bool continues = false);
std::string DecodeTokens(const std::vector<DecodeStep>& steps, bool join_with_spaces,
                         std::vector<std::string> tokens);

// Everything but the special ids and the chat template, from the bytes of tokenizer.json.
absl::StatusOr<Pipeline> LoadPipeline(std::string_view tokenizer_json);

}  // namespace nibble::engine::tokenizer

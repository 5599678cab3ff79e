// Added and special tokens: found in the text before anything else looks at it.
//
// At each place the longest token wins, and matches do not overlap. Tokens marked `normalized` are
// looked for in the normalized text, the others in the raw one. Immutable after Build; thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace nibble::engine::tokenizer {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;
  bool lstrip = false;
  bool rstrip = false;
  bool normalized = false;
  bool special = false;
};

// A stretch of text, or a token that stood there.
struct Segment {
  size_t begin = 0;
  size_t end = 0;
  int32_t id = -1;  // -1 = text
};

class AddedTokenSet {
 public:
  AddedTokenSet() { root_.fill(-1); }
  // `pattern` is what to look for: the token's content, normalized where the token says so.
  void Add(const AddedToken& token, std::string_view pattern);
  // Covers all of `text`, in order.
  std::vector<Segment> Find(std::string_view text) const;

 private:
  // A trie: edges from (node, byte); the root's own in an array, because most bytes end there.
  int32_t Next(int32_t node, uint8_t byte) const;
  bool Accept(const AddedToken& token, std::string_view text, size_t begin, size_t end) const;

  std::array<int32_t, 256> root_;
  absl::flat_hash_map<uint64_t, int32_t> edges_;
  std::vector<int32_t> token_of_node_{-1};  // index into tokens_
  std::vector<AddedToken> tokens_;
};

}  // namespace nibble::engine::tokenizer

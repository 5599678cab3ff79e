// The BPE model of tokenizer.json: pieces of text to ids by merge ranks.
//
// Byte level: symbols are bytes; the file's printable stand-ins for bytes are translated once, at
// load. Otherwise symbols are characters, with byte fallback and an unknown token where the file
// says so. Immutable; thread-safe.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble::engine::tokenizer {

// Symbol of byte-level files for each byte, and back: the printable bytes of Latin-1 stand for
// themselves, the other 68 are shifted to U+0100 onwards.
const std::array<char32_t, 256>& ByteAlphabet();
// The bytes a byte-level token stands for; nothing when a character is none of the alphabet.
std::optional<std::string> BytesOfToken(std::string_view token);

// As the file has it; its text is the reader's, and need not outlive Make.
struct BpeConfig {
  std::vector<std::pair<std::string_view, int32_t>> vocab;            // content, id
  std::vector<std::pair<std::string_view, std::string_view>> merges;  // by rank
  std::string unk_token;                                    // empty = none
  bool byte_level = false;
  bool byte_fallback = false;
  bool ignore_merges = false;
  bool fuse_unk = false;
};

class Bpe {
 public:
  // TOKENIZER_UNSUPPORTED when ids are not unique or merges name what the vocabulary lacks.
  static absl::StatusOr<Bpe> Make(const BpeConfig& config);
  // Appends the ids of one piece; `piece` is valid UTF-8 unless byte level.
  void Encode(std::string_view piece, std::vector<int32_t>& ids) const;

 private:
  // Ids by content as the file writes it, in the config's text.
  using IdsByContent = absl::flat_hash_map<absl::string_view, int32_t>;
  struct Merge {
    int32_t rank;
    int32_t id;
  };
  // Parts of Make, in this order.
  absl::StatusOr<IdsByContent> TakeVocab(const BpeConfig& config);
  absl::Status TakeMerges(const BpeConfig& config, const IdsByContent& by_content);
  void NoteSingles();
  // Appends the ids of a part that no merge joins to what stands around it; `symbols` is scratch.
  void EncodePart(std::string_view part, std::vector<int32_t>& symbols,
                  std::vector<int32_t>& ids) const;
  void Split(std::string_view piece, std::vector<int32_t>& symbols) const;
  void SplitUnknown(std::string_view character, std::vector<int32_t>& symbols,
                    bool& unknown_pending) const;
  void MergeShort(std::vector<int32_t>& symbols) const;
  void MergeLong(std::vector<int32_t>& symbols) const;
  const Merge* FindMerge(int32_t left, int32_t right) const;

  absl::flat_hash_map<std::string, int32_t> vocab_;
  absl::flat_hash_map<uint64_t, Merge> merges_;
  std::array<int32_t, 256> byte_ids_{};  // byte level: id of a byte; else id of <0xXX>; -1 = none
  std::array<int32_t, 128> ascii_ids_{};
  int32_t unk_id_ = -1;
  bool byte_level_ = false;
  bool byte_fallback_ = false;  // all 256 byte tokens need not be there
  bool ignore_merges_ = false;
  bool fuse_unk_ = false;
  bool has_spaces_ = false;  // U+2581 is a token, as in SentencePiece's vocabularies
  // Last bytes of what some merge joins to a word behind it: in Gemma 3's only the '>' of "> </".
  std::bitset<256> joins_next_word_;
};

}  // namespace nibble::engine::tokenizer

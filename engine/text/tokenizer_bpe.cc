#include "engine/text/tokenizer_bpe.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <queue>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "engine/text/text.h"

namespace nibble::engine::tokenizer {
namespace {

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581, a space in SentencePiece's vocabularies
constexpr size_t kShortPiece = 48;  // symbols; above it the quadratic search loses to the heap

absl::Status Unsupported(std::string_view what) {
  return Error(Reason::kTokenizerUnsupported, absl::StrCat("tokenizer.json: ", View(what)));
}

// -1 = there is no such token.
int32_t Find(const absl::flat_hash_map<absl::string_view, int32_t>& by_content, std::string_view content) {
  const auto it = by_content.find(View(content));
  return it == by_content.end() ? -1 : it->second;
}

}  // namespace

const std::array<char32_t, 256>& ByteAlphabet() {
  static const std::array<char32_t, 256> alphabet = [] {
    std::array<char32_t, 256> table{};
    char32_t next = 0x100;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      table[b] = printable ? static_cast<char32_t>(b) : next++;
    }
    return table;
  }();
  return alphabet;
}

std::optional<std::string> BytesOfToken(std::string_view token) {
  static const std::array<int16_t, 0x144> byte_of = [] {
    std::array<int16_t, 0x144> table{};
    table.fill(-1);
    for (int b = 0; b < 256; ++b) table[ByteAlphabet()[b]] = static_cast<int16_t>(b);
    return table;
  }();
  std::string bytes;
  for (size_t pos = 0; pos < token.size();) {
    const CodePoint c = DecodeAt(token, pos);
    if (c.value >= byte_of.size() || byte_of[c.value] < 0) return std::nullopt;
    bytes += static_cast<char>(byte_of[c.value]);
    pos += c.bytes;
  }
  return bytes;
}

absl::StatusOr<Bpe::IdsByContent> Bpe::TakeVocab(const BpeConfig& config) {
  IdsByContent by_content;
  std::vector<bool> taken;  // by id
  by_content.reserve(config.vocab.size());
  vocab_.reserve(config.vocab.size());
  for (const auto& [content, id] : config.vocab) {
    if (!by_content.emplace(View(content), id).second) {
      return Unsupported(absl::StrCat("model.vocab has ", Quote(content), " twice"));
    }
    if (static_cast<size_t>(id) >= taken.size()) taken.resize(static_cast<size_t>(id) + 1);
    if (taken[static_cast<size_t>(id)]) {
      return Unsupported(
          absl::StrCat("model.vocab gives id ", id, " twice, also to ", Quote(content)));
    }
    taken[static_cast<size_t>(id)] = true;
    if (!config.byte_level) {
      vocab_.emplace(std::string(content), id);
    } else if (auto bytes = BytesOfToken(content)) {
      // A token outside the alphabet can never come out of byte-level text.
      vocab_.emplace(std::move(*bytes), id);
    }
  }
  return by_content;
}

absl::Status Bpe::TakeMerges(const BpeConfig& config, const IdsByContent& by_content) {
  merges_.reserve(config.merges.size());
  std::string both;
  for (size_t rank = 0; rank < config.merges.size(); ++rank) {
    const auto& [left, right] = config.merges[rank];
    if (right.starts_with(kSpace) && !left.ends_with(kSpace) && !left.empty()) {
      joins_next_word_.set(static_cast<uint8_t>(left.back()));
    }
    both.assign(left).append(right);
    const int32_t a = Find(by_content, left), b = Find(by_content, right), merged = Find(by_content, both);
    if (a < 0 || b < 0 || merged < 0) {
      return Unsupported(absl::StrCat("model.merges[", rank, "] joins ", Quote(left), " and ",
                                      Quote(right), ", but the vocabulary lacks ",
                                      a < 0   ? "the first"
                                      : b < 0 ? "the second"
                                              : "the result"));
    }
    merges_[static_cast<uint64_t>(a) << 32 | static_cast<uint32_t>(b)] = {static_cast<int32_t>(rank), merged};
  }
  return absl::OkStatus();
}

// The ids of single bytes and of ASCII, which are asked for most.
void Bpe::NoteSingles() {
  for (int b = 0; b < 256; ++b) {
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", b);
    const auto it = vocab_.find(byte_level_ ? std::string(1, static_cast<char>(b)) : name);
    byte_ids_[b] = it == vocab_.end() ? -1 : it->second;
  }
  for (int c = 0; c < 128; ++c) {
    const auto it = vocab_.find(std::string(1, static_cast<char>(c)));
    ascii_ids_[c] = it == vocab_.end() ? -1 : it->second;
  }
}

absl::StatusOr<Bpe> Bpe::Make(const BpeConfig& config) {
  Bpe bpe;
  bpe.byte_level_ = config.byte_level;
  bpe.byte_fallback_ = config.byte_fallback;
  bpe.ignore_merges_ = config.ignore_merges;
  bpe.fuse_unk_ = config.fuse_unk;
  ASSIGN_OR_RETURN(const IdsByContent by_content, bpe.TakeVocab(config));
  bpe.has_spaces_ = !config.byte_level && Find(by_content, kSpace) >= 0;
  RETURN_IF_ERROR(bpe.TakeMerges(config, by_content));
  bpe.NoteSingles();
  if (!config.unk_token.empty()) {
    bpe.unk_id_ = Find(by_content, config.unk_token);
    if (bpe.unk_id_ < 0) {
      return Unsupported(
          absl::StrCat("model.unk_token ", Quote(config.unk_token), " is not in the vocabulary"));
    }
  }
  return bpe;
}

void Bpe::Encode(std::string_view piece, std::vector<int32_t>& ids) const {
  if (piece.empty()) return;
  if (ignore_merges_) {
    const auto it = vocab_.find(View(piece));
    if (it != vocab_.end()) {
      ids.push_back(it->second);
      return;
    }
  }
  std::vector<int32_t> symbols;
  // Where there is no pre-tokenizer, a piece may be a document. Its words are taken one by one, but for
  // those that a merge could join: the same ids as of the whole.
  size_t begin = 0;
  for (size_t at = 0; has_spaces_ && at < piece.size();) {
    at = piece.find(kSpace, at + 1);
    if (at == std::string_view::npos) break;
    if (piece.substr(0, at).ends_with(kSpace)) continue;
    if (joins_next_word_.test(static_cast<uint8_t>(piece[at - 1]))) continue;
    EncodePart(piece.substr(begin, at - begin), symbols, ids);
    begin = at;
  }
  EncodePart(piece.substr(begin), symbols, ids);
}

void Bpe::EncodePart(std::string_view part, std::vector<int32_t>& symbols,
                     std::vector<int32_t>& ids) const {
  symbols.clear();
  Split(part, symbols);
  if (symbols.size() <= kShortPiece) {
    MergeShort(symbols);
  } else {
    MergeLong(symbols);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

void Bpe::Split(std::string_view piece, std::vector<int32_t>& symbols) const {
  symbols.reserve(piece.size());
  // An unknown run ends when a known symbol comes; bytes of a fallback do not end it. That is how
  // the reference library has it.
  bool unknown_pending = false;
  for (size_t pos = 0; pos < piece.size();) {
    const int bytes = byte_level_ ? 1 : CharBytes(piece[pos]);
    const std::string_view character = piece.substr(pos, bytes);
    pos += bytes;
    const auto lead = static_cast<uint8_t>(character[0]);
    int32_t id = -1;
    if (byte_level_) {
      id = byte_ids_[lead];
    } else if (bytes == 1) {
      id = ascii_ids_[lead];
    } else if (const auto it = vocab_.find(View(character)); it != vocab_.end()) {
      id = it->second;
    }
    if (id < 0) {
      SplitUnknown(character, symbols, unknown_pending);
      continue;
    }
    if (unknown_pending) symbols.push_back(unk_id_);
    unknown_pending = false;
    symbols.push_back(id);
  }
  if (unknown_pending) symbols.push_back(unk_id_);
}

void Bpe::SplitUnknown(std::string_view character, std::vector<int32_t>& symbols,
                       bool& unknown_pending) const {
  if (byte_fallback_) {
    const bool all = std::all_of(character.begin(), character.end(),
                                 [&](char b) { return byte_ids_[static_cast<uint8_t>(b)] >= 0; });
    if (all) {
      for (const char b : character) symbols.push_back(byte_ids_[static_cast<uint8_t>(b)]);
      return;
    }
  }
  if (unk_id_ < 0) return;  // dropped, as the library does
  if (unknown_pending && !fuse_unk_) symbols.push_back(unk_id_);
  unknown_pending = true;
}

const Bpe::Merge* Bpe::FindMerge(int32_t left, int32_t right) const {
  const auto it = merges_.find(static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right));
  return it == merges_.end() ? nullptr : &it->second;
}

// The lowest rank first, the leftmost of equals: look at all pairs, merge, look again.
void Bpe::MergeShort(std::vector<int32_t>& symbols) const {
  constexpr int32_t kNone = std::numeric_limits<int32_t>::max();
  size_t count = symbols.size();
  if (count < 2) return;
  std::array<Merge, kShortPiece> pairs;  // of symbols i and i + 1
  const auto look = [&](size_t i) {
    const Merge* merge = FindMerge(symbols[i], symbols[i + 1]);
    pairs[i] = merge ? *merge : Merge{kNone, -1};
  };
  for (size_t i = 0; i + 1 < count; ++i) look(i);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (pairs[i].rank < pairs[best].rank) best = i;
    }
    if (pairs[best].rank == kNone) break;
    symbols[best] = pairs[best].id;
    for (size_t i = best + 1; i + 1 < count; ++i) {
      symbols[i] = symbols[i + 1];
      pairs[i] = i + 2 < count ? pairs[i + 1] : Merge{kNone, -1};
    }
    --count;
    if (best > 0) look(best - 1);
    if (best + 1 < count) look(best);
  }
  symbols.resize(count);
}

// The same with a heap over a linked list: n log n for pieces as long as a document.
void Bpe::MergeLong(std::vector<int32_t>& symbols) const {
  struct Node {
    int32_t id;
    int32_t previous;
    int32_t next;
  };
  struct Candidate {
    int32_t rank;
    int32_t at;
    int32_t left;
    int32_t right;
    int32_t merged;
    bool operator<(const Candidate& other) const {  // the queue's top is its largest
      return std::pair(rank, at) > std::pair(other.rank, other.at);
    }
  };
  const auto count = static_cast<int32_t>(symbols.size());
  std::vector<Node> nodes(symbols.size());
  for (int32_t i = 0; i < count; ++i) nodes[i] = {symbols[i], i - 1, i + 1 < count ? i + 1 : -1};
  std::vector<Candidate> storage;
  storage.reserve(symbols.size());
  std::priority_queue<Candidate> queue(std::less<Candidate>(), std::move(storage));
  const auto offer = [&](int32_t at) {
    if (at < 0 || nodes[at].next < 0) return;
    const int32_t left = nodes[at].id, right = nodes[nodes[at].next].id;
    if (const Merge* merge = FindMerge(left, right)) {
      queue.push({merge->rank, at, left, right, merge->id});
    }
  };
  for (int32_t i = 0; i + 1 < count; ++i) offer(i);
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Node& node = nodes[top.at];
    // Stale: one side was merged meanwhile. A merged-away node has id -1.
    if (node.id != top.left || node.next < 0 || nodes[node.next].id != top.right) continue;
    Node& gone = nodes[node.next];
    node.id = top.merged;
    node.next = gone.next;
    gone.id = -1;
    if (node.next >= 0) nodes[node.next].previous = top.at;
    offer(node.previous);
    offer(top.at);
  }
  symbols.clear();
  for (int32_t i = 0; i >= 0; i = nodes[i].next) symbols.push_back(nodes[i].id);
}

}  // namespace nibble::engine::tokenizer

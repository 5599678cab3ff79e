#include "engine/text/tokenizer_added.h"

#include <algorithm>

#include "engine/text/text.h"

namespace nibble::engine::tokenizer {
namespace {

// Start of the character that ends before `pos`.
size_t PreviousChar(std::string_view text, size_t pos) {
  --pos;
  while (pos > 0 && (static_cast<uint8_t>(text[pos]) & 0xC0) == 0x80) --pos;
  return pos;
}

}  // namespace

int32_t AddedTokenSet::Next(int32_t node, uint8_t byte) const {
  if (node == 0) return root_[byte];
  const auto it = edges_.find(static_cast<uint64_t>(node) << 8 | byte);
  return it == edges_.end() ? -1 : it->second;
}

void AddedTokenSet::Add(const AddedToken& token, std::string_view pattern) {
  if (pattern.empty()) return;
  int32_t node = 0;
  for (const char c : pattern) {
    const auto byte = static_cast<uint8_t>(c);
    int32_t next = Next(node, byte);
    if (next < 0) {
      next = static_cast<int32_t>(token_of_node_.size());
      token_of_node_.push_back(-1);
      if (node == 0) {
        root_[byte] = next;
      } else {
        edges_.emplace(static_cast<uint64_t>(node) << 8 | byte, next);
      }
    }
    node = next;
  }
  if (token_of_node_[node] >= 0) return;  // the first of two with one pattern counts
  token_of_node_[node] = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
}

bool AddedTokenSet::Accept(const AddedToken& token, std::string_view text, size_t begin,
                           size_t end) const {
  if (!token.single_word) return true;
  const bool free_before = begin == 0 || !IsWord(DecodeAt(text, PreviousChar(text, begin)).value);
  const bool free_after = end == text.size() || !IsWord(DecodeAt(text, end).value);
  return free_before && free_after;
}

std::vector<Segment> AddedTokenSet::Find(std::string_view text) const {
  std::vector<Segment> segments;
  size_t done = 0;  // everything before it is in segments
  for (size_t pos = 0; pos < text.size();) {
    int32_t found = -1;
    size_t end = pos;
    int32_t node = 0;
    for (size_t i = pos; i < text.size(); ++i) {
      node = Next(node, static_cast<uint8_t>(text[i]));
      if (node < 0) break;
      if (token_of_node_[node] >= 0) {
        found = token_of_node_[node];
        end = i + 1;
      }
    }
    if (found < 0) {
      ++pos;
      continue;
    }
    const AddedToken& token = tokens_[found];
    const size_t match_end = end;
    if (Accept(token, text, pos, end)) {
      size_t begin = pos;
      if (token.lstrip) {
        while (begin > done) {
          const size_t before = PreviousChar(text, begin);
          if (!IsSpace(DecodeAt(text, before).value)) break;
          begin = before;
        }
      }
      if (token.rstrip) {
        while (end < text.size()) {
          const CodePoint c = DecodeAt(text, end);
          if (!IsSpace(c.value)) break;
          end += c.bytes;
        }
      }
      begin = std::max(begin, done);
      if (done < begin) segments.push_back({done, begin, -1});
      segments.push_back({begin, end, token.id});
      done = end;
    }
    pos = match_end;
  }
  if (done < text.size()) segments.push_back({done, text.size(), -1});
  return segments;
}

}  // namespace nibble::engine::tokenizer

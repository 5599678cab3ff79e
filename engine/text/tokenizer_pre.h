// Pre-tokenizers: text cut into the pieces BPE works on.
//
// A pre-tokenizer is a list of steps applied one after the other to every piece. Immutable values;
// Run is thread-safe.
#pragma once

#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer_scan.h"

namespace nibble::engine::tokenizer {

enum class Behavior { kIsolated, kRemoved, kContiguous, kMergedWithPrevious, kMergedWithNext };
enum class PrependScheme { kAlways, kFirst, kNever };

struct PreStep {
  // Before the split: nothing, a space in front (byte level), or spaces replaced (Metaspace).
  enum class Change { kNone, kPrefixSpace, kMetaspace };
  Change change = Change::kNone;
  std::string replacement;                         // Metaspace
  PrependScheme prepend = PrependScheme::kAlways;  // Metaspace

  bool split = false;
  Scanner scanner = nullptr;  // matches of this, or
  std::string literal;        // of this text
  Behavior behavior = Behavior::kIsolated;
  bool invert = false;  // what does not match is the delimiter
};

struct Piece {
  std::string_view text;
  bool at_start = false;   // begins where the whole input begins
  bool continues = false;  // goes on where other text ended
};

// Pieces point into `text` or into strings kept in `arena`; none is empty.
std::vector<Piece> PreTokenize(const std::vector<PreStep>& steps, Piece text,
                               std::deque<std::string>& arena);

// `text` with every `from` replaced by `to`.
std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to);

}  // namespace nibble::engine::tokenizer

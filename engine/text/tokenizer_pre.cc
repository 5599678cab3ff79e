#include "engine/text/tokenizer_pre.h"

#include <algorithm>

#include "engine/text/text.h"

namespace nibble::engine::tokenizer {
namespace {

struct Range {
  size_t begin = 0;
  size_t end = 0;
  bool match = false;
};

size_t MatchAt(const PreStep& step, std::string_view text, size_t pos) {
  if (step.scanner != nullptr) return step.scanner(text, pos);
  return text.substr(pos, step.literal.size()) == step.literal ? step.literal.size() : 0;
}

// Matches from left to right and what lies between them.
std::vector<Range> FindMatches(const PreStep& step, std::string_view text) {
  std::vector<Range> ranges;
  size_t begin = 0;
  for (size_t pos = 0; pos < text.size();) {
    const size_t match = MatchAt(step, text, pos);
    if (match == 0) {
      pos += CharBytes(text[pos]);
      continue;
    }
    if (begin < pos) ranges.push_back({begin, pos, step.invert});
    ranges.push_back({pos, pos + match, !step.invert});
    pos += match;
    begin = pos;
  }
  if (begin < text.size()) ranges.push_back({begin, text.size(), step.invert});
  return ranges;
}

// A delimiter joins what stands before it, unless that is a delimiter too.
std::vector<Range> MergeWithPrevious(const std::vector<Range>& ranges) {
  std::vector<Range> merged;
  bool previous = false;
  for (const Range& range : ranges) {
    if (range.match && !previous && !merged.empty()) {
      merged.back().end = range.end;
    } else {
      merged.push_back(range);
    }
    previous = range.match;
  }
  return merged;
}

std::vector<Range> MergeWithNext(const std::vector<Range>& ranges) {
  std::vector<Range> merged;
  bool previous = false;
  for (auto range = ranges.rbegin(); range != ranges.rend(); ++range) {
    if (range->match && !previous && !merged.empty()) {
      merged.back().begin = range->begin;
    } else {
      merged.push_back(*range);
    }
    previous = range->match;
  }
  std::reverse(merged.begin(), merged.end());
  return merged;
}

std::vector<Range> MergeContiguous(const std::vector<Range>& ranges) {
  std::vector<Range> merged;
  for (const Range& range : ranges) {
    if (!merged.empty() && merged.back().match == range.match) {
      merged.back().end = range.end;
    } else {
      merged.push_back(range);
    }
  }
  return merged;
}

std::vector<Range> SplitRanges(const PreStep& step, std::string_view text) {
  std::vector<Range> ranges = FindMatches(step, text);
  switch (step.behavior) {
    case Behavior::kIsolated:
      return ranges;
    case Behavior::kRemoved:
      std::erase_if(ranges, [](const Range& range) { return range.match; });
      return ranges;
    case Behavior::kContiguous:
      return MergeContiguous(ranges);
    case Behavior::kMergedWithPrevious:
      return MergeWithPrevious(ranges);
    case Behavior::kMergedWithNext:
      return MergeWithNext(ranges);
  }
  return ranges;
}

Piece Change(const PreStep& step, Piece piece, std::deque<std::string>& arena) {
  if (step.change == PreStep::Change::kPrefixSpace) {
    if (piece.text.front() != ' ' && !piece.continues) {
      piece.text = arena.emplace_back(std::string(" ").append(piece.text));
    }
  } else if (step.change == PreStep::Change::kMetaspace) {
    std::string text = ReplaceAll(piece.text, " ", step.replacement);
    const bool wanted = step.prepend == PrependScheme::kAlways ||
                        (step.prepend == PrependScheme::kFirst && piece.at_start);
    if (wanted && !piece.continues && !text.starts_with(step.replacement))
      text.insert(0, step.replacement);
    piece.text = arena.emplace_back(std::move(text));
  }
  return piece;
}

}  // namespace

std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  out.reserve(text.size());
  size_t pos = 0;
  for (;;) {
    const size_t at = from.empty() ? std::string_view::npos : text.find(from, pos);
    out.append(text.substr(pos, at - pos));
    if (at == std::string_view::npos) return out;
    out.append(to);
    pos = at + from.size();
  }
}

std::vector<Piece> PreTokenize(const std::vector<PreStep>& steps, Piece text,
                               std::deque<std::string>& arena) {
  std::vector<Piece> pieces;
  if (!text.text.empty()) pieces.push_back(text);
  for (const PreStep& step : steps) {
    std::vector<Piece> next;
    for (Piece piece : pieces) {
      piece = Change(step, piece, arena);
      if (!step.split) {
        next.push_back(piece);
        continue;
      }
      for (const Range& range : SplitRanges(step, piece.text)) {
        next.push_back({piece.text.substr(range.begin, range.end - range.begin),
                        piece.at_start && range.begin == 0, piece.continues && range.begin == 0});
      }
    }
    pieces = std::move(next);
  }
  return pieces;
}

}  // namespace nibble::engine::tokenizer

// The shapes a row may have, and what of its text is learned.
//
// Pure; a RowReader is used by one thread.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/chat_template.h"

namespace nibble::engine {

enum class RowFormat { kMessages, kShareGpt, kAlpaca, kCompletion, kText };
std::string_view RowFormatName(RowFormat format);
std::optional<RowFormat> RowFormatFromName(std::string_view name);  // none for "auto"

// A row before it meets the tokenizer: pieces of text in order.
struct ParsedRow {
  std::vector<ChatTurn> turns;    // messages and sharegpt; the pieces come from the template
  std::vector<TextPiece> pieces;  // the others
};

// What is wrong with a row; path is relative to it, e.g. ".messages[0].role".
struct RowProblem {
  std::string path;
  std::string what;
};

class RowReader {
 public:
  // No format: the first row decides.
  explicit RowReader(std::optional<RowFormat> format, bool train_on_inputs);
  ~RowReader();
  RowReader(const RowReader&) = delete;
  RowReader& operator=(const RowReader&) = delete;

  // The row's text parsed into `row`, or what is wrong with it.
  std::optional<RowProblem> Read(std::string_view text, ParsedRow& row);
  // The format, once it is known.
  std::optional<RowFormat> format() const { return format_; }

 private:
  struct Parser;
  std::unique_ptr<Parser> parser_;
  std::optional<RowFormat> format_;
  const bool train_on_inputs_;
};

}  // namespace nibble::engine

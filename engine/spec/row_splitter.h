// Cuts a data set into rows: lines of JSON, or the elements of one JSON array. A push to the server and the
// reader of the engine both go by it, so that they see the same rows.
//
// Streaming and bounded: it holds at most one row, and refuses one longer than kMaxRowBytes as soon as it
// gets that long, whatever follows. It only looks at brackets and strings; whether a row is JSON is for the
// caller. Pure; used by one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"

namespace nibble::spec {

class RowSplitter {
 public:
  // `row` counts from 0; blank lines are skipped and not counted. Blanks around a row are not in `text`. An
  // error is what Feed or Finish then returns.
  using OnRow = std::function<absl::Status(int64_t row, std::string_view text)>;

  // `label` names the rows in errors: "rows", or "eval_rows".
  RowSplitter(std::string label, OnRow on_row) : label_(std::move(label)), on_row_(std::move(on_row)) {}

  // The next bytes, in pieces of any size. After an error nothing more may be fed.
  absl::Status Feed(std::string_view data);
  absl::Status Finish();
  int64_t rows() const { return rows_; }
  // Of the file, from 1, where the row begins that on_row is called with.
  int64_t line() const { return row_line_; }

 private:
  enum class Mode { kStart, kLines, kArray, kArrayDone };

  std::string_view Begin(std::string_view data);
  absl::Status FeedLines(std::string_view data);
  absl::Status FeedArray(std::string_view data);
  absl::Status EndElement(char c);
  absl::Status Append(std::string_view part);
  absl::Status Emit();
  absl::Status Broken(std::string_view what) const;

  const std::string label_;
  const OnRow on_row_;
  Mode mode_ = Mode::kStart;
  size_t mark_bytes_ = 0;  // of a byte order mark, at the very beginning
  bool started_ = false;
  bool in_string_ = false;
  bool escaped_ = false;
  bool after_comma_ = false;
  int64_t depth_ = 0;  // of brackets inside an element
  int64_t rows_ = 0;
  int64_t line_ = 1;  // of the next byte
  int64_t row_line_ = 1;
  std::string row_;
};

}  // namespace nibble::spec

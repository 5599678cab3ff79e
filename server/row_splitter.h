// Cuts a stream of bytes into rows: lines of JSON, or the elements of one JSON array.
//
// Streaming and bounded: it holds at most one row, and refuses a row longer than spec::kMaxRowBytes as soon
// as it gets that long, whatever follows. It only looks at brackets and strings; whether a row is JSON is
// for the caller. Used by one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace nibble::server {

class RowSplitter {
 public:
  // `row` counts from 0; blank lines are skipped and not counted. False stops: Feed then ignores the rest.
  using OnRow = std::function<bool(int64_t row, std::string_view text)>;
  explicit RowSplitter(OnRow on_row) : on_row_(std::move(on_row)) {}

  absl::Status Feed(std::string_view data);
  absl::Status Finish();
  int64_t rows() const { return rows_; }
  bool stopped() const { return stopped_; }

 private:
  enum class Mode { kUndecided, kLines, kArray, kArrayDone };

  absl::Status FeedLines(std::string_view data);
  absl::Status FeedArray(std::string_view data);
  absl::Status ArrayByte(char c);
  absl::Status TooLong() const;
  absl::Status NotAnArray(std::string_view what) const;
  absl::Status EmitRow();

  const OnRow on_row_;
  Mode mode_ = Mode::kUndecided;
  bool stopped_ = false;
  bool expect_element_ = false;  // in an array: after a comma
  bool in_string_ = false;
  bool escaped_ = false;
  int32_t depth_ = 0;            // of brackets inside the element
  int64_t rows_ = 0;
  std::string row_;
};

}  // namespace nibble::server

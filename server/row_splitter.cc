#include "server/row_splitter.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "engine/spec/row_keys.h"

namespace nibble::server {
namespace {

bool IsSpace(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

std::string_view Trim(std::string_view text) {
  while (!text.empty() && IsSpace(text.front())) text.remove_prefix(1);
  while (!text.empty() && IsSpace(text.back())) text.remove_suffix(1);
  return text;
}

}  // namespace

absl::Status RowSplitter::TooLong() const {
  return Error::Field(Reason::kRequestTooLarge, absl::StrCat("rows[", rows_, "]"),
                      absl::StrCat("is longer than ", spec::kMaxRowBytes,
                                   " bytes; split it, or put one example on each line"));
}

absl::Status RowSplitter::NotAnArray(std::string_view what) const {
  return Error::Field(Reason::kDatasetSchemaMismatch, absl::StrCat("rows[", rows_, "]"),
                      absl::StrCat(absl::string_view(what.data(), what.size()),
                                   "; a file that begins with '[' must be one JSON array of objects"));
}

absl::Status RowSplitter::EmitRow() {
  const std::string_view row = Trim(row_);
  if (!row.empty()) {
    if (rows_ >= spec::kMaxRows) {
      return Error(Reason::kRequestTooLarge,
                   absl::StrCat("the data set has more than ", spec::kMaxRows, " rows; split it"));
    }
    if (!on_row_(rows_, row)) stopped_ = true;
    ++rows_;
  }
  row_.clear();
  return absl::OkStatus();
}

absl::Status RowSplitter::Feed(std::string_view data) {
  if (mode_ == Mode::kUndecided) {
    row_.append(data.substr(0, 16));
    std::string_view head = row_;
    // A byte order mark is no part of JSON, but editors write it.
    if (head.starts_with("\xEF\xBB\xBF")) head.remove_prefix(3);
    while (!head.empty() && IsSpace(head.front())) head.remove_prefix(1);
    if (head.empty() || (head.size() < 3 && head.front() == '\xEF')) {
      // Only blanks so far, perhaps megabytes of them: keep none.
      if (head.empty() && row_.size() > 3) row_.clear();
      return data.size() > 16 ? Feed(data.substr(16)) : absl::OkStatus();
    }
    mode_ = head.front() == '[' ? Mode::kArray : Mode::kLines;
    const std::string begin(mode_ == Mode::kArray ? head.substr(1) : head);
    row_.clear();
    RETURN_IF_ERROR(mode_ == Mode::kArray ? FeedArray(begin) : FeedLines(begin));
    data.remove_prefix(std::min<size_t>(16, data.size()));
  }
  if (stopped_) return absl::OkStatus();
  return mode_ == Mode::kLines ? FeedLines(data) : FeedArray(data);
}

absl::Status RowSplitter::FeedLines(std::string_view data) {
  while (!data.empty() && !stopped_) {
    const size_t end = data.find('\n');
    const std::string_view part = data.substr(0, end);
    if (static_cast<int64_t>(row_.size() + part.size()) > spec::kMaxRowBytes) return TooLong();
    row_.append(part);
    if (end == std::string_view::npos) return absl::OkStatus();
    RETURN_IF_ERROR(EmitRow());
    data.remove_prefix(end + 1);
  }
  return absl::OkStatus();
}

absl::Status RowSplitter::FeedArray(std::string_view data) {
  for (const char c : data) {
    if (stopped_) break;
    RETURN_IF_ERROR(ArrayByte(c));
  }
  return absl::OkStatus();
}

absl::Status RowSplitter::ArrayByte(char c) {
  if (mode_ == Mode::kArrayDone) {
    return IsSpace(c) ? absl::OkStatus() : NotAnArray("something follows the closing ']'");
  }
  if (!in_string_ && depth_ == 0) {
    if (c == ',' || c == ']') {
      const bool blank = Trim(row_).empty();
      if (blank && (c == ',' || expect_element_)) return NotAnArray("an element is missing");
      RETURN_IF_ERROR(EmitRow());
      expect_element_ = c == ',';
      if (c == ']') mode_ = Mode::kArrayDone;
      return absl::OkStatus();
    }
    if (row_.empty() && IsSpace(c)) return absl::OkStatus();
  }
  if (static_cast<int64_t>(row_.size()) >= spec::kMaxRowBytes) return TooLong();
  row_ += c;
  if (in_string_) {
    if (escaped_) {
      escaped_ = false;
    } else if (c == '\\') {
      escaped_ = true;
    } else if (c == '"') {
      in_string_ = false;
    }
  } else if (c == '"') {
    in_string_ = true;
  } else if (c == '{' || c == '[') {
    ++depth_;
  } else if (c == '}' || c == ']') {
    --depth_;
  }
  return absl::OkStatus();
}

absl::Status RowSplitter::Finish() {
  if (stopped_) return absl::OkStatus();
  if (mode_ == Mode::kArray) return NotAnArray("the file ends before the closing ']'");
  return mode_ == Mode::kLines ? EmitRow() : absl::OkStatus();
}

}  // namespace nibble::server

#include "engine/spec/row_splitter.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "engine/spec/row_keys.h"

namespace nibble::spec {
namespace {

// No part of JSON, but editors write it.
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

bool IsBlank(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

std::string_view Trimmed(std::string_view text) {
  while (!text.empty() && IsBlank(text.front())) text.remove_prefix(1);
  while (!text.empty() && IsBlank(text.back())) text.remove_suffix(1);
  return text;
}

}  // namespace

// Past the byte order mark and blanks, where the first character says which of the two it is.
std::string_view RowSplitter::Begin(std::string_view data) {
  while (!data.empty() && mode_ == Mode::kStart) {
    const char c = data.front();
    const bool mark = !started_ && mark_bytes_ < kByteOrderMark.size() && c == kByteOrderMark[mark_bytes_];
    if (mark) {
      ++mark_bytes_;
    } else {
      // Part of a mark is the beginning of a row that is no JSON.
      if (mark_bytes_ < kByteOrderMark.size()) row_ = kByteOrderMark.substr(0, mark_bytes_);
      started_ = true;
      mark_bytes_ = kByteOrderMark.size();
      if (!row_.empty() || !IsBlank(c)) mode_ = row_.empty() && c == '[' ? Mode::kArray : Mode::kLines;
      if (mode_ == Mode::kLines) return data;
      line_ += c == '\n';
    }
    data.remove_prefix(1);
  }
  return data;
}

absl::Status RowSplitter::Feed(std::string_view data) {
  if (mode_ == Mode::kStart) data = Begin(data);
  if (mode_ == Mode::kStart) return absl::OkStatus();
  return mode_ == Mode::kLines ? FeedLines(data) : FeedArray(data);
}

absl::Status RowSplitter::Finish() {
  if (mode_ == Mode::kArray) return Broken("the array is not closed; the file is cut short");
  if (mode_ == Mode::kStart && !started_ && mark_bytes_ < kByteOrderMark.size()) {
    row_ = kByteOrderMark.substr(0, mark_bytes_);
  }
  return Emit();
}

absl::Status RowSplitter::FeedLines(std::string_view data) {
  while (!data.empty()) {
    const size_t end = std::min(data.find('\n'), data.size());
    RETURN_IF_ERROR(Append(data.substr(0, end)));
    if (end == data.size()) break;
    RETURN_IF_ERROR(Emit());
    ++line_;
    data.remove_prefix(end + 1);
  }
  return absl::OkStatus();
}

absl::Status RowSplitter::FeedArray(std::string_view data) {
  size_t begin = 0;  // of the part of this piece that belongs to the row
  for (size_t i = 0; i < data.size(); ++i) {
    const char c = data[i];
    if (mode_ == Mode::kArrayDone) {
      if (!IsBlank(c)) return Broken("something follows the end of the array");
      begin = i + 1;
    } else if (in_string_) {
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
    } else if (depth_ > 0 && (c == '}' || c == ']')) {
      --depth_;
    } else if (depth_ == 0 && (c == ',' || c == ']')) {
      RETURN_IF_ERROR(Append(data.substr(begin, i - begin)));
      RETURN_IF_ERROR(EndElement(c));
      begin = i + 1;
    }
  }
  return Append(data.substr(begin));
}

absl::Status RowSplitter::EndElement(char c) {
  const bool blank = Trimmed(row_).empty();
  if (blank && (c == ',' || after_comma_)) return Broken("an element of the array is missing");
  after_comma_ = c == ',';
  if (c == ']') mode_ = Mode::kArrayDone;
  return Emit();
}

absl::Status RowSplitter::Append(std::string_view part) {
  if (row_.empty()) {  // blanks before a row may be megabytes of them
    for (; !part.empty() && IsBlank(part.front()); part.remove_prefix(1))
      line_ += part.front() == '\n';
    row_line_ = line_;
  }
  line_ += std::count(part.begin(), part.end(), '\n');
  if (static_cast<int64_t>(row_.size() + part.size()) > kMaxRowBytes) {
    return Error::Field(Reason::kRequestTooLarge, absl::StrCat(label_, "[", rows_, "]"),
                        absl::StrCat("is longer than ", kMaxRowBytes,
                                     " bytes; split it, or put one example on each line"));
  }
  row_.append(part);
  return absl::OkStatus();
}

absl::Status RowSplitter::Emit() {
  const std::string_view row = Trimmed(row_);
  if (!row.empty()) {
    if (rows_ >= kMaxRows) {
      return Error(Reason::kRequestTooLarge,
                   absl::StrCat("the data set has more than ", kMaxRows, " rows; split it"));
    }
    RETURN_IF_ERROR(on_row_(rows_++, row));
  }
  row_.clear();
  return absl::OkStatus();
}

absl::Status RowSplitter::Broken(std::string_view what) const {
  return Error::Field(Reason::kDatasetSchemaMismatch, absl::StrCat(label_, "[", rows_, "]"),
                      absl::StrCat("cannot be read: ", absl::string_view(what.data(), what.size()),
                                   "; a file that begins with '[' must be one JSON array of objects"));
}

}  // namespace nibble::spec

#include "engine/dataset_rows.h"

#include <errno.h>

#include <algorithm>
#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "engine/spec/row_keys.h"
#include "engine/text.h"

namespace nibble::engine {
namespace {

constexpr size_t kChunkBytes = 1 << 18;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

bool IsBlank(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

class Splitter {
 public:
  Splitter(std::string_view label,
           const std::function<absl::Status(int64_t, std::string_view)>& on_row)
      : label_(label), on_row_(on_row) {}

  absl::Status Feed(std::string_view data) {
    for (size_t i = 0; i < data.size() && mode_ == Mode::kStart; ++i) {
      if (IsBlank(data[i])) continue;
      mode_ = data[i] == '[' ? Mode::kArray : Mode::kLines;
      data.remove_prefix(mode_ == Mode::kArray ? i + 1 : i);
    }
    if (mode_ == Mode::kStart) return absl::OkStatus();
    return mode_ == Mode::kLines ? FeedLines(data) : FeedArray(data);
  }

  absl::Status Finish() {
    if (mode_ == Mode::kArray) return Broken("the array is not closed; the file is cut short");
    return Emit();
  }

 private:
  enum class Mode { kStart, kLines, kArray, kArrayDone };

  absl::Status FeedLines(std::string_view data) {
    while (!data.empty()) {
      const size_t end = std::min(data.find('\n'), data.size());
      RETURN_IF_ERROR(Append(data.substr(0, end)));
      if (end == data.size()) break;
      RETURN_IF_ERROR(Emit());
      data.remove_prefix(end + 1);
    }
    return absl::OkStatus();
  }

  absl::Status FeedArray(std::string_view data) {
    size_t begin = 0;  // of the part of this chunk that belongs to the row
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

  absl::Status EndElement(char c) {
    const bool blank = std::all_of(row_.begin(), row_.end(), IsBlank);
    if (blank && (c == ',' || after_comma_)) return Broken("an element of the array is missing");
    after_comma_ = c == ',';
    if (c == ']') mode_ = Mode::kArrayDone;
    return Emit();
  }

  absl::Status Append(std::string_view part) {
    if (static_cast<int64_t>(row_.size() + part.size()) > spec::kMaxRowBytes) {
      return Error::Field(
          Reason::kRequestTooLarge, absl::StrCat(label_, "[", rows_, "]"),
          absl::StrCat("is longer than ", spec::kMaxRowBytes, " bytes; split it into several rows"));
    }
    row_.append(part);
    return absl::OkStatus();
  }

  absl::Status Emit() {
    if (std::all_of(row_.begin(), row_.end(), IsBlank)) {
      row_.clear();
      return absl::OkStatus();
    }
    if (rows_ >= spec::kMaxRows) {
      return Error(Reason::kRequestTooLarge,
                   absl::StrCat("the data set has more than ", spec::kMaxRows, " rows"));
    }
    RETURN_IF_ERROR(on_row_(rows_++, row_));
    row_.clear();
    return absl::OkStatus();
  }

  absl::Status Broken(std::string_view what) const {
    return Error::Field(Reason::kDatasetSchemaMismatch, absl::StrCat(label_, "[", rows_, "]"),
                        absl::StrCat("cannot be read: ", View(what)));
  }

  const std::string label_;
  const std::function<absl::Status(int64_t, std::string_view)>& on_row_;
  Mode mode_ = Mode::kStart;
  bool in_string_ = false;
  bool escaped_ = false;
  bool after_comma_ = false;
  int64_t depth_ = 0;
  int64_t rows_ = 0;
  std::string row_;
};

}  // namespace

absl::Status ForEachRow(const std::string& path, std::string_view label,
                        const std::function<absl::Status(int64_t, std::string_view)>& on_row) {
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rbe"),
                                                       &std::fclose);
  if (file == nullptr) {
    if (errno == ENOENT) {
      return Error(Reason::kDatasetNotFound, absl::StrCat("there is no data set file ", path));
    }
    return ErrnoStatus(errno, absl::StrCat("open ", path));
  }
  Splitter splitter(label, on_row);
  std::string chunk(kChunkBytes, '\0');
  bool first = true;
  for (;;) {
    const size_t size = std::fread(chunk.data(), 1, chunk.size(), file.get());
    if (size == 0) break;
    std::string_view data(chunk.data(), size);
    if (first && data.starts_with(kByteOrderMark)) data.remove_prefix(kByteOrderMark.size());
    first = false;
    RETURN_IF_ERROR(splitter.Feed(data));
  }
  if (std::ferror(file.get())) return ErrnoStatus(errno, absl::StrCat("read ", path));
  return splitter.Finish();
}

}  // namespace nibble::engine

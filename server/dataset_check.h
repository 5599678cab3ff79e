// What the server checks of a data set by itself: that every row is JSON of one known shape.
//
// No tokenizer: tokens, masks and truncation are counted by a CHECK attempt on a worker. Streaming and
// bounded (see engine/spec/row_splitter.h; nesting at most 32). Bad rows are reported by path, counted from
// 0, the first 100 of them and the total. Messages never quote the data. Used by one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/error.h"
#include "engine/spec/row_splitter.h"

namespace nibble::server {

struct DatasetFacts {
  int64_t rows = 0;
  std::string format;  // messages, sharegpt, alpaca, completion, text; of the first row
  std::vector<std::string> formats;  // whose keys every row has
};

class DatasetChecker {
 public:
  DatasetChecker();
  // An error means that reading on is pointless.
  absl::Status Feed(std::string_view data);
  absl::StatusOr<DatasetFacts> Finish();
  int64_t bad_rows() const { return bad_rows_; }

 private:
  void Row(int64_t row, std::string_view text);

  spec::RowSplitter splitter_;
  DatasetFacts facts_;
  std::vector<FieldViolation> violations_;
  int64_t bad_rows_ = 0;
  uint32_t formats_ = ~uint32_t{0};  // those of the rows so far, by bit
};

// Reads with `read(offset, max_bytes)` until it returns nothing.
using ReadBytes = std::function<absl::StatusOr<std::string>(int64_t offset, int64_t max_bytes)>;
absl::StatusOr<DatasetFacts> CheckDataset(const ReadBytes& read);
// The first `count` rows as they stand there.
absl::StatusOr<std::vector<std::string>> FirstRows(const ReadBytes& read, int64_t count);

}  // namespace nibble::server

// What is in a data set, in tokens: the answer of a CHECK and part of the `plan` line of an
// attempt.
//
// A value. JSON and text forms hold the same figures.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nibble::engine {

// Rows left out for one reason, with the numbers of the first few (from 0, as in rows[12]).
struct RejectedRows {
  std::string reason;  // "too_long", "nothing_to_learn", "empty"
  int64_t rows = 0;
  std::vector<int64_t> first_rows;  // at most 10
};

// One row as the model will see it, in pieces: trained or only read.
struct ReportSample {
  struct Piece {
    std::string text;
    bool trained = false;
  };
  int64_t row = 0;
  int64_t tokens = 0;
  int64_t trained_tokens = 0;
  std::vector<Piece> pieces;
};

struct LengthStats {  // tokens per usable row
  int64_t min = 0;
  int64_t p5 = 0;
  int64_t p50 = 0;
  int64_t p95 = 0;
  int64_t max = 0;
  double mean = 0;
};

struct DataReport {
  std::string format;  // the detected or named one
  int64_t rows = 0;
  int64_t usable_rows = 0;
  int64_t train_rows = 0;
  int64_t eval_rows = 0;
  std::vector<RejectedRows> rejected;
  int64_t tokens = 0;          // of usable rows
  int64_t trained_tokens = 0;  // those with a label
  int64_t truncated_rows = 0;
  int64_t truncated_tokens = 0;  // what truncation cut off
  int64_t duplicate_rows = 0;    // equal token for token to an earlier one
  int64_t rows_without_eos = 0;  // nothing in them teaches the model to stop
  LengthStats length;
  int64_t steps_packed = 0;    // optimizer steps of the whole job with packing
  int64_t steps_unpacked = 0;  // and without
  double fill_packed = 0;      // share of a full batch that is tokens
  double fill_unpacked = 0;
  std::vector<std::string> warnings;
  std::vector<ReportSample> samples;  // at most 3
};

std::string DataReportToJson(const DataReport& report);
// Without samples, and at most 8 KiB: fits in a line of the engine protocol.
std::string DataReportToShortJson(const DataReport& report);
std::string DataReportToText(const DataReport& report);

}  // namespace nibble::engine

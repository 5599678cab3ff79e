#include "engine/data/data_report.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace nibble::engine {
namespace {

using nlohmann::json;

constexpr size_t kShortWarnings = 8;
constexpr size_t kShortWarningBytes = 500;

json ToJson(const DataReport& r) {
  json rejected = json::array();
  for (const RejectedRows& rows : r.rejected) {
    rejected.push_back(
        {{"reason", rows.reason}, {"rows", rows.rows}, {"first_rows", rows.first_rows}});
  }
  return {{"format", r.format},
          {"rows", r.rows},
          {"usable_rows", r.usable_rows},
          {"train_rows", r.train_rows},
          {"eval_rows", r.eval_rows},
          {"rejected", rejected},
          {"tokens", r.tokens},
          {"trained_tokens", r.trained_tokens},
          {"truncated_rows", r.truncated_rows},
          {"truncated_tokens", r.truncated_tokens},
          {"duplicate_rows", r.duplicate_rows},
          {"rows_without_eos", r.rows_without_eos},
          {"length",
           {{"min", r.length.min},
            {"p5", r.length.p5},
            {"p50", r.length.p50},
            {"p95", r.length.p95},
            {"max", r.length.max},
            {"mean", r.length.mean}}},
          {"steps_packed", r.steps_packed},
          {"steps_unpacked", r.steps_unpacked},
          {"fill_packed", r.fill_packed},
          {"fill_unpacked", r.fill_unpacked},
          {"warnings", r.warnings}};
}

std::string Dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace

std::string DataReportToJson(const DataReport& report) {
  json value = ToJson(report);
  value["samples"] = json::array();
  for (const ReportSample& sample : report.samples) {
    json pieces = json::array();
    for (const auto& piece : sample.pieces) {
      pieces.push_back({{"text", piece.text}, {"trained", piece.trained}});
    }
    value["samples"].push_back({{"row", sample.row},
                                {"tokens", sample.tokens},
                                {"trained_tokens", sample.trained_tokens},
                                {"pieces", pieces}});
  }
  return Dump(value);
}

std::string DataReportToShortJson(const DataReport& report) {
  DataReport shortened = report;
  if (shortened.warnings.size() > kShortWarnings) shortened.warnings.resize(kShortWarnings);
  for (std::string& warning : shortened.warnings) {
    if (warning.size() > kShortWarningBytes) warning.resize(kShortWarningBytes);
  }
  return Dump(ToJson(shortened));
}

std::string DataReportToText(const DataReport& r) {
  std::string out = absl::StrFormat(
      "%d rows of format %s: %d usable (%d to train, %d to evaluate)\n"
      "%d tokens, %d of them trained (%.1f %%)\n"
      "tokens per row: min %d, p5 %d, median %d, mean %.1f, p95 %d, max %d\n"
      "optimizer steps: %d packed (%.0f %% full), %d unpacked (%.0f %% full)\n",
      r.rows, r.format, r.usable_rows, r.train_rows, r.eval_rows, r.tokens, r.trained_tokens,
      100.0 * static_cast<double>(r.trained_tokens) /
          static_cast<double>(std::max<int64_t>(r.tokens, 1)),
      r.length.min, r.length.p5, r.length.p50, r.length.mean, r.length.p95, r.length.max,
      r.steps_packed, 100 * r.fill_packed, r.steps_unpacked, 100 * r.fill_unpacked);
  if (r.truncated_rows > 0) {
    absl::StrAppend(&out, r.truncated_rows, " rows truncated, ", r.truncated_tokens,
                    " tokens lost\n");
  }
  if (r.duplicate_rows > 0)
    absl::StrAppend(&out, r.duplicate_rows, " rows repeat an earlier one\n");
  for (const RejectedRows& rows : r.rejected) {
    absl::StrAppend(&out, rows.rows, " rows left out: ", rows.reason, " (first: rows[",
                    rows.first_rows.front(), "])\n");
  }
  for (const std::string& warning : r.warnings) absl::StrAppend(&out, "warning: ", warning, "\n");
  for (const ReportSample& sample : r.samples) {
    absl::StrAppend(&out, "\nrows[", sample.row, "], ", sample.tokens, " tokens, ",
                    sample.trained_tokens, " trained; what is learned stands in brackets:\n");
    for (const auto& piece : sample.pieces) {
      absl::StrAppend(&out, piece.trained ? "\u27E6" : "", piece.text,
                      piece.trained ? "\u27E7" : "");
    }
    out += '\n';
  }
  return out;
}

}  // namespace nibble::engine

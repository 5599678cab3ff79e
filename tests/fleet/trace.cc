// Readers of two public traces' formats.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <map>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "tests/fleet/workload.h"

namespace nibble::fleet {
namespace {

using Row = std::map<absl::string_view, absl::string_view>;

absl::Status BadLine(size_t number, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("line ", number, " of the trace: ", what));
}

// Rows by the names in the first line; no quoting, which neither trace uses.
absl::Status ForEachRow(std::string_view csv, const std::vector<absl::string_view>& needed,
                        const std::function<absl::Status(size_t, const Row&)>& use) {
  const absl::string_view text(csv.data(), csv.size());
  std::vector<absl::string_view> header;
  size_t number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.empty()) continue;
    const std::vector<absl::string_view> cells = absl::StrSplit(line, ',');
    if (header.empty()) {
      header = cells;
      for (const absl::string_view name : needed) {
        if (std::find(header.begin(), header.end(), name) == header.end())
          return BadLine(number, absl::StrCat("there is no column ", name));
      }
      continue;
    }
    if (cells.size() != header.size()) {
      return BadLine(number,
                     absl::StrCat("has ", cells.size(), " cells, the header ", header.size()));
    }
    Row row;
    for (size_t i = 0; i < cells.size(); ++i) row[header[i]] = cells[i];
    RETURN_IF_ERROR(use(number, row));
  }
  return absl::OkStatus();
}

absl::StatusOr<double> Cell(size_t number, const Row& row, absl::string_view name) {
  double value = 0;
  if (!absl::SimpleAtod(row.at(name), &value) || !(value >= 0) || value > 1e12)
    return BadLine(number, absl::StrCat(name, " is '", row.at(name), "', not a number"));
  return value;
}

// Days since 1970-01-01 of a date of the Gregorian calendar (proleptic; the era arithmetic of
// Howard Hinnant's "chrono-compatible low-level date algorithms").
int64_t DaysOf(int64_t year, int64_t month, int64_t day) {
  year -= month <= 2;
  const int64_t era = (year >= 0 ? year : year - 399) / 400;
  const int64_t of_era = year - era * 400;
  const int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
  return era * 146'097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719'468;
}

absl::StatusOr<double> TimeOf(size_t number, absl::string_view text) {
  int year = 0, month = 0, day = 0, hour = 0, minute = 0, second = 0;
  if (std::sscanf(std::string(text).c_str(), "%d-%d-%d %d:%d:%d", &year, &month, &day, &hour,
                  &minute, &second) != 6) {
    return BadLine(number, absl::StrCat("'", text, "' is no time"));
  }
  return static_cast<double>(DaysOf(year, month, day) * 86'400 + hour * 3'600 + minute * 60 +
                             second);
}

void Append(double devices, const TraceJob& job, std::vector<TraceJob>& jobs) {
  for (int i = 0; i < static_cast<int>(std::min(devices, 64.0)); ++i) jobs.push_back(job);
}

void SortByArrival(std::vector<TraceJob>& jobs) {
  std::stable_sort(jobs.begin(), jobs.end(),
                   [](const TraceJob& a, const TraceJob& b) { return a.arrive_s < b.arrive_s; });
}

}  // namespace

absl::StatusOr<std::vector<TraceJob>> ParsePhilly(std::string_view csv) {
  std::vector<TraceJob> jobs;
  RETURN_IF_ERROR(ForEachRow(csv, {"timestamp", "duration", "num_gpus", "cluster"},
                             [&](size_t number, const Row& row) -> absl::Status {
                               TraceJob job;
                               ASSIGN_OR_RETURN(job.arrive_s, TimeOf(number, row.at("timestamp")));
                               ASSIGN_OR_RETURN(job.duration_s, Cell(number, row, "duration"));
                               ASSIGN_OR_RETURN(const double gpus, Cell(number, row, "num_gpus"));
                               job.tenant = std::string(row.at("cluster"));
                               if (job.duration_s > 0) Append(gpus, job, jobs);
                               return absl::OkStatus();
                             }));
  SortByArrival(jobs);
  return jobs;
}

absl::StatusOr<std::vector<TraceJob>> ParseAlibaba2023(std::string_view csv) {
  std::vector<TraceJob> jobs;
  RETURN_IF_ERROR(
      ForEachRow(csv, {"num_gpu", "gpu_milli", "creation_time", "deletion_time", "scheduled_time"},
                 [&](size_t number, const Row& row) -> absl::Status {
                   if (row.at("scheduled_time").empty() || row.at("deletion_time").empty())
                     return absl::OkStatus();
                   TraceJob job;
                   ASSIGN_OR_RETURN(job.arrive_s, Cell(number, row, "creation_time"));
                   ASSIGN_OR_RETURN(const double begin_s, Cell(number, row, "scheduled_time"));
                   ASSIGN_OR_RETURN(const double end_s, Cell(number, row, "deletion_time"));
                   ASSIGN_OR_RETURN(const double gpus, Cell(number, row, "num_gpu"));
                   ASSIGN_OR_RETURN(const double milli, Cell(number, row, "gpu_milli"));
                   job.duration_s = end_s - begin_s;
                   job.busy_share = milli > 0 ? std::min(1.0, milli / 1000) : 1.0;
                   if (job.duration_s > 0) Append(gpus, job, jobs);
                   return absl::OkStatus();
                 }));
  SortByArrival(jobs);
  return jobs;
}

}  // namespace nibble::fleet

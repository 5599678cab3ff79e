#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "server/store/event_rows.h"
#include "server/store/history.h"
#include "server/store/sqlite.h"

namespace nibble::store {
namespace {

class SqliteHistory : public History {
 public:
  SqliteHistory(Database state, Database metrics)
      : state_(std::move(state)), metrics_(std::move(metrics)) {}

  absl::StatusOr<std::vector<core::EventRecord>> Events(std::string_view job_id,
                                                        int64_t after_sequence, int64_t last_sequence,
                                                        int64_t limit) override {
    std::lock_guard lock(state_mutex_);
    ASSIGN_OR_RETURN(std::vector<core::EventRecord> events,
                     ReadJobEvents(state_, job_id, after_sequence, limit));
    RETURN_IF_ERROR(CheckNoGap(job_id, after_sequence, last_sequence, events));
    return events;
  }

  absl::StatusOr<std::vector<core::EventRecord>> AllEvents(int64_t after_number,
                                                           int64_t limit) override {
    std::lock_guard lock(state_mutex_);
    return ReadAllEvents(state_, after_number, limit);
  }

  absl::StatusOr<std::vector<StepMetric>> Metrics(std::string_view job_id, int64_t after_step,
                                                  int64_t until_step, int64_t max_points) override {
    std::lock_guard lock(metrics_mutex_);
    return ReadMetrics(metrics_, job_id, after_step, until_step, max_points);
  }

 private:
  std::mutex state_mutex_;
  Database state_;
  std::mutex metrics_mutex_;
  Database metrics_;
};

}  // namespace

absl::Status CheckNoGap(std::string_view job_id, int64_t after_sequence, int64_t last_sequence,
                        const std::vector<core::EventRecord>& events) {
  if (after_sequence <= 0) return absl::OkStatus();  // from 0 on: whatever is kept
  const int64_t first = events.empty() ? last_sequence + 1 : events.front().sequence;
  if (first <= after_sequence + 1) return absl::OkStatus();
  return Error(Reason::kSequenceExpired,
               absl::StrCat("events of jobs/", std::string(job_id), " before ", first,
                            " are no longer kept; begin at 0 with a snapshot"));
}

absl::StatusOr<std::unique_ptr<History>> OpenSqliteHistory(const std::string& data_dir) {
  ASSIGN_OR_RETURN(Database state,
                   Database::Open(JoinPath(data_dir, "state.db"), Database::Mode::kReadOnly));
  ASSIGN_OR_RETURN(Database metrics,
                   Database::Open(JoinPath(data_dir, "metrics.db"), Database::Mode::kReadOnly));
  return std::make_unique<SqliteHistory>(std::move(state), std::move(metrics));
}

}  // namespace nibble::store

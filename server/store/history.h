// Read-only questions about the past, for the RPC layer: events, metrics. Its own connections,
// opened read-only, so that a long read never holds up the writer. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/core/event_record.h"
#include "server/store/store.h"

namespace nibble::store {

class History {
 public:
  virtual ~History() = default;
  // Events of a job with sequence > after, oldest first, at most `limit`. SEQUENCE_EXPIRED when
  // events after `after` have been pruned, unless it is 0. `last_sequence`: what the job had come to when it
  // was looked at, so that it is noticed, too, when all of them have.
  virtual absl::StatusOr<std::vector<core::EventRecord>> Events(std::string_view job_id,
                                                                int64_t after_sequence,
                                                                int64_t last_sequence,
                                                                int64_t limit) = 0;
  // Fleet and job events with number > after: the audit trail.
  virtual absl::StatusOr<std::vector<core::EventRecord>> AllEvents(int64_t after_number,
                                                                   int64_t limit) = 0;
  // As MetricStore::Read.
  virtual absl::StatusOr<std::vector<StepMetric>> Metrics(std::string_view job_id,
                                                          int64_t after_step, int64_t until_step,
                                                          int64_t max_points) = 0;
};

// SEQUENCE_EXPIRED when `events`, read as above, begin too late.
absl::Status CheckNoGap(std::string_view job_id, int64_t after_sequence, int64_t last_sequence,
                        const std::vector<core::EventRecord>& events);

// Over the two database files of a data directory, which must exist.
absl::StatusOr<std::unique_ptr<History>> OpenSqliteHistory(const std::string& data_dir);

}  // namespace nibble::store

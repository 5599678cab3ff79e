// Reading the events table; shared by the store and the history.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/core/event_record.h"
#include "server/store/sqlite.h"
#include "server/store/store.h"

namespace nibble::store {

absl::StatusOr<std::vector<core::EventRecord>> ReadJobEvents(Database& db, std::string_view job_id,
                                                             int64_t after_sequence, int64_t limit);
absl::StatusOr<std::vector<core::EventRecord>> ReadAllEvents(Database& db, int64_t after_number,
                                                             int64_t limit);
// Per step the row of the highest epoch, thinned.
absl::StatusOr<std::vector<StepMetric>> ReadMetrics(Database& db, std::string_view job_id,
                                                    int64_t after_step, int64_t until_step,
                                                    int64_t max_points);

}  // namespace nibble::store

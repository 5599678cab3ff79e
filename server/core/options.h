// What an operator may tune in the core; every interval, so that tests can run in seconds.
//
// A value, fixed for the life of a server process. Durations are microseconds of the monotonic
// clock.
#pragma once

#include <cstdint>
#include <string>

namespace nibble::core {

inline constexpr int64_t kSecondUs = 1'000'000;

struct CoreOptions {
  // Leases. A worker trusts a renewal until lost - margin; lost >= 4 x interval + margin.
  int64_t synchronize_hold_us = 10 * kSecondUs;  // how long an unchanged Synchronize is held
  int64_t lease_suspect_us = 40 * kSecondUs;     // shown as SUSPECT, gets no new work
  int64_t lease_lost_us = 120 * kSecondUs;       // its attempts are LOST
  // A cancelled job whose worker does not let go is CANCELLED anyway after this long.
  int64_t cancel_force_us = 60 * kSecondUs;
  // Infrastructure retries: doubling from min to max.
  int32_t max_infra_retries = 10;
  int64_t backoff_min_us = 5 * kSecondUs;
  int64_t backoff_max_us = 600 * kSecondUs;
  // A job that takes down this many different workers within the window of its start is POISON.
  int32_t poison_workers = 3;
  int64_t poison_window_us = 60 * kSecondUs;
  // From this fault of a job's own turn on it runs without neighbours.
  int32_t faults_until_alone = 2;
  // Waiting this long is worth one point of priority.
  int64_t aging_us = 600 * kSecondUs;
  int32_t max_attempts_per_device = 8;
  // Engines of different bases would compete for the same threads, so one base at a time by
  // default.
  int32_t max_bases_per_device = 1;
  int32_t max_checks_per_worker = 1;
  // How long (tenant, request_id) is remembered after its job is gone.
  int64_t request_id_ttl_us = 7 * 24 * 3600 * kSecondUs;
  // A blob nobody references is kept at least this long after it was recorded or asked for.
  int64_t blob_pin_us = 24 * 3600 * kSecondUs;
  // Key of the attempt tokens; made once by the edge and kept beside the database.
  std::string token_secret;
};

}  // namespace nibble::core

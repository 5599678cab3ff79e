// What an operator may tune in the core; every interval, so that tests can run in seconds.
//
// A value, fixed for the life of a server process. Durations are microseconds of the monotonic
// clock.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace nibble::core {

inline constexpr int64_t kSecondUs = 1'000'000;

// What a project (tenant) is due. A project that is not named has weight 1 and no quota.
struct ProjectPolicy {
  int32_t weight = 1;        // its share of the fleet under backlog, against the other weights
  int64_t quota_bytes = 0;   // admitted device bytes at one time; 0 = no bound
  int32_t quota_jobs = 0;    // attempts at one time; 0 = no bound
  bool operator==(const ProjectPolicy&) const = default;
};

// The policy of the scheduler. docs/scheduling.md explains each part.
struct SchedulePolicy {
  // Order inside a project: overdue jobs first, then priority, then
  // predicted work left - aging_milli / 1000 x time waited.
  int32_t aging_milli = 50;
  // A job should start within the larger of wait_factor x its predicted duration and
  // wait_floor_us; from half of that on it is overdue.
  int32_t wait_factor = 10;
  int64_t wait_floor_us = 24 * 3600 * kSecondUs;
  // Projects: usage is forgotten over about this time.
  int64_t share_window_us = 1800 * kSecondUs;
  std::map<std::string, ProjectPolicy> projects;
  // Jobs with at most this much predicted work go before the shares of projects, as long as such
  // jobs have no more than brief_milli thousandths of the fleet's time. They count as usage.
  int64_t brief_work_us = 600 * kSecondUs;
  int32_t brief_milli = 50;

  // Placement.
  int32_t max_attempts_per_device = 8;
  // Engines of different bases would compete for the same threads, so one base at a time by
  // default.
  int32_t max_bases_per_device = 1;
  // Of measured shares of a device's time, in thousandths; a job nobody has measured counts as
  // default_load_milli.
  int32_t max_load_milli = 8'000;
  int32_t default_load_milli = 1'000;
  // Weights of the score; each part is in thousandths.
  int32_t overload_weight = 16;
  int32_t fragment_weight = 4;
  int32_t cold_base_weight = 1;
  int32_t slow_weight = 1;
  // Within fragment_weight: of the bytes that typical jobs would leave over in the end, in thousandths.
  int32_t rest_milli = 250;

  // Jobs that wait with a reservation, first in the order first; at most one per device.
  int32_t max_reservations = 8;
  // Jobs looked at in one pass that cannot start: bounds the time of a turn of the control loop.
  int32_t max_passed_over = 1'000;

  // Preemption. Nobody is asked to let go before it has run this long.
  int64_t min_run_us = 600 * kSecondUs;
  int32_t preempt_priority_delta = 1;  // of a higher priority at least this much; 0 = never
  int32_t preempt_work_ratio = 8;      // of a job with this many times less work left; 0 = never
  bool preempt_for_share = true;       // of a project below its share
  // Not when the device is expected to be free this soon anyway.
  int64_t preempt_patience_us = 60 * kSecondUs;
};

struct CoreOptions : SchedulePolicy {
  // Leases. A worker trusts a renewal until lost - margin; lost >= 4 x interval + margin.
  int64_t synchronize_hold_us = 10 * kSecondUs;  // how long an unchanged Synchronize is held
  int64_t lease_suspect_us = 40 * kSecondUs;     // shown as SUSPECT, gets no new work
  int64_t lease_lost_us = 120 * kSecondUs;       // its attempts are LOST
  // A turn of the control loop that begins so long after the one before: the server slept (it was suspended
  // or stopped, a disk hung), and what it did not hear meanwhile is held against nobody. 0 = never.
  int64_t sleep_us = 15 * kSecondUs;
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
  int32_t max_checks_per_worker = 1;
  // How long (tenant, request_id) is remembered after its job is gone.
  int64_t request_id_ttl_us = 7 * 24 * 3600 * kSecondUs;
  // A blob nobody references is kept at least this long after it was recorded or asked for.
  int64_t blob_pin_us = 24 * 3600 * kSecondUs;
  // Key of the attempt tokens; made once by the edge and kept beside the database.
  std::string token_secret;
};

}  // namespace nibble::core

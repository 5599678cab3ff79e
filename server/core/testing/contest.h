// For tests of who gets a device: jobs of a known length, and two that want the same place.
#pragma once

#include <string>

#include "server/core/schedule_sync.h"
#include "server/core/testing/driver.h"

namespace nibble::core::testing {

inline constexpr int64_t kMinuteUs = 60 * kSecondUs;
inline constexpr int64_t kHourUs = 60 * kMinuteUs;

// "" while it waits.
inline std::string WorkerOfJob(const Driver& d, const std::string& id) {
  const Job& job = d.job(id);
  return job.Current() == nullptr ? "" : job.Current()->worker_id;
}

inline bool IsAskedToLetGo(const Driver& d, const std::string& id) {
  return d.job(id).Current() != nullptr && d.job(id).Current()->release_requested;
}

// Of so much work, as long as nothing was measured; steps of 1,000 tokens.
inline CreateJob Lasting(const std::string& id, int64_t work_us, int32_t priority = 0) {
  static const double us_a_step = [] {
    constexpr int64_t kSteps = 1'000'000;
    Driver d;
    CreateJob create = Driver::JobOf("probe");
    create.spec.max_steps = kSteps;
    d.Must(create);
    return static_cast<double>(Predict(d.state(), d.job("probe")).left_us) / kSteps;
  }();
  CreateJob create = Driver::JobOf(id);
  create.spec.max_steps = static_cast<int64_t>(static_cast<double>(work_us) / us_a_step);
  create.priority = priority;
  return create;
}

inline CreateJob Of(const char* project, CreateJob create) {
  create.tenant = project;
  return create;
}

// The worker calls and no longer lists what was cancelled or released.
inline void CallWithout(Driver& d, const std::string& worker, const std::string& job) {
  Synchronize gone = d.SyncOf(worker);
  std::erase_if(gone.attempts, [&](const ListedAttempt& l) { return l.job_id == job; });
  d.Must(gone);
}

// The one place of worker "w1" is taken by `first`, which has run its minimum time when `second` comes. What
// else of the policy should hold is set in the driver's options before.
inline void Compete(Driver& d, const CreateJob& first, const CreateJob& second) {
  d.core().options.max_attempts_per_device = 1;
  d.Must(ServerStart{"timeline-1"});
  d.AddWorker("w1");
  d.Must(first);
  d.Place();
  CHECK(WorkerOfJob(d, first.job_id) == "w1");
  d.Advance(d.core().options.min_run_us + kSecondUs);
  d.Must(Synchronize(d.SyncOf("w1")));
  d.Must(second);
  d.Place();
}

}  // namespace nibble::core::testing

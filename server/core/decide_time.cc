// What nobody asks for: the start of the server, time that passes, and placement: T2, T7, T10, T18.
#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/decide_internal.h"
#include "server/core/schedule.h"

namespace nibble::core {

Answer DecideFleet(Turn& turn, const ServerStart& c) {
  const State& state = turn.state;
  ServerStarted started;
  started.timeline = state.timeline.empty() || c.new_timeline ? c.timeline : state.timeline;
  started.generation = state.generation + 1;
  started.cancel_deadline_us = turn.now.monotonic_us + turn.options().cancel_force_us;
  started.pin_until_us = turn.now.monotonic_us + turn.options().blob_pin_us;
  started.policy = turn.options();
  turn.Emit(started);
  if (c.new_timeline) {
    for (const auto& [worker_id, worker] : state.workers) {
      LoseAttempts(turn, worker_id, "the database was restored");
    }
  }
  return started.timeline;
}

Answer DecideFleet(Turn& turn, const Awake& c) {
  const int64_t least_us = turn.options().sleep_us;
  if (least_us > 0 && c.slept_us >= least_us) turn.Emit(ServerSlept{c.slept_us});
  return "";
}

Answer DecideFleet(Turn& turn, const Tick&) {
  const State& state = turn.state;
  for (const auto& [worker_id, worker] : state.workers) {
    if (worker.lost ||
        HealthOf(worker, turn.options(), turn.now.monotonic_us) != WorkerHealth::kLost)
      continue;
    turn.Emit(WorkerLost{worker_id});
    LoseAttempts(turn, worker_id,
                 absl::StrCat("workers/", worker_id, " has not renewed its lease for ",
                              turn.options().lease_lost_us / kSecondUs, " s"));
  }
  for (const std::string& id : state.cancelling_jobs) {
    const Job& job = state.jobs.at(id);
    if (turn.now.monotonic_us < job.cancel_deadline_us) continue;
    const bool ending =
        std::any_of(turn.events.begin(), turn.events.end(), [&](const Event& event) {
          const auto* e = std::get_if<AttemptEnded>(&event.body);
          return e != nullptr && e->job_id == id;
        });
    if (ending) continue;
    EndAttempt(turn, job, *job.Current(),
               {AttemptState::kCancelled, "cancelled", "its worker did not let go in time"});
  }
  for (const auto& [create_unix_us, key] : state.requests_by_age) {
    if (turn.now.unix_us - create_unix_us < turn.options().request_id_ttl_us) break;
    turn.Emit(RequestExpired{key.first, key.second});
  }
  return "";
}

Answer DecideFleet(Turn& turn, const Place&) {
  const State& state = turn.state;
  if (state.queued_jobs.empty() || state.rollback_suspected) return "";
  Schedule schedule = MakeSchedule(state, turn.now.monotonic_us, turn.core);
  turn.events.reserve(schedule.placements.size());
  for (Placement& placement : schedule.placements) {
    const Job& job = *placement.job;
    const Worker& worker = *placement.worker;
    AttemptAssigned assigned;
    assigned.job_id = job.id;
    assigned.epoch = job.epoch + 1;
    assigned.worker_id = worker.id;
    assigned.incarnation = worker.incarnation;
    assigned.device_id = placement.device_id;
    assigned.plan = std::move(placement.plan);
    assigned.group = std::move(placement.group);
    assigned.run_alone = job.run_alone;
    if (!job.checkpoints.empty()) {
      assigned.resume_epoch = job.checkpoints.back().epoch;
      assigned.resume_step = job.checkpoints.back().step;
    }
    assigned.why = std::move(placement.why);
    turn.Emit(std::move(assigned));
  }
  for (const Preemption& preemption : schedule.preemptions) {
    turn.Emit(AttemptReleaseRequested{preemption.job_id, preemption.epoch, preemption.why});
  }
  for (const std::string& id : schedule.wanting_checks) QueueCheck(turn, state.jobs.at(id));
  return "";
}

}  // namespace nibble::core

#include "server/core/server_times.h"

#include <algorithm>

#include "server/core/schedule_sync.h"
#include "server/core/worker_seen.h"

namespace nibble::core {

void BeginAnew(State* state, const ServerStarted& e, const Now& now) {
  state->timeline = e.timeline;
  state->generation = e.generation;
  state->rollback_suspected = false;
  state->touched.meta = true;
  // Above every revision of the generation before.
  const int64_t revision = e.generation << 32;
  for (auto& [id, worker] : state->workers) {
    worker.renewed_us = now.monotonic_us;
    SeenAtStart(state, &worker, now);
    worker.revision = revision;
    worker.known_revision = 0;
    worker.heard = false;
    state->revised.insert(id);
  }
  for (auto& [id, blob] : state->blobs) blob.pin_until_us = e.pin_until_us;
  // Of jobs that ended under a version that kept them.
  for (auto& [id, job] : state->jobs) {
    if (!IsTerminal(job.state) || job.checkpoints.empty()) continue;
    job.checkpoints.clear();
    state->touched.jobs.insert(id);
  }
  for (auto& [id, job] : state->jobs) {
    // Age survives by the wall clock, but can never become negative by its jumps.
    job.queued_us = now.monotonic_us - std::max<int64_t>(0, now.unix_us - job.queued_unix_us);
    job.not_before_us = 0;
    job.cancel_deadline_us = e.cancel_deadline_us;
    for (auto& [epoch, attempt] : job.attempts) {
      attempt.assign_revision = revision;
      attempt.start_us = 0;
      attempt.seen_us = 0;
    }
  }
  state->board.SetPolicy(e.policy);
  RebuildBoard(state, now.monotonic_us);
}

void PutOff(State* state, const ServerSlept& e, const Now& now) {
  for (auto& [id, worker] : state->workers) {
    if (worker.lost) continue;
    worker.renewed_us = std::min(now.monotonic_us, worker.renewed_us + e.slept_us);
    SyncWorker(state, worker);
  }
  for (const std::string& id : state->cancelling_jobs) state->jobs.at(id).cancel_deadline_us += e.slept_us;
  for (const auto& [worker_id, held] : state->holding) {
    for (const AttemptKey& key : held) {
      Attempt& attempt = state->jobs.at(key.first).attempts.at(key.second);
      if (attempt.start_us > 0) attempt.start_us = std::min(now.monotonic_us, attempt.start_us + e.slept_us);
      attempt.seen_us = 0;  // its speed is measured from here
    }
  }
}

}  // namespace nibble::core

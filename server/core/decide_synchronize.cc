// What a worker's call says: its lease, what it has and has no more, its devices and its disk: T9, T14, T17.
#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "server/core/decide_internal.h"

namespace nibble::core {
namespace {

// A call says of all devices whether they are withdrawn.
void NoteFaults(Turn& turn, const Worker& worker, const Synchronize& c) {
  for (const auto& [id, device] : worker.devices) {
    const auto use = std::find_if(c.devices.begin(), c.devices.end(),
                                  [&id = id](const DeviceUse& u) { return u.device_id == id; });
    const std::string fault = use == c.devices.end() ? "" : use->fault;
    if (fault.empty() == device.fault.empty()) continue;
    if (fault.empty()) {
      turn.Emit(DeviceRestored{worker.id, id});
    } else {
      turn.Emit(DeviceWithdrawn{worker.id, id, fault});
    }
  }
}

void NoteRoom(Turn& turn, const Worker& worker, const std::string& no_room) {
  if (no_room.empty() == worker.no_room.empty()) return;
  if (no_room.empty()) {
    turn.Emit(WorkerHasRoom{worker.id});
  } else {
    turn.Emit(WorkerDiskFull{worker.id, no_room});
  }
}

// What the arrival of a listing says about one attempt that holds bytes.
void Settle(Turn& turn, const Worker& worker, const Synchronize& c, const Attempt& attempt) {
  // One that goes on in memory is listed by its first key until its worker has learned the new one.
  const auto listed =
      std::find_if(c.attempts.begin(), c.attempts.end(), [&](const ListedAttempt& l) {
        return l.job_id == attempt.job_id &&
               (l.epoch == attempt.epoch || l.epoch == attempt.continues_epoch);
      });
  const bool gone = listed == c.attempts.end();
  // An absence counts only once the worker has seen a set that had the attempt in it.
  if (gone && c.known_revision < attempt.assign_revision) return;
  const bool released = !gone && listed->phase == Phase::kReleased;
  if (!gone && !released) return;
  const Job& job = turn.state.jobs.at(attempt.job_id);
  if (attempt.state == AttemptState::kActive) {
    if (job.state == JobState::kCancelling) {
      EndAttempt(turn, job, attempt, {AttemptState::kCancelled, "cancelled", ""});
    } else if (released) {
      return;  // its last report is on the way
    } else if (job.state == JobState::kPausing || attempt.release_requested) {
      Ending ending;
      ending.state = AttemptState::kReleased;
      ending.reason = job.state == JobState::kPausing ? "paused" : attempt.release_reason;
      EndAttempt(turn, job, attempt, ending);
    } else {
      Ending ending;
      ending.reason = std::string(ReasonName(Reason::kWorkerLost));
      ending.message = absl::StrCat("workers/", worker.id, " no longer has it");
      ending.then = Ending::Then::kRetry;
      EndAttempt(turn, job, attempt, ending);
    }
  }
  turn.Emit(AttemptFreed{attempt.job_id, attempt.epoch});
}

// T9: the worker was silent for too long and is back with what it trained, and nobody else has the job yet.
// The bytes it holds become those of the new attempt, so nothing has to be placed.
void Reinstate(Turn& turn, const Worker& worker, const ListedAttempt& listed) {
  const Job* job = turn.state.FindJob(listed.job_id);
  if (job == nullptr || job->state != JobState::kQueued || job->kind != JobKind::kTrain) return;
  const auto it = job->attempts.find(job->epoch);
  if (it == job->attempts.end()) return;
  const Attempt* last = &it->second;
  if (last->state != AttemptState::kLost || !last->holds_bytes) return;
  if (last->worker_id != worker.id || last->incarnation != worker.incarnation) return;
  if (listed.epoch != last->epoch && listed.epoch != last->continues_epoch) return;
  AttemptAssigned assigned;
  assigned.job_id = job->id;
  assigned.epoch = job->epoch + 1;
  assigned.worker_id = worker.id;
  assigned.incarnation = worker.incarnation;
  assigned.device_id = last->device_id;
  assigned.plan = last->plan;
  assigned.group = last->group;
  assigned.run_alone = job->run_alone;
  assigned.continues_epoch = listed.epoch;
  // Should its memory be gone by then, it goes on from there.
  if (!job->checkpoints.empty()) {
    assigned.resume_epoch = job->checkpoints.back().epoch;
    assigned.resume_step = job->checkpoints.back().step;
  }
  turn.Emit(AttemptFreed{job->id, last->epoch});
  turn.Emit(std::move(assigned));
}

}  // namespace

Answer DecideFleet(Turn& turn, const Synchronize& c) {
  const Worker* worker = turn.state.FindWorker(c.worker_id);
  if (worker == nullptr) {
    return Error(Reason::kWorkerNotFound,
                 absl::StrCat("workers/", c.worker_id, " is not registered; register first"))
        .ToStatus();
  }
  if (worker->incarnation != c.incarnation) {
    const auto& past = worker->past_incarnations;
    if (std::find(past.begin(), past.end(), c.incarnation) != past.end()) {
      return Superseded(c.worker_id, c.incarnation);
    }
    return Error(Reason::kWorkerNotFound, absl::StrCat("this process of workers/", c.worker_id,
                                                       " is not registered; register first"))
        .ToStatus();
  }
  if (worker->lost) turn.Emit(WorkerReturned{worker->id});
  turn.Emit(LeaseRenewed{worker->id, c.known_revision, c.attempts, c.devices, c.draining});
  NoteFaults(turn, *worker, c);
  NoteRoom(turn, *worker, c.no_room);
  for (const Attempt* attempt : HeldBy(turn.state, worker->id)) Settle(turn, *worker, c, *attempt);
  if (!c.draining && !worker->draining && !turn.state.rollback_suspected) {
    std::set<std::string> jobs;  // a job once, whatever the listing says
    for (const ListedAttempt& listed : c.attempts) {
      const bool holds = listed.intact && listed.phase != Phase::kReleased;
      if (holds && jobs.insert(listed.job_id).second) Reinstate(turn, *worker, listed);
    }
  }
  if (c.draining) {
    for (const Attempt* attempt : HeldBy(turn.state, worker->id)) {
      const bool ended =
          std::any_of(turn.events.begin(), turn.events.end(), [&](const Event& event) {
            const auto* e = std::get_if<AttemptEnded>(&event.body);
            return e != nullptr && e->job_id == attempt->job_id && e->epoch == attempt->epoch;
          });
      if (ended || attempt->state != AttemptState::kActive || attempt->release_requested) continue;
      turn.Emit(AttemptReleaseRequested{attempt->job_id, attempt->epoch, "its worker goes"});
    }
  }
  return worker->id;
}

}  // namespace nibble::core

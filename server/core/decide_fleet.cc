// Workers, leases, time and placement: T2, T7, T8b, T9, T10.
#include <algorithm>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/id.h"
#include "base/status.h"
#include "server/core/decide_internal.h"
#include "server/core/limits.h"
#include "server/core/schedule.h"

namespace nibble::core {
namespace {

std::vector<const Attempt*> HeldBy(const State& state, const std::string& worker_id) {
  std::vector<const Attempt*> attempts;
  const auto it = state.holding.find(worker_id);
  if (it == state.holding.end()) return attempts;
  for (const AttemptKey& key : it->second) attempts.push_back(state.FindAttempt(key));
  return attempts;
}

void LoseAttempts(Turn& turn, const std::string& worker_id, const std::string& why) {
  for (const Attempt* attempt : HeldBy(turn.state, worker_id)) {
    if (attempt->state != AttemptState::kActive) continue;
    Ending ending;
    ending.state = AttemptState::kLost;
    ending.reason = std::string(ReasonName(Reason::kWorkerLost));
    ending.message = why;
    ending.then = Ending::Then::kRetry;
    ending.may_poison = true;
    EndAttempt(turn, turn.state.jobs.at(attempt->job_id), *attempt, ending);
  }
}

void RequestReleases(Turn& turn, const std::string& worker_id, const std::string& why) {
  for (const Attempt* attempt : HeldBy(turn.state, worker_id)) {
    if (attempt->state != AttemptState::kActive || attempt->release_requested) continue;
    turn.Emit(AttemptReleaseRequested{attempt->job_id, attempt->epoch, why});
  }
}

absl::Status CheckRegister(const State& state, const RegisterWorker& c) {
  if (!IsValidId(c.worker_id)) {
    return Error::Field(Reason::kNameInvalid, "worker_id",
                        "must be 1 to 63 of a-z, 0-9 and inner '-'");
  }
  if (c.incarnation.empty() || c.incarnation.size() > kMaxRequestIdBytes) {
    return Error::Field(Reason::kSpecInvalid, "incarnation", "must be given");
  }
  if (c.devices.empty() || c.devices.size() > kMaxDevicesPerWorker) {
    return Error::Field(Reason::kSpecInvalid, "devices",
                        absl::StrCat("has ", c.devices.size(), " entries; 1 to ",
                                     kMaxDevicesPerWorker, " are allowed"));
  }
  std::set<std::string_view> ids;
  for (size_t i = 0; i < c.devices.size(); ++i) {
    const Device& device = c.devices[i];
    const auto refused = [&](const char* part, const std::string& why) {
      return Error::Field(Reason::kSpecInvalid, absl::StrCat("devices[", i, "].", part), why).ToStatus();
    };
    if (!IsValidId(device.id)) return refused("id", "must be 1 to 63 of a-z, 0-9 and inner '-'");
    if (!ids.insert(device.id).second)
      return refused("id", absl::StrCat(device.id, " is there twice; each device has an id of its own"));
    const spec::DeviceProfile& p = device.profile;
    struct Figure {
      const char* part;
      int64_t bytes, least;
    };
    for (const auto& [part, bytes, least] :
         {Figure{"capacity_bytes", device.capacity_bytes, 1}, Figure{"profile.fixed_bytes", p.fixed_bytes, 0},
          Figure{"profile.pinned_capacity_bytes", p.pinned_capacity_bytes, 0},
          Figure{"profile.host_capacity_bytes", p.host_capacity_bytes, 0}}) {
      if (bytes < least || bytes > kMaxDeviceBytes)
        return refused(part, absl::StrCat("must be ", least, " to ", kMaxDeviceBytes, ", got ", bytes));
    }
  }
  if (state.FindWorker(c.worker_id) == nullptr && state.workers.size() >= kMaxWorkers) {
    return Error(Reason::kQuotaExceeded,
                 absl::StrCat("there are ", kMaxWorkers, " workers already"));
  }
  return absl::OkStatus();
}

absl::Status Superseded(const std::string& worker_id, const std::string& incarnation) {
  return Error(Reason::kStaleAttempt,
               absl::StrCat("another process has registered as workers/", worker_id,
                            " since; this one (incarnation ", incarnation, ") must stop"))
      .With("worker", worker_id);
}

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

Answer DecideFleet(Turn& turn, const RegisterWorker& c) {
  RETURN_IF_ERROR(CheckRegister(turn.state, c));
  const Worker* known = turn.state.FindWorker(c.worker_id);
  Worker worker;
  if (known != nullptr) {
    const auto& past = known->past_incarnations;
    if (std::find(past.begin(), past.end(), c.incarnation) != past.end()) {
      return Superseded(c.worker_id, c.incarnation);
    }
    worker.draining = known->draining;
    worker.past_incarnations = known->past_incarnations;
    worker.devices = known->devices;
    if (known->incarnation == c.incarnation) worker.no_room = known->no_room;
  }
  const bool same_process = known != nullptr && known->incarnation == c.incarnation;
  if (known != nullptr && !same_process) {
    LoseAttempts(turn, c.worker_id, absl::StrCat("workers/", c.worker_id, " was started again"));
    // Engines end with the process that started them, so nothing of the old ones is left.
    for (const Attempt* attempt : HeldBy(turn.state, c.worker_id)) {
      turn.Emit(AttemptFreed{attempt->job_id, attempt->epoch});
    }
    worker.past_incarnations.push_back(known->incarnation);
    if (worker.past_incarnations.size() > kMaxPastIncarnations) {
      worker.past_incarnations.erase(worker.past_incarnations.begin());
    }
  }
  // Devices of a running process do not change under its attempts.
  if (!same_process || HeldBy(turn.state, c.worker_id).empty()) {
    worker.devices.clear();
    for (const Device& device : c.devices) {
      Device& added = worker.devices[device.id] = device;
      // A new process has opened all that it offers; another says in its next call what it has withdrawn.
      if (!same_process) continue;
      const auto before = known->devices.find(device.id);
      if (before != known->devices.end()) added.fault = before->second.fault;
    }
  }
  worker.id = c.worker_id;
  worker.incarnation = c.incarnation;
  worker.version = c.version;
  worker.shares_file_system = c.shares_file_system;
  worker.register_unix_us = turn.now.unix_us;
  turn.Emit(WorkerRegistered{std::move(worker)});
  if (c.timeline_seen == turn.state.timeline && c.generation_seen > turn.state.generation) {
    turn.Emit(RollbackSuspected{c.worker_id});
  }
  return c.worker_id;
}

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

Answer DecideFleet(Turn& turn, const DrainWorker& c) {
  const Worker* worker = turn.state.FindWorker(c.worker_id);
  if (worker == nullptr) {
    return Error(Reason::kWorkerNotFound, absl::StrCat("workers/", c.worker_id, " does not exist"))
        .ToStatus();
  }
  if (worker->draining) return c.worker_id;
  turn.Emit(WorkerDraining{c.worker_id});
  RequestReleases(turn, c.worker_id, "its worker is drained");
  return c.worker_id;
}

Answer DecideFleet(Turn& turn, const UndrainWorker& c) {
  const Worker* worker = turn.state.FindWorker(c.worker_id);
  if (worker == nullptr) {
    return Error(Reason::kWorkerNotFound, absl::StrCat("workers/", c.worker_id, " does not exist"))
        .ToStatus();
  }
  if (worker->draining) turn.Emit(WorkerUndrained{c.worker_id});
  return c.worker_id;
}

Answer DecideFleet(Turn& turn, const DeleteWorker& c) {
  const Worker* worker = turn.state.FindWorker(c.worker_id);
  if (worker == nullptr) {
    return Error(Reason::kWorkerNotFound, absl::StrCat("workers/", c.worker_id, " does not exist"))
        .ToStatus();
  }
  if (!worker->lost) {
    const int64_t silent_us = std::max<int64_t>(0, turn.now.monotonic_us - worker->renewed_us);
    return Error(Reason::kResourceInUse,
                 absl::StrCat("workers/", c.worker_id, " is not lost: ",
                              worker->heard ? "it called " : "the server has waited for it for ",
                              silent_us / kSecondUs, worker->heard ? " s ago" : " s",
                              "; stop it, and remove it once it has been silent for ",
                              turn.options().lease_lost_us / kSecondUs, " s"))
        .With("worker", c.worker_id)
        .ToStatus();
  }
  // Attempts that were lost with it: should it come back, it is told to stop them as one that is new.
  for (const Attempt* attempt : HeldBy(turn.state, c.worker_id))
    turn.Emit(AttemptFreed{attempt->job_id, attempt->epoch});
  turn.Emit(WorkerDeleted{c.worker_id});
  return c.worker_id;
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

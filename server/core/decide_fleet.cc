// Workers that register, are drained and are forgotten: T11, T16.
#include <algorithm>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/id.h"
#include "base/status.h"
#include "server/core/decide_internal.h"
#include "server/core/limits.h"

namespace nibble::core {
namespace {

void RequestReleases(Turn& turn, const std::string& worker_id, const std::string& why) {
  for (const Attempt* attempt : HeldBy(turn.state, worker_id)) {
    if (attempt->state != AttemptState::kActive || attempt->release_requested) continue;
    turn.Emit(AttemptReleaseRequested{attempt->job_id, attempt->epoch, why});
  }
}

struct Words {
  std::string field;
  std::string_view text;
  size_t most_bytes = kMaxWorkerTextBytes;
};
absl::Status CheckWords(const std::vector<Words>& all) {
  for (const auto& [field, text, most_bytes] : all) {
    if (text.size() <= most_bytes) continue;
    return Error::Field(
        Reason::kSpecInvalid, field,
        absl::StrCat("has ", text.size(), " bytes; at most ", most_bytes, " are taken of a worker"));
  }
  return absl::OkStatus();
}

// `path` is of the device.
absl::Status CheckDevice(const std::string& path, const Device& device) {
  const auto refused = [&](const char* part, const std::string& why) {
    return Error::Field(Reason::kSpecInvalid, path + part, why).ToStatus();
  };
  if (!IsValidId(device.id)) return refused("id", "must be 1 to 63 of a-z, 0-9 and inner '-'");
  RETURN_IF_ERROR(CheckWords({{path + "backend", device.backend},
                              {path + "body", device.body},
                              {path + "description", device.description},
                              {path + "uuid", device.uuid},
                              {path + "profile_json", device.profile_json, kMaxProfileBytes}}));
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
  return absl::OkStatus();
}

absl::Status CheckRegister(const State& state, const RegisterWorker& c) {
  if (!IsValidId(c.worker_id)) {
    return Error::Field(Reason::kNameInvalid, "worker_id",
                        "must be 1 to 63 of a-z, 0-9 and inner '-'");
  }
  if (c.incarnation.empty() || c.incarnation.size() > kMaxRequestIdBytes) {
    return Error::Field(
        Reason::kSpecInvalid, "incarnation",
        absl::StrCat("must be 1 to ", kMaxRequestIdBytes, " bytes, got ", c.incarnation.size()));
  }
  if (c.devices.empty() || c.devices.size() > kMaxDevicesPerWorker) {
    return Error::Field(Reason::kSpecInvalid, "devices",
                        absl::StrCat("has ", c.devices.size(), " entries; 1 to ",
                                     kMaxDevicesPerWorker, " are allowed"));
  }
  RETURN_IF_ERROR(CheckWords({{"version", c.version}}));
  std::set<std::string_view> ids;
  for (size_t i = 0; i < c.devices.size(); ++i) {
    const Device& device = c.devices[i];
    const std::string path = absl::StrCat("devices[", i, "].");
    RETURN_IF_ERROR(CheckDevice(path, device));
    if (!ids.insert(device.id).second) {
      return Error::Field(Reason::kSpecInvalid, path + "id",
                          absl::StrCat(device.id, " is there twice; each device has an id of its own"));
    }
  }
  if (state.FindWorker(c.worker_id) == nullptr && state.workers.size() >= kMaxWorkers) {
    return Error(Reason::kQuotaExceeded,
                 absl::StrCat("there are ", kMaxWorkers, " workers already"));
  }
  return absl::OkStatus();
}

}  // namespace

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

absl::Status Superseded(const std::string& worker_id, const std::string& incarnation) {
  return Error(Reason::kStaleAttempt,
               absl::StrCat("another process has registered as workers/", worker_id,
                            " since; this one (incarnation ", incarnation, ") must stop"))
      .With("worker", worker_id);
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

}  // namespace nibble::core

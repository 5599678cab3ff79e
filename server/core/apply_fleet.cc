// Events of workers and their devices.
#include <algorithm>

#include "server/core/apply_internal.h"
#include "server/core/schedule_sync.h"
#include "server/core/worker_seen.h"

namespace nibble::core {

template <typename T>
Worker& Applier::SetWorker(const std::string& id, T Worker::*field, const T& value) {
  Worker& worker = WorkerOf(id);
  worker.*field = value;
  SyncWorker(&state_, worker);
  return worker;
}

void Applier::SetLost(const std::string& id, int64_t us) {
  SetWorker(id, &Worker::lost, us > 0).lost_unix_us = us;
}

void Applier::SetFault(const std::string& worker_id, const std::string& device_id,
                       const std::string& fault) {
  Worker& worker = WorkerOf(worker_id);
  const auto device = worker.devices.find(device_id);
  if (device == worker.devices.end()) return;
  device->second.fault = fault;
  SyncWorker(&state_, worker);
}

void Applier::operator()(const WorkerRegistered& e) {
  const auto it = state_.workers.find(e.worker.id);
  const int64_t revision = it == state_.workers.end() ? RevisionOfNew(state_) : it->second.revision;
  Worker worker = e.worker;
  worker.renewed_us = now_.monotonic_us;
  worker.last_seen_unix_us = worker.stored_seen_unix_us = now_.unix_us;
  worker.revision = revision + 1;
  worker.known_revision = 0;
  worker.heard = true;
  if (it != state_.workers.end()) state_.UnlistDevices(it->second);
  state_.ListDevices(worker);
  state_.workers[worker.id] = worker;
  SyncWorker(&state_, worker);
  state_.touched.workers.insert(worker.id);
  state_.revised.insert(worker.id);
}

// It holds nothing any more. The board keeps its place, empty: who is gone for good takes no work.
void Applier::operator()(const WorkerDeleted& e) {
  Worker& worker = WorkerOf(e.worker_id);
  state_.UnlistDevices(worker);
  worker.devices.clear();
  worker.heard = false;
  SyncWorker(&state_, worker);
  state_.gone_revision = std::max(state_.gone_revision, worker.revision);
  state_.workers.erase(e.worker_id);
  state_.revised.insert(e.worker_id);
  state_.holding.erase(e.worker_id);
}

void Applier::operator()(const LeaseRenewed& e) {
  const auto it = state_.workers.find(e.worker_id);
  if (it == state_.workers.end()) return;
  Worker& worker = it->second;
  worker.renewed_us = now_.monotonic_us;
  Seen(&state_, &worker, now_);
  worker.known_revision = std::max(worker.known_revision, e.known_revision);
  if (!worker.heard || worker.self_draining != e.draining) {
    worker.heard = true;
    worker.self_draining = e.draining;
    SyncWorker(&state_, worker);
  }
  state_.board.SetRenewed(worker.id, worker.renewed_us);
  for (const DeviceUse& use : e.devices) {
    const auto device = worker.devices.find(use.device_id);
    if (device == worker.devices.end()) continue;
    device->second.used_bytes = use.used_bytes;
    if (device->second.resident_bases == use.resident_bases) continue;
    device->second.resident_bases = use.resident_bases;
    state_.board.SetWarm(worker.id, use.device_id, use.resident_bases);
  }
  for (const ListedAttempt& listed : e.attempts) {
    const auto job = state_.jobs.find(listed.job_id);
    if (job == state_.jobs.end()) continue;
    const auto attempt = job->second.attempts.find(listed.epoch);
    if (attempt == job->second.attempts.end() || attempt->second.worker_id != e.worker_id) continue;
    attempt->second.phase = listed.phase;
    attempt->second.trouble = listed.trouble;
  }
}

void Applier::operator()(const WorkerLost& e) { SetLost(e.worker_id, now_.unix_us); }
void Applier::operator()(const WorkerReturned& e) { SetLost(e.worker_id, 0); }
void Applier::operator()(const WorkerDraining& e) { SetWorker(e.worker_id, &Worker::draining, true); }
void Applier::operator()(const WorkerUndrained& e) { SetWorker(e.worker_id, &Worker::draining, false); }
void Applier::operator()(const WorkerDiskFull& e) { SetWorker(e.worker_id, &Worker::no_room, e.why); }
void Applier::operator()(const WorkerHasRoom& e) { SetWorker(e.worker_id, &Worker::no_room, std::string()); }
void Applier::operator()(const DeviceWithdrawn& e) { SetFault(e.worker_id, e.device_id, e.fault); }
void Applier::operator()(const DeviceRestored& e) { SetFault(e.worker_id, e.device_id, ""); }

}  // namespace nibble::core

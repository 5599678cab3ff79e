// A commit, and what follows one that fails: nobody knows what is on the disk then, so it is read again, and
// what no row tells is taken over from memory.
#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "server/control_loop.h"
#include "server/core/schedule_sync.h"

namespace nibble {
namespace {

// What rows that were read again take over from those they replace. Revisions go up, so that whatever workers
// were told from now on counts as newer; attempts count as told from there on.
void CarryWorker(const core::Worker* before, int64_t revision_of_new, const core::Now& now,
                 core::Worker& worker) {
  worker.stored_seen_unix_us = worker.last_seen_unix_us;
  if (before != nullptr) worker.last_seen_unix_us = before->last_seen_unix_us;
  worker.renewed_us = before != nullptr ? before->renewed_us : now.monotonic_us;
  worker.heard = before != nullptr && before->heard;
  worker.self_draining = before != nullptr && before->self_draining;
  worker.revision = (before != nullptr ? before->revision : revision_of_new) + 1;
  if (before == nullptr) return;
  for (auto& [device_id, device] : worker.devices) {
    const auto was = before->devices.find(device_id);
    if (was == before->devices.end()) continue;
    device.used_bytes = was->second.used_bytes;
    device.resident_bases = was->second.resident_bases;
  }
}

void CarryJob(const core::Job* before, const core::State& fresh, const core::CoreOptions& options,
              const core::Now& now, core::Job& job) {
  job.queued_us = before != nullptr
                      ? before->queued_us
                      : now.monotonic_us - std::max<int64_t>(0, now.unix_us - job.queued_unix_us);
  job.not_before_us = before != nullptr && before->state == job.state ? before->not_before_us : 0;
  job.cancel_deadline_us = now.monotonic_us + options.cancel_force_us;
  if (before != nullptr) job.measured = before->measured;
  // Rows are not written for every step, and nobody tells a step twice.
  if (before != nullptr && before->epoch == job.epoch && before->progress.step >= job.progress.step) {
    const int64_t planned_steps = job.progress.planned_steps;
    job.progress = before->progress;
    job.progress.planned_steps = planned_steps;
  }
  for (auto& [epoch, attempt] : job.attempts) {
    const auto worker = fresh.workers.find(attempt.worker_id);
    if (worker != fresh.workers.end()) attempt.assign_revision = worker->second.revision;
    if (before == nullptr) continue;
    const auto was = before->attempts.find(epoch);
    if (was != before->attempts.end()) attempt.start_us = was->second.start_us;
  }
}

// Everything was read again.
void CarryOver(const core::State& old, const core::CoreOptions& options, const core::Now& now,
               core::State& fresh) {
  fresh.rollback_suspected = old.rollback_suspected;
  fresh.gone_revision = old.gone_revision;
  const int64_t revision = core::RevisionOfNew(fresh);
  for (auto& [id, worker] : fresh.workers) CarryWorker(old.FindWorker(id), revision, now, worker);
  for (auto& [id, job] : fresh.jobs) CarryJob(old.FindJob(id), fresh, options, now, job);
  fresh.learned = old.learned;
  fresh.learned_loads = old.learned_loads;
  fresh.picos_per_work = old.picos_per_work;
  fresh.picos_mflops = old.picos_mflops;
  fresh.board.SetPolicy(options);
  core::RebuildBoard(&fresh, now.monotonic_us);
  for (auto& [digest, blob] : fresh.blobs)
    blob.pin_until_us = now.monotonic_us + options.blob_pin_us;
}

// The rows that are named, as they are now.
core::State RowsOf(const core::Touched& touched, const core::State& state) {
  core::State rows;
  for (const std::string& id : touched.workers) {
    if (const core::Worker* worker = state.FindWorker(id)) rows.workers[id] = *worker;
  }
  const auto keep = [&](const std::string& id) {
    const core::Job* job = state.FindJob(id);
    if (job != nullptr) rows.jobs.emplace(id, *job);
  };
  for (const std::string& id : touched.jobs) keep(id);
  for (const core::AttemptKey& key : touched.attempts) keep(key.first);
  return rows;
}

// A generation begins with a server that starts. Whoever is not of the one on the disk has no say there, nor
// a state that is true.
absl::Status CheckGeneration(int64_t on_disk, int64_t mine) {
  if (on_disk == mine) return absl::OkStatus();
  return Error(Reason::kStoreUnavailable, absl::StrCat("another server, of generation ", on_disk,
                                                       ", writes to this database; this one is of ", mine,
                                                       " and must stop"));
}

}  // namespace

absl::Status ControlLoop::Commit(const std::vector<core::EventRecord>& records) {
  if (records.empty() && state_.touched.Empty()) return absl::OkStatus();
  state_.touched.workers.merge(state_.touched.seen);
  absl::Status status = store_->Commit(state_, records);
  if (status.ok()) {
    state_.touched = {};
    return status;
  }
  // Nobody knows what is on disk now; events may be there that were never published.
  hub_->CutAll();
  absl::Status recovered = Recover();
  if (!recovered.ok()) recovered = Reload();
  if (!recovered.ok()) {
    serving_ = false;
    Fatal(recovered);
  }
  return status;
}

// Reads again what the commit was to write: the rest is on the disk as it is here.
absl::Status ControlLoop::Recover() {
  const core::Touched touched = state_.touched;
  const core::State before = RowsOf(touched, state_);
  const int64_t generation = state_.generation;
  absl::Status reread = store_->Reread(state_);
  if (reread.ok()) reread = CheckGeneration(state_.generation, generation);
  state_.generation = generation;
  if (!reread.ok()) {  // Reload takes over from these
    state_.workers.insert(before.workers.begin(), before.workers.end());
    state_.jobs.insert(before.jobs.begin(), before.jobs.end());
  }
  for (auto& [id, worker] : state_.workers) {
    if (touched.workers.contains(id)) {
      CarryWorker(before.FindWorker(id), core::RevisionOfNew(state_), now_, worker);
    } else {
      ++worker.revision;
    }
  }
  std::set<std::string> jobs = touched.jobs;
  for (const core::AttemptKey& key : touched.attempts) jobs.insert(key.first);
  for (const std::string& id : jobs) {
    const auto job = state_.jobs.find(id);
    if (job != state_.jobs.end()) CarryJob(before.FindJob(id), state_, options_.core, now_, job->second);
  }
  RETURN_IF_ERROR(reread);
  for (const std::string& digest : touched.blobs) {
    const auto blob = state_.blobs.find(digest);
    if (blob != state_.blobs.end()) blob->second.pin_until_us = now_.monotonic_us + options_.core.blob_pin_us;
  }
  state_.BuildIndexes();
  core::RebuildBoard(&state_, now_.monotonic_us);
  for (const auto& [worker, held] : held_) state_.revised.insert(worker);
  return absl::OkStatus();
}

absl::Status ControlLoop::Reload() {
  ASSIGN_OR_RETURN(core::State fresh, store_->Load());
  RETURN_IF_ERROR(CheckGeneration(fresh.generation, state_.generation));
  CarryOver(state_, options_.core, now_, fresh);
  for (const auto& [worker, held] : held_) fresh.revised.insert(worker);
  state_ = std::move(fresh);
  return absl::OkStatus();
}

}  // namespace nibble

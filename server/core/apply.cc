#include "server/core/apply.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "server/core/limits.h"
#include "server/core/schedule_sync.h"
#include "server/core/server_times.h"
#include "server/core/worker_seen.h"

namespace nibble::core {
namespace {

void EraseUser(std::map<std::string, std::set<std::string>>& users, const std::string& key,
               const std::string& id) {
  const auto it = users.find(key);
  if (it == users.end()) return;
  it->second.erase(id);
  if (it->second.empty()) users.erase(it);
}

// One event being applied. Rows are changed through its accessors, which mark them as touched.
class Applier {
 public:
  Applier(State* state, const Now& now) : state_(*state), now_(now) {}

  // The job whose event it was.
  Job& Changed(const std::string& id) { return last_ != nullptr ? *last_ : JobOf(id); }

  void operator()(const ServerStarted& e) { BeginAnew(&state_, e, now_); }
  void operator()(const JobQueued& e);
  void operator()(const JobUpdated& e);
  void operator()(const JobCancelling& e);
  void operator()(const JobCancelled& e) { End(JobOf(e.job_id), JobState::kCancelled); }
  void operator()(const JobPausing& e);
  void operator()(const JobPaused& e);
  void operator()(const JobResumed& e);
  void operator()(const JobRequeued& e);
  void operator()(const JobSucceeded& e);
  void operator()(const JobFailed& e);
  void operator()(const JobDeleted& e);
  void operator()(const AttemptAssigned& e);
  void operator()(const AttemptPlanned& e);
  void operator()(const AttemptStarted& e);
  void operator()(const AttemptEnded& e);
  void operator()(const AttemptReleaseRequested& e);
  void operator()(const AttemptFreed& e);
  void operator()(const CheckpointSaved& e);
  void operator()(const CheckpointDropped& e);
  void operator()(const ProgressUpdated& e);
  void operator()(const LeaseRenewed& e);
  void operator()(const WorkerRegistered& e);
  void operator()(const WorkerLost& e) { SetLost(e.worker_id, now_.unix_us); }
  void operator()(const WorkerReturned& e) { SetLost(e.worker_id, 0); }
  void operator()(const WorkerDraining& e) { SetWorker(e.worker_id, &Worker::draining, true); }
  void operator()(const WorkerUndrained& e) { SetWorker(e.worker_id, &Worker::draining, false); }
  void operator()(const WorkerDeleted& e);
  void operator()(const WorkerDiskFull& e) { SetWorker(e.worker_id, &Worker::no_room, e.why); }
  void operator()(const WorkerHasRoom& e) { SetWorker(e.worker_id, &Worker::no_room, std::string()); }
  void operator()(const DatasetCreated& e);
  void operator()(const DatasetDeleted& e);
  void operator()(const ModelRegistered& e);
  void operator()(const ModelDeleted& e);
  void operator()(const AdapterDeleted& e);
  void operator()(const BlobRecorded& e);
  void operator()(const BlobForgotten& e);
  void operator()(const JobChecked& e);
  void operator()(const RequestExpired& e);
  void operator()(const BlobPinned& e);
  void operator()(const RollbackSuspected&) { state_.rollback_suspected = true; }
  void operator()(const DeviceWithdrawn& e) { SetFault(e.worker_id, e.device_id, e.fault); }
  void operator()(const BlobShown& e);
  void operator()(const DeviceRestored& e) { SetFault(e.worker_id, e.device_id, ""); }
  void operator()(const ServerSlept& e) { PutOff(&state_, e, now_); }

 private:
  Job& JobOf(const std::string& id);
  Attempt& AttemptOf(const std::string& job_id, int64_t epoch);
  Worker& WorkerOf(const std::string& id);
  template <typename T>
  Worker& SetWorker(const std::string& id, T Worker::*field, const T& value);
  void SetLost(const std::string& id, int64_t us) { SetWorker(id, &Worker::lost, us > 0).lost_unix_us = us; }
  void SetFault(const std::string& worker_id, const std::string& device_id, const std::string& fault);
  void SyncUnread(const Job& job);
  void Enter(Job& job, JobState to);
  void End(Job& job, JobState to);
  void DesiredChanged(const std::string& worker_id);

  State& state_;
  const Now& now_;
  Job* last_ = nullptr;  // that was asked for
};

Job& Applier::JobOf(const std::string& id) {
  const auto it = state_.jobs.find(id);
  CHECK(it != state_.jobs.end());
  state_.touched.jobs.insert(id);
  it->second.update_unix_us = now_.unix_us;
  last_ = &it->second;
  return *last_;
}

Attempt& Applier::AttemptOf(const std::string& job_id, int64_t epoch) {
  const auto job = state_.jobs.find(job_id);
  CHECK(job != state_.jobs.end());
  const auto it = job->second.attempts.find(epoch);
  CHECK(it != job->second.attempts.end());
  state_.touched.attempts.insert({job_id, epoch});
  return it->second;
}

Worker& Applier::WorkerOf(const std::string& id) {
  const auto it = state_.workers.find(id);
  CHECK(it != state_.workers.end());
  state_.touched.workers.insert(id);
  return it->second;
}

template <typename T>
Worker& Applier::SetWorker(const std::string& id, T Worker::*field, const T& value) {
  Worker& worker = WorkerOf(id);
  worker.*field = value;
  SyncWorker(&state_, worker);
  return worker;
}

void Applier::SetFault(const std::string& worker_id, const std::string& device_id,
                       const std::string& fault) {
  Worker& worker = WorkerOf(worker_id);
  const auto device = worker.devices.find(device_id);
  if (device == worker.devices.end()) return;
  device->second.fault = fault;
  SyncWorker(&state_, worker);
}

void Applier::SyncUnread(const Job& job) {
  if (IsUnread(state_, job)) {
    state_.unread[job.check_key].insert(job.id);
  } else {
    EraseUser(state_.unread, job.check_key, job.id);
  }
}

void Applier::DesiredChanged(const std::string& worker_id) {
  const auto it = state_.workers.find(worker_id);
  if (it == state_.workers.end()) return;
  ++it->second.revision;
  state_.revised.insert(worker_id);
}

// The one place where a job's state changes.
void Applier::Enter(Job& job, JobState to) {
  job.state = to;
  const bool queued = to == JobState::kQueued;
  const auto list = [&](std::set<std::string>& ids, bool in) {
    if (in) ids.insert(job.id);
    if (!in) ids.erase(job.id);
  };
  list(state_.queued_jobs, queued);
  list(state_.cancelling_jobs, to == JobState::kCancelling);
  if (job.kind == JobKind::kCheck) list(state_.queued_checks, queued);
  SyncUnread(job);
  SyncQueued(&state_, job);
  const Attempt* attempt = job.Current();
  if (attempt == nullptr) return;
  DesiredChanged(attempt->worker_id);
  if (to == JobState::kPausing || to == JobState::kCancelling)
    state_.board.SetReleasing({job.number, attempt->epoch}, now_.monotonic_us);
}

void Applier::End(Job& job, JobState to) {
  Enter(job, to);
  job.end_unix_us = now_.unix_us;
  job.checkpoints.clear();  // nothing goes on from them any more, and they are several times the adapter
  state_.live_jobs.erase(job.id);
  state_.model_users[job.model_id].erase(job.id);
  state_.dataset_users[job.dataset_id].erase(job.id);
  if (!job.eval_dataset_id.empty()) state_.dataset_users[job.eval_dataset_id].erase(job.id);
  if (job.kind == JobKind::kTrain) EraseUser(state_.check_users, job.check_key, job.id);
}

void Applier::operator()(const JobQueued& e) {
  Job job = e.job;
  state_.last_job_number = std::max(state_.last_job_number, job.number);
  state_.touched.meta = true;
  job.queued_us = now_.monotonic_us;
  job.queued_unix_us = job.create_unix_us = now_.unix_us;
  if (const Model* model = state_.ModelOf(job)) job.plan_key = PlanKey(*model, job.spec);
  if (!job.request_id.empty()) {
    const RequestKey key{job.tenant, job.request_id};
    state_.requests[key] = {job.tenant, job.request_id, job.id, job.body_sha256, now_.unix_us};
    state_.touched.requests.insert(key);
  }
  if (job.kind == JobKind::kCheck) {
    state_.checks[job.check_key] = job.id;
    state_.unread.erase(job.check_key);
  } else {
    state_.check_users[job.check_key].insert(job.id);
    state_.jobs_by_number[job.number] = job.id;
  }
  state_.live_jobs.insert(job.id);
  state_.model_users[job.model_id].insert(job.id);
  state_.dataset_users[job.dataset_id].insert(job.id);
  if (!job.eval_dataset_id.empty()) state_.dataset_users[job.eval_dataset_id].insert(job.id);
  const std::string id = job.id;
  state_.jobs[id] = std::move(job);
  Enter(JobOf(id), JobState::kQueued);
}

void Applier::operator()(const JobUpdated& e) {
  Job& job = JobOf(e.job_id);
  job.display_name = e.display_name;
  job.labels = e.labels;
  if (job.Current() && job.priority != e.priority) DesiredChanged(job.Current()->worker_id);  // its turns
  job.priority = e.priority;
  if (job.spec.allow_numerics_change != e.allow_numerics_change) {
    job.spec.allow_numerics_change = e.allow_numerics_change;
    state_.touched.specs.insert(job.id);
  }
  SyncQueued(&state_, job);
  for (const auto& [epoch, attempt] : job.attempts)
    state_.board.SetHoldPriority({job.number, epoch}, job.priority);
}

void Applier::operator()(const JobCancelling& e) {
  Job& job = JobOf(e.job_id);
  job.cancel_deadline_us = e.deadline_us;
  Enter(job, JobState::kCancelling);
}

void Applier::operator()(const JobPausing& e) {
  Job& job = JobOf(e.job_id);
  job.resume_requested = false;
  Enter(job, JobState::kPausing);
}

void Applier::operator()(const JobPaused& e) {
  Job& job = JobOf(e.job_id);
  job.resume_requested = false;
  Enter(job, JobState::kPaused);
}

void Applier::operator()(const JobResumed& e) {
  Job& job = JobOf(e.job_id);
  if (job.state == JobState::kPausing) {
    job.resume_requested = true;
    return;
  }
  // Paused time does not count as waiting.
  job.queued_us = now_.monotonic_us;
  job.queued_unix_us = now_.unix_us;
  job.waited_us = 0;
  job.not_before_us = 0;
  Enter(job, JobState::kQueued);
}

void Applier::operator()(const JobRequeued& e) {
  Job& job = JobOf(e.job_id);
  job.resume_requested = false;
  // Time it ran does not count as waiting.
  job.queued_us = now_.monotonic_us - job.waited_us;
  job.queued_unix_us = now_.unix_us - job.waited_us;
  job.not_before_us = e.not_before_us;
  Enter(job, JobState::kQueued);
}

void Applier::operator()(const JobSucceeded& e) {
  Job& job = JobOf(e.job_id);
  job.stop_reason = e.stop_reason;
  job.progress.step = std::max(job.progress.step, e.step);
  if (!e.adapter.id.empty()) {
    job.adapter_id = e.adapter.id;
    state_.adapters[e.adapter.id] = e.adapter;
    state_.touched.adapters.insert(e.adapter.id);
  }
  End(job, JobState::kSucceeded);
}

void Applier::operator()(const JobFailed& e) {
  Job& job = JobOf(e.job_id);
  job.error_reason = e.reason;
  job.error_message = e.message;
  End(job, JobState::kFailed);
}

void Applier::operator()(const JobDeleted& e) {
  const Job& job = JobOf(e.job_id);
  for (const auto& [epoch, attempt] : job.attempts) state_.touched.attempts.insert({job.id, epoch});
  if (job.kind == JobKind::kCheck) {
    const auto it = state_.checks.find(job.check_key);
    if (it != state_.checks.end() && it->second == job.id) state_.checks.erase(it);
    const auto users = state_.check_users.find(job.check_key);
    if (users != state_.check_users.end()) {
      for (const std::string& id : users->second) SyncUnread(state_.jobs.at(id));
    }
  }
  if (job.kind == JobKind::kTrain) state_.jobs_by_number.erase(job.number);
  // From now on what asked for it may be forgotten.
  const auto request = state_.requests.find({job.tenant, job.request_id});
  if (request != state_.requests.end() && JobMadeBy(state_, request->second) == &job)
    state_.requests_by_age.insert({request->second.create_unix_us, request->first});
  state_.jobs.erase(e.job_id);
}

void Applier::operator()(const AttemptAssigned& e) {
  Job& job = JobOf(e.job_id);
  Attempt attempt;
  attempt.job_id = e.job_id;
  attempt.epoch = e.epoch;
  attempt.worker_id = e.worker_id;
  attempt.incarnation = e.incarnation;
  attempt.device_id = e.device_id;
  attempt.plan = e.plan;
  attempt.group = e.group;
  attempt.run_alone = e.run_alone;
  attempt.resume_epoch = e.resume_epoch;
  attempt.resume_step = e.resume_step;
  attempt.continues_epoch = e.continues_epoch;
  attempt.start_unix_us = now_.unix_us;
  attempt.start_us = now_.monotonic_us;
  attempt.phase = Phase::kFetching;
  job.epoch = e.epoch;
  job.plan = e.plan;
  if (e.continues_epoch == 0) {
    job.progress.step = e.resume_step;
  } else {
    // Nothing died: the silence costs the job no retry and counts against no worker.
    job.infra_retries = std::max(0, job.infra_retries - 1);
    job.poisoned_workers.erase(e.worker_id);
  }
  if (job.start_unix_us == 0) job.start_unix_us = now_.unix_us;
  Attempt& stored = job.attempts[e.epoch] = std::move(attempt);
  state_.touched.attempts.insert({e.job_id, e.epoch});
  state_.holding[e.worker_id].insert({e.job_id, e.epoch});
  if (job.kind == JobKind::kCheck) ++state_.checks_held[e.worker_id];
  job.waited_us = std::max<int64_t>(0, now_.monotonic_us - job.queued_us);
  Enter(job, JobState::kStarting);
  SyncHold(&state_, job, stored, now_.monotonic_us);
  stored.assign_revision = state_.workers.at(e.worker_id).revision;
}

void Applier::operator()(const AttemptPlanned& e) {
  Job& job = JobOf(e.job_id);
  if (e.planned_steps > 0) job.progress.planned_steps = e.planned_steps;
  if (!e.report_json.empty()) job.report_json = e.report_json;
  SyncUnread(job);
  SyncEstimate(&state_, job, now_.monotonic_us);
  if (!e.numerics_id.empty()) {
    job.numerics_id = e.numerics_id;
    job.numerics_class = e.numerics_class;
  }
}

void Applier::operator()(const AttemptStarted& e) {
  AttemptOf(e.job_id, e.epoch).started = true;
  Job& job = JobOf(e.job_id);
  if (job.state == JobState::kStarting) Enter(job, JobState::kRunning);
}

void Applier::operator()(const AttemptEnded& e) {
  Attempt& attempt = AttemptOf(e.job_id, e.epoch);
  attempt.state = e.state;
  attempt.reason = e.reason;
  attempt.message = e.message;
  attempt.end_unix_us = now_.unix_us;
  Job& job = JobOf(e.job_id);
  if (e.spends_retry) ++job.infra_retries;
  if (e.own_fault) ++job.faults;
  if (e.poisons) job.poisoned_workers.insert(attempt.worker_id);
  if (e.runs_alone) job.run_alone = true;
  state_.board.SetReleasing({job.number, e.epoch}, now_.monotonic_us);
  DesiredChanged(attempt.worker_id);
}

void Applier::operator()(const AttemptReleaseRequested& e) {
  Attempt& attempt = AttemptOf(e.job_id, e.epoch);
  attempt.release_requested = true;
  attempt.release_reason = e.why;
  state_.board.SetReleasing({state_.jobs.at(e.job_id).number, e.epoch}, now_.monotonic_us);
  DesiredChanged(attempt.worker_id);
}

void Applier::operator()(const AttemptFreed& e) {
  Attempt& attempt = AttemptOf(e.job_id, e.epoch);
  attempt.holds_bytes = false;
  state_.holding[attempt.worker_id].erase({e.job_id, e.epoch});
  const Job& job = state_.jobs.at(e.job_id);
  state_.board.RemoveHold({job.number, e.epoch}, now_.monotonic_us);
  if (job.kind == JobKind::kCheck && --state_.checks_held[attempt.worker_id] == 0)
    state_.checks_held.erase(attempt.worker_id);
}

void Applier::operator()(const CheckpointSaved& e) {
  Job& job = JobOf(e.job_id);
  job.checkpoints.push_back(e.checkpoint);
  job.progress.step = std::max(job.progress.step, e.checkpoint.step);
}

void Applier::operator()(const CheckpointDropped& e) {
  std::erase_if(JobOf(e.job_id).checkpoints, [&](const Checkpoint& checkpoint) {
    return checkpoint.epoch == e.epoch && checkpoint.step == e.step;
  });
}

void Applier::operator()(const ProgressUpdated& e) {
  // Not through JobOf: the row is not written for every step.
  const auto it = state_.jobs.find(e.job_id);
  if (it == state_.jobs.end()) return;
  Progress& progress = it->second.progress;
  const Progress& head = e.head;
  const auto attempt = it->second.attempts.find(e.epoch);
  if (attempt != it->second.attempts.end())
    Learn(&state_, it->second, attempt->second, head, now_.monotonic_us);
  progress.step = head.step;
  progress.epoch = head.epoch;
  if (head.trained_tokens > 0) progress.trained_tokens = head.trained_tokens;
  if (head.step_time_us > 0) progress.step_time_us = head.step_time_us;
  if (head.tokens_per_second > 0) progress.tokens_per_second = head.tokens_per_second;
  if (head.loss) progress.loss = head.loss;
  if (head.eval_loss) progress.eval_loss = head.eval_loss;
  if (head.gradient_norm) progress.gradient_norm = head.gradient_norm;
  if (head.learning_rate) progress.learning_rate = head.learning_rate;
  progress.used_bytes = std::max(progress.used_bytes, head.used_bytes);
  SyncEstimate(&state_, it->second, now_.monotonic_us);
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

void Applier::operator()(const DatasetCreated& e) {
  state_.datasets[e.dataset.id] = e.dataset;
  state_.touched.datasets.insert(e.dataset.id);
}

void Applier::operator()(const DatasetDeleted& e) {
  state_.datasets.erase(e.dataset_id);
  state_.touched.datasets.insert(e.dataset_id);
}

void Applier::operator()(const ModelRegistered& e) {
  state_.models[e.model.id] = e.model;
  state_.touched.models.insert(e.model.id);
}

void Applier::operator()(const ModelDeleted& e) {
  state_.models.erase(e.model_id);
  state_.touched.models.insert(e.model_id);
}

void Applier::operator()(const AdapterDeleted& e) {
  state_.adapters.erase(e.adapter_id);
  state_.touched.adapters.insert(e.adapter_id);
}

void Applier::operator()(const BlobRecorded& e) {
  state_.blobs[e.sha256] = {e.sha256, e.size_bytes, e.pin_until_us, {}};
  state_.touched.blobs.insert(e.sha256);
}

void Applier::operator()(const BlobShown& e) {
  const auto it = state_.blobs.find(e.sha256);
  if (it == state_.blobs.end()) return;
  it->second.projects.insert(e.project);
  state_.touched.blobs.insert(e.sha256);
}

void Applier::operator()(const BlobForgotten& e) {
  state_.blobs.erase(e.sha256);
  state_.touched.blobs.insert(e.sha256);
}

void Applier::operator()(const JobChecked& e) {
  Job& job = JobOf(e.job_id);
  job.report_json = e.report_json;
  job.progress.planned_steps = e.planned_steps;
  SyncUnread(job);
  SyncEstimate(&state_, job, now_.monotonic_us);
}

void Applier::operator()(const RequestExpired& e) {
  const auto it = state_.requests.find({e.tenant, e.request_id});
  if (it != state_.requests.end())
    state_.requests_by_age.erase({it->second.create_unix_us, it->first});
  state_.requests.erase({e.tenant, e.request_id});
  state_.touched.requests.insert({e.tenant, e.request_id});
}

void Applier::operator()(const BlobPinned& e) {
  const auto it = state_.blobs.find(e.sha256);
  if (it != state_.blobs.end()) it->second.pin_until_us = std::max(it->second.pin_until_us, e.pin_until_us);
}

}  // namespace

void Apply(State* state, const Event& event, std::vector<EventRecord>* records) {
  Applier applier(state, event.now);
  std::visit(applier, event.body);
  const Keep keep = std::visit([](const auto& e) { return std::decay_t<decltype(e)>::kKeep; }, event.body);
  if (keep == Keep::kVolatile) return;
  EventRecord record = Describe(event);
  record.number = ++state->last_event_number;
  state->touched.meta = true;
  if (keep == Keep::kJob) {
    Job& job = applier.Changed(record.job_id);
    record.sequence = ++job.last_sequence;
    record.state = job.state;
  }
  if (records != nullptr) records->push_back(std::move(record));
}

}  // namespace nibble::core

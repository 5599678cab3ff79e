// Events of jobs: their states, and the lists that follow from them.
#include <algorithm>
#include <utility>

#include "server/core/apply_internal.h"
#include "server/core/schedule_sync.h"

namespace nibble::core {
namespace {

void EraseUser(std::map<std::string, std::set<std::string>>& users, const std::string& key,
               const std::string& id) {
  const auto it = users.find(key);
  if (it == users.end()) return;
  it->second.erase(id);
  if (it->second.empty()) users.erase(it);
}

}  // namespace

void Applier::SyncUnread(const Job& job) {
  if (IsUnread(state_, job)) {
    state_.unread[job.check_key].insert(job.id);
  } else {
    EraseUser(state_.unread, job.check_key, job.id);
  }
}

// The one place where a job's state changes.
void Applier::Enter(Job& job, JobState to) {
  if (job.kind == JobKind::kTrain) {
    --state_.job_counts[static_cast<size_t>(job.state)];
    ++state_.job_counts[static_cast<size_t>(to)];
  }
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
  EraseUser(state_.model_users, job.model_id, job.id);
  EraseUser(state_.dataset_users, job.dataset_id, job.id);
  if (!job.eval_dataset_id.empty()) EraseUser(state_.dataset_users, job.eval_dataset_id, job.id);
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
    ++state_.job_counts[static_cast<size_t>(job.state)];
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

void Applier::operator()(const JobCancelled& e) { End(JobOf(e.job_id), JobState::kCancelled); }

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

void Applier::operator()(const JobChecked& e) {
  Job& job = JobOf(e.job_id);
  job.report_json = e.report_json;
  job.progress.planned_steps = e.planned_steps;
  SyncUnread(job);
  SyncEstimate(&state_, job, now_.monotonic_us);
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
  if (job.kind == JobKind::kTrain) {
    state_.jobs_by_number.erase(job.number);
    --state_.job_counts[static_cast<size_t>(job.state)];
  }
  // From now on what asked for it may be forgotten.
  const auto request = state_.requests.find({job.tenant, job.request_id});
  if (request != state_.requests.end() && JobMadeBy(state_, request->second) == &job)
    state_.requests_by_age.insert({request->second.create_unix_us, request->first});
  state_.jobs.erase(e.job_id);
}

}  // namespace nibble::core

// Events of attempts: what they hold, how they go and end, what they have saved and told.
#include <algorithm>
#include <utility>

#include "server/core/apply_internal.h"
#include "server/core/schedule_sync.h"

namespace nibble::core {

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

}  // namespace nibble::core

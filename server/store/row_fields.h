// The fields of the rows that change most, named once: what writes them and what reads them back goes
// through the same lists. A visitor is called with each name and field.
//
// A job has two rows: what it was created with, which seldom changes, and what does.
#pragma once

#include "server/core/types.h"

namespace nibble::store {

template <typename Visitor, typename T>
void VisitCreated(Visitor& v, T& job) {
  v("id", job.id);
  v("uid", job.uid);
  v("tenant", job.tenant);
  v("kind", job.kind);
  v("number", job.number);
  v("spec", job.spec);
  v("recompute_left", job.recompute_left);
  v("model_id", job.model_id);
  v("dataset_id", job.dataset_id);
  v("eval_dataset_id", job.eval_dataset_id);
  v("check_key", job.check_key);
  v("request_id", job.request_id);
  v("body_sha256", job.body_sha256);
  v("create_unix_us", job.create_unix_us);
}

template <typename Visitor, typename T>
void VisitJob(Visitor& v, T& job) {
  v("display_name", job.display_name);
  v("labels", job.labels);
  v("priority", job.priority);
  v("state", job.state);
  v("epoch", job.epoch);
  v("checkpoints", job.checkpoints);
  v("infra_retries", job.infra_retries);
  v("faults", job.faults);
  v("poisoned_workers", job.poisoned_workers);
  v("run_alone", job.run_alone);
  v("resume_requested", job.resume_requested);
  v("numerics_id", job.numerics_id);
  v("numerics_class", job.numerics_class);
  v("plan", job.plan);
  v("report_json", job.report_json);
  v("adapter_id", job.adapter_id);
  v("stop_reason", job.stop_reason);
  v("error_reason", job.error_reason);
  v("error_message", job.error_message);
  v("last_sequence", job.last_sequence);
  v("progress", job.progress);
  v("queued_unix_us", job.queued_unix_us);
  v("waited_us", job.waited_us);
  v("start_unix_us", job.start_unix_us);
  v("end_unix_us", job.end_unix_us);
  v("update_unix_us", job.update_unix_us);
}

template <typename Visitor, typename T>
void VisitAttempt(Visitor& v, T& attempt) {
  v("job_id", attempt.job_id);
  v("epoch", attempt.epoch);
  v("worker_id", attempt.worker_id);
  v("incarnation", attempt.incarnation);
  v("device_id", attempt.device_id);
  v("state", attempt.state);
  v("reason", attempt.reason);
  v("message", attempt.message);
  v("plan", attempt.plan);
  v("group", attempt.group);
  v("run_alone", attempt.run_alone);
  v("resume_epoch", attempt.resume_epoch);
  v("resume_step", attempt.resume_step);
  v("continues_epoch", attempt.continues_epoch);
  v("started", attempt.started);
  v("release_requested", attempt.release_requested);
  v("release_reason", attempt.release_reason);
  v("holds_bytes", attempt.holds_bytes);
  v("start_unix_us", attempt.start_unix_us);
  v("end_unix_us", attempt.end_unix_us);
}

template <typename Visitor, typename T>
void VisitPlan(Visitor& v, T& plan) {
  v("base_bytes", plan.base_bytes);
  v("persistent_bytes", plan.persistent_bytes);
  v("step_bytes", plan.step_bytes);
  v("fixed_bytes", plan.fixed_bytes);
  v("host_bytes", plan.host_bytes);
  v("pinned_bytes", plan.pinned_bytes);
  v("host_apart", plan.host_apart);
  v("lower_bound_bytes", plan.lower_bound_bytes);
  v("peak_phase", plan.peak_phase);
  v("category_bytes", plan.category_bytes);
  v("profile", plan.profile);
  v("choices", plan.choices);
}

template <typename Visitor, typename T>
void VisitProgress(Visitor& v, T& progress) {
  v("step", progress.step);
  v("planned_steps", progress.planned_steps);
  v("epoch", progress.epoch);
  v("trained_tokens", progress.trained_tokens);
  v("step_time_us", progress.step_time_us);
  v("tokens_per_second", progress.tokens_per_second);
  v("loss", progress.loss);
  v("eval_loss", progress.eval_loss);
  v("gradient_norm", progress.gradient_norm);
  v("learning_rate", progress.learning_rate);
  v("used_bytes", progress.used_bytes);
}

}  // namespace nibble::store

#include "server/rpc/convert.h"

#include "absl/strings/str_cat.h"
#include "engine/spec/words.h"
#include "server/core/schedule.h"
#include "server/rpc/convert_spec.h"
#include "server/rpc/status.h"

namespace nibble::server {
namespace {

void SetTime(int64_t unix_us, google::protobuf::Timestamp* (v1::Job::*field)(), v1::Job* out) {
  if (unix_us > 0) ToTimestamp(unix_us, (out->*field)());
}

void ToProto(const core::Attempt& attempt, core::JobKind kind, v1::Attempt* out) {
  out->set_epoch(attempt.epoch);
  out->set_worker(ResourceName("workers", attempt.worker_id));
  out->set_state(std::string(core::AttemptStateName(attempt.state)));
  out->set_reason(attempt.reason);
  if (attempt.start_unix_us > 0) ToTimestamp(attempt.start_unix_us, out->mutable_start_time());
  if (attempt.end_unix_us > 0) ToTimestamp(attempt.end_unix_us, out->mutable_end_time());
  if (attempt.continues_epoch == 0) out->set_start_step(attempt.resume_step);
  out->set_kind(std::string(core::JobKindName(kind)));
  out->set_continues_epoch(attempt.continues_epoch);
}

void FillProgress(const core::Job& job, const core::Now& now, v1::JobProgress* out) {
  const core::Progress& progress = job.progress;
  out->set_completed_steps(progress.step);
  out->set_planned_steps(progress.planned_steps);
  out->set_epoch(progress.epoch);
  out->set_trained_tokens(progress.trained_tokens);
  out->set_tokens_per_second(progress.tokens_per_second);
  if (progress.loss) out->set_loss(*progress.loss);
  if (progress.eval_loss) out->set_eval_loss(*progress.eval_loss);
  if (progress.gradient_norm) out->set_gradient_norm(*progress.gradient_norm);
  if (progress.learning_rate) out->set_learning_rate(*progress.learning_rate);
  const int64_t end_us = core::EstimatedEndUnixUs(job, now.unix_us);
  if (end_us > 0) ToTimestamp(end_us, out->mutable_estimated_end_time());
  const core::Attempt* attempt = job.Current();
  if (attempt && attempt->phase != core::Phase::kUnspecified) {
    out->set_phase(std::string(core::PhaseName(attempt->phase)));
  }
}

template <typename Files>
void FillFiles(const std::vector<core::FileRef>& files, Files* out) {
  for (const core::FileRef& file : files) {
    auto* added = out->Add();
    added->set_name(file.name);
    added->set_size_bytes(file.size_bytes);
    added->set_sha256(file.sha256);
  }
}

v1::JobSpec GivenSpec(const core::Job& job) {
  v1::JobSpec spec;
  // Written by us when the job was created; a job of an older, unreadable form shows no given spec.
  (void)spec.ParseFromString(job.user_spec);
  // It may have been allowed since (UpdateJob).
  if (job.spec.allow_numerics_change) spec.mutable_training()->set_allow_numerics_change(true);
  return spec;
}

}  // namespace

void ToTimestamp(int64_t unix_us, google::protobuf::Timestamp* out) {
  out->set_seconds(unix_us / 1'000'000);
  out->set_nanos(static_cast<int32_t>(unix_us % 1'000'000 * 1000));
}

std::string ResourceName(std::string_view collection, std::string_view id) {
  if (id.empty()) return "";
  return std::string(collection).append("/").append(id);
}

void ToProto(JobView& view, const core::Job& job, v1::Job* out) {
  out->set_name(ResourceName("jobs", job.id));
  out->set_uid(job.uid);
  out->set_display_name(job.display_name);
  out->mutable_labels()->insert(job.labels.begin(), job.labels.end());
  out->set_priority(job.priority);
  out->set_state(static_cast<v1::JobState>(job.state));
  out->set_state_reason(core::StateReason(job, view.look));
  *out->mutable_spec() = GivenSpec(job);
  *out->mutable_effective_spec() = ToJobSpec(core::SpecWith(job, job.plan));
  out->mutable_effective_spec()->set_base_model(ResourceName("models", job.model_id));
  out->mutable_effective_spec()->set_dataset(ResourceName("datasets", job.dataset_id));
  out->mutable_effective_spec()->set_eval_dataset(ResourceName("datasets", job.eval_dataset_id));
  if (job.plan.TotalBytes() > 0) ToProto(job.plan, out->mutable_plan());
  out->set_used_bytes(job.progress.used_bytes);
  FillProgress(job, view.now, out->mutable_progress());
  for (const auto& [epoch, attempt] : job.attempts) ToProto(attempt, job.kind, out->add_attempts());
  if (const core::Attempt* attempt = job.Current()) {
    out->set_worker(ResourceName("workers", attempt->worker_id));
  }
  out->set_adapter(ResourceName("adapters", job.adapter_id));
  if (job.state == core::JobState::kFailed) {
    *out->mutable_error() = JobError(job.error_reason, job.error_message);
  }
  out->set_dataset_report_json(job.report_json);
  out->set_numerics_id(job.numerics_id);
  SetTime(job.create_unix_us, &v1::Job::mutable_create_time, out);
  SetTime(job.start_unix_us, &v1::Job::mutable_start_time, out);
  SetTime(job.end_unix_us, &v1::Job::mutable_end_time, out);
  SetTime(job.update_unix_us, &v1::Job::mutable_update_time, out);
  out->set_etag(core::Etag(job));
  out->set_stop_reason(job.stop_reason);
  out->set_queue_position(view.look.PlaceOf(job));
}

void ToProto(const core::PlanBytes& plan, v1::MemoryPlan* out) {
  out->set_base_bytes(plan.base_bytes);
  out->set_persistent_bytes(plan.persistent_bytes);
  out->set_step_bytes(plan.step_bytes);
  out->set_fixed_bytes(plan.fixed_bytes);
  out->set_host_bytes(plan.host_bytes);
  out->set_host_apart(plan.host_apart);
  out->set_pinned_bytes(plan.pinned_bytes);
  out->set_total_bytes(plan.TotalBytes());
  out->set_lower_bound_bytes(plan.lower_bound_bytes);
  out->set_peak_phase(plan.peak_phase);
  out->set_profile(plan.profile);
  if (plan.choices != spec::PlanChoices{}) {
    out->set_recompute(std::string(WordOf(spec::kRecomputeWords, plan.choices.recompute)));
    out->set_base_cache(std::string(WordOf(spec::kBaseCacheWords, plan.choices.base_cache)));
    out->set_paged_optimizer(plan.choices.paged_optimizer);
    out->set_offload_activations(plan.choices.offload_activations);
    out->set_cuda_graphs(plan.choices.cuda_graphs);
    out->set_keep_blocks(plan.choices.keep_blocks);
  }
  v1::MemoryByCategory* categories = out->mutable_by_category();
  const auto bytes = [&](spec::Category c) { return plan.category_bytes[static_cast<size_t>(c)]; };
  categories->set_base_codes(bytes(spec::Category::kBaseCodes));
  categories->set_base_scales(bytes(spec::Category::kBaseScales));
  categories->set_base_unquantized(bytes(spec::Category::kBaseUnquantized));
  categories->set_adapters(bytes(spec::Category::kAdapters));
  categories->set_gradients(bytes(spec::Category::kGradients));
  categories->set_optimizer(bytes(spec::Category::kOptimizer));
  categories->set_activations(bytes(spec::Category::kActivations));
  categories->set_workspace(bytes(spec::Category::kWorkspace));
}

void ToProto(const core::EventRecord& event, v1::JobEvent* out) {
  out->set_sequence(event.sequence);
  ToTimestamp(event.unix_us, out->mutable_time());
  out->set_type(event.type);
  out->set_message(event.message);
  out->set_state(static_cast<v1::JobState>(event.state));
  out->mutable_fields()->insert(event.fields.begin(), event.fields.end());
}

void ToProto(const store::StepMetric& metric, v1::MetricPoint* out) {
  out->set_step(metric.step);
  out->set_epoch(metric.epoch);
  out->set_loss(metric.loss);
  out->set_gradient_norm(metric.gradient_norm);
  out->set_learning_rate(metric.learning_rate);
  out->set_tokens(metric.tokens);
  out->set_target_tokens(metric.target_tokens);
  out->set_step_time_us(metric.step_time_us);
  out->set_time_us(metric.time_unix_us);
  if (metric.eval_loss) out->set_eval_loss(*metric.eval_loss);
  out->set_used_bytes(metric.used_bytes);
  if (metric.phase_us == spec::StepPhaseTimes{}) return;
  const auto us = [&](spec::StepPhase phase) { return metric.phase_us[static_cast<size_t>(phase)]; };
  v1::StepPhases* phases = out->mutable_phases();
  phases->set_linear_us(us(spec::StepPhase::kLinear));
  phases->set_attention_us(us(spec::StepPhase::kAttention));
  phases->set_elementwise_us(us(spec::StepPhase::kElementwise));
  phases->set_loss_us(us(spec::StepPhase::kLoss));
  phases->set_optimizer_us(us(spec::StepPhase::kOptimizer));
  phases->set_data_us(us(spec::StepPhase::kData));
}

void ToProto(const core::Checkpoint& checkpoint, v1::Checkpoint* out) {
  out->set_step(checkpoint.step);
  out->set_epoch(checkpoint.epoch);
  out->set_size_bytes(checkpoint.size_bytes);
  out->set_manifest_sha256(checkpoint.manifest_sha256);
  ToTimestamp(checkpoint.create_unix_us, out->mutable_create_time());
  out->set_loss(checkpoint.loss);
}

void ToProto(const core::Dataset& dataset, v1::Dataset* out) {
  out->set_name(ResourceName("datasets", dataset.id));
  out->set_display_name(dataset.display_name);
  out->set_sha256(dataset.sha256);
  out->set_size_bytes(dataset.size_bytes);
  out->set_rows(dataset.rows);
  out->set_format(dataset.format);
  ToTimestamp(dataset.create_unix_us, out->mutable_create_time());
}

void ToProto(const core::Model& model, v1::Model* out) {
  out->set_name(ResourceName("models", model.id));
  out->set_display_name(model.display_name);
  out->set_model_type(model.config.model_type);
  out->set_parameters(model.config.TotalParameters());
  FillFiles(model.files, out->mutable_files());
  out->set_root_path(model.root_path);
  out->set_digest(model.digest);
  ToTimestamp(model.create_unix_us, out->mutable_create_time());
}

void ToProto(const core::Adapter& adapter, v1::Adapter* out) {
  out->set_name(ResourceName("adapters", adapter.id));
  out->set_job(ResourceName("jobs", adapter.job_id));
  out->set_base_model(ResourceName("models", adapter.model_id));
  out->set_base_digest(adapter.base_digest);
  FillFiles(adapter.files, out->mutable_files());
  ToTimestamp(adapter.create_unix_us, out->mutable_create_time());
}

void ToProto(const core::State& state, const core::Worker& worker, const core::CoreOptions& options,
             int64_t now_us, const std::string& scope, v1::Worker* out) {
  out->set_name(ResourceName("workers", worker.id));
  out->set_state(
      static_cast<v1::WorkerState>(core::WorkerStateNumber(state, worker, options, now_us)));
  out->set_version(worker.version);
  out->set_no_room(worker.no_room);
  if (worker.last_seen_unix_us > 0) {
    ToTimestamp(worker.last_seen_unix_us, out->mutable_last_seen_time());
  }
  const auto holding = state.holding.find(worker.id);
  for (const auto& [id, device] : worker.devices) {
    v1::Device* shown = out->add_devices();
    shown->set_id(id);
    shown->set_backend(device.backend);
    shown->set_body(device.body);
    shown->set_description(device.description);
    shown->set_uuid(device.uuid);
    shown->set_fault(device.fault);
    shown->set_linear_mflop_per_s(device.profile.linear_mflop_per_s);
    shown->set_capacity_bytes(device.capacity_bytes);
    const core::DeviceLoad load = core::LoadOf(state, worker, id);
    shown->set_reserved_bytes(load.TotalBytes());
    shown->set_pinned_capacity_bytes(device.profile.pinned_capacity_bytes);
    shown->set_pinned_reserved_bytes(load.beside.pinned_bytes);
    shown->set_host_capacity_bytes(device.profile.host_capacity_bytes);
    shown->set_host_reserved_bytes(load.beside.host_bytes);
    shown->set_used_bytes(device.used_bytes);
    for (const std::string& base : device.resident_bases) shown->add_resident_bases(base);
    if (holding == state.holding.end()) continue;
    for (const core::AttemptKey& key : holding->second) {
      const core::Attempt* attempt = state.FindAttempt(key);
      const core::Job* job = state.FindJob(key.first);
      if (attempt == nullptr || job == nullptr || attempt->device_id != id) continue;
      if (scope.empty() || job->tenant == scope) shown->add_jobs(ResourceName("jobs", key.first));
    }
  }
}

void ToProto(const core::Suggestion& suggestion, v1::Suggestion* out) {
  out->set_field(suggestion.changes[0].field);
  out->set_value(suggestion.changes[0].value);
  for (const core::SpecChange& change : suggestion.changes) {
    v1::SpecChange* shown = out->add_changes();
    shown->set_field(change.field);
    shown->set_value(change.value);
  }
  out->set_total_bytes(suggestion.total_bytes);
  out->set_saved_bytes(suggestion.saved_bytes);
  out->set_description(suggestion.description);
  out->set_cost(suggestion.cost);
}

void ToProto(const core::DeviceFit& fit, const core::Now& now, v1::DeviceFit* out) {
  out->set_worker(ResourceName("workers", fit.worker_id));
  out->set_device(fit.device_id);
  switch (fit.verdict) {
    case core::DeviceFit::Verdict::kFitsNow: out->set_verdict(v1::DeviceFit::FITS_NOW); break;
    case core::DeviceFit::Verdict::kFitsAlone: out->set_verdict(v1::DeviceFit::FITS_ALONE); break;
    case core::DeviceFit::Verdict::kNever: out->set_verdict(v1::DeviceFit::NEVER); break;
  }
  out->set_capacity_bytes(fit.capacity_bytes);
  out->set_free_bytes(fit.free_bytes);
  out->set_shortfall_bytes(fit.shortfall_bytes);
  out->set_pinned_capacity_bytes(fit.capacity.beside.pinned_bytes);
  out->set_host_capacity_bytes(fit.capacity.beside.host_bytes);
  out->set_pinned_shortfall_bytes(fit.pinned_shortfall_bytes);
  out->set_host_shortfall_bytes(fit.host_shortfall_bytes);
  if (fit.refusal.ok()) {
    ToProto(fit.plan, out->mutable_plan());
  } else {
    out->set_refusal(std::string(fit.refusal.message()));
  }
  out->set_largest_micro_batch_size(fit.largest_micro_batch_size);
  out->set_largest_sequence_len(fit.largest_sequence_len);
  for (const core::Suggestion& s : fit.suggestions) ToProto(s, out->add_suggestions());
  const auto expect = [&](int64_t us, auto field) {
    if (us > 0) ToTimestamp(now.unix_us + us - now.monotonic_us, (out->*field)());
  };
  expect(fit.expected_start_us, &v1::DeviceFit::mutable_expected_start_time);
  expect(fit.expected_end_us, &v1::DeviceFit::mutable_expected_end_time);
}

void ToProto(const core::MethodMemory& method, v1::MethodMemory* out) {
  out->set_name(method.name);
  out->set_description(method.description);
  out->set_trained_parameters(method.trained_parameters);
  out->set_weights_bytes(method.weights_bytes);
  out->set_adapters_bytes(method.adapters_bytes);
  out->set_gradients_bytes(method.gradients_bytes);
  out->set_optimizer_bytes(method.optimizer_bytes);
  out->set_activations_bytes(method.activations_bytes);
  out->set_process_bytes(method.process_bytes);
  out->set_total_bytes(method.TotalBytes());
}

void ToProto(const spec::MemoryPlan& plan, v1::MemoryLayout* out) {
  for (const spec::PlannedBuffer& buffer : plan.buffers) {
    v1::PlannedBuffer* shown = out->add_buffers();
    shown->set_name(buffer.name);
    shown->set_category(std::string(spec::CategoryName(buffer.category)));
    shown->set_persistent(buffer.region == spec::Region::kPersistent);
    shown->set_offset(buffer.offset);
    shown->set_size_bytes(buffer.size_bytes);
    shown->set_first_use(buffer.first_use);
    shown->set_last_use(buffer.last_use);
  }
  for (const spec::PlanPhase& phase : plan.phases) {
    v1::PlanPhase* shown = out->add_phases();
    shown->set_name(phase.name);
    shown->set_first_use(phase.first_use);
  }
  out->set_operations(plan.operations);
}

}  // namespace nibble::server

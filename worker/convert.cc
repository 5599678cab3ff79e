#include "worker/convert.h"

#include <utility>

#include "base/log.h"
#include "base/outside_text.h"
#include "base/status.h"

namespace nibble::worker {
namespace {

FileRef FromBlob(const v1::BlobRef& blob) {
  return {blob.name(), blob.sha256(), blob.size_bytes()};
}

void ToBlob(const FileRef& file, v1::BlobRef* blob) {
  blob->set_name(file.name);
  blob->set_sha256(file.sha256);
  blob->set_size_bytes(file.size_bytes);
}

void ToMetric(const StepMetric& m, v1::StepMetric* out) {
  out->set_step(m.step);
  out->set_loss(m.loss);
  out->set_gradient_norm(m.gradient_norm);
  out->set_learning_rate(m.learning_rate);
  out->set_tokens(m.tokens);
  out->set_target_tokens(m.target_tokens);
  out->set_step_time_us(m.step_time_us);
  out->set_time_us(m.time_us);
  if (m.eval_loss) out->set_eval_loss(*m.eval_loss);
  out->set_used_bytes(m.used_bytes);
  out->set_epoch_fraction(m.epoch_fraction);
  if (m.phase_us == spec::StepPhaseTimes{}) return;
  v1::StepPhases* phases = out->mutable_phases();
  const auto us = [&](spec::StepPhase phase) { return m.phase_us[static_cast<size_t>(phase)]; };
  phases->set_linear_us(us(spec::StepPhase::kLinear));
  phases->set_attention_us(us(spec::StepPhase::kAttention));
  phases->set_elementwise_us(us(spec::StepPhase::kElementwise));
  phases->set_loss_us(us(spec::StepPhase::kLoss));
  phases->set_optimizer_us(us(spec::StepPhase::kOptimizer));
  phases->set_data_us(us(spec::StepPhase::kData));
}

struct BodyWriter {
  v1::ReportProgressRequest& out;
  void operator()(const std::monostate&) const {}
  void operator()(const PlanReport& r) const {
    out.mutable_plan()->set_planned_steps(r.planned_steps);
    out.mutable_plan()->set_plan_json(r.plan_json);
    out.mutable_plan()->set_numerics_id(r.numerics_id);
  }
  void operator()(const CheckpointReport& r) const {
    auto* c = out.mutable_checkpoint();
    c->set_step(r.step);
    for (const FileRef& file : r.files) ToBlob(file, c->add_files());
    c->set_manifest_sha256(r.manifest_sha256);
    c->set_loss(r.loss);
  }
  void operator()(const FinishedReport& r) const {
    auto* f = out.mutable_finished();
    for (const FileRef& file : r.files) ToBlob(file, f->add_files());
    f->set_step(r.step);
    f->set_stop_reason(r.stop_reason);
  }
  void operator()(const FailedReport& r) const {
    auto* f = out.mutable_failed();
    f->set_reason(r.reason);
    // It may end with what stood in a log: protobuf carries UTF-8 only, and a report that the server cannot
    // read is sent for ever.
    f->set_message(RepairUtf8(r.message));
    f->set_infrastructure(r.infrastructure);
    f->set_neighbour_fault(r.neighbour_fault);
    f->set_all_checkpoints(r.all_checkpoints);
  }
  void operator()(const CheckReport& r) const {
    out.mutable_check()->set_report_json(r.report_json);
    out.mutable_check()->set_planned_steps(r.planned_steps);
  }
  void operator()(const ReleasedReport& r) const { out.mutable_released()->set_step(r.step); }
};

}  // namespace

v1::RegisterRequest ToProto(const WorkerIdentity& identity, const DoRegister& action) {
  v1::RegisterRequest out;
  out.set_worker_id(identity.worker_id);
  out.set_incarnation(identity.incarnation);
  out.set_version(identity.version);
  out.set_generation_seen(action.generation_seen);
  out.set_timeline_seen(action.timeline_seen);
  out.set_shares_file_system(identity.shares_file_system);
  for (const DeviceInfo& device : identity.devices) {
    auto* d = out.add_devices();
    d->set_id(device.id);
    d->set_backend(device.profile.backend);
    d->set_body(device.profile.body);
    d->set_description(device.description);
    d->set_uuid(device.uuid);
    d->set_capacity_bytes(device.profile.capacity_bytes);
    d->set_profile_json(spec::DeviceProfileToJson(device.profile));
  }
  return out;
}

v1::SynchronizeRequest ToProto(const WorkerIdentity& identity, const DoSynchronize& action) {
  v1::SynchronizeRequest out;
  out.set_worker_id(identity.worker_id);
  out.set_incarnation(identity.incarnation);
  out.set_generation_seen(action.generation_seen);
  out.set_known_revision(action.request.known_revision);
  out.set_draining(action.request.draining);
  out.set_no_room(RepairUtf8(action.request.no_room));
  for (const RunningAttempt& a : action.request.attempts) {
    auto* r = out.add_attempts();
    r->set_job_id(a.key.job_id);
    r->set_epoch(a.key.epoch);
    r->set_device_id(a.device_id);
    r->set_phase(static_cast<v1::AttemptPhase>(a.phase));
    r->set_step(a.step);
    r->set_used_bytes(a.used_bytes);
    r->set_intact(a.intact);
    r->set_trouble(RepairUtf8(a.trouble));
  }
  for (const DeviceStatus& status : action.request.devices) {
    auto* d = out.add_devices();
    d->set_device_id(status.device_id);
    d->set_used_bytes(status.used_bytes);
    for (const std::string& base : status.resident_bases) d->add_resident_bases(base);
    d->set_fault(RepairUtf8(status.fault));
  }
  return out;
}

v1::Fence FenceOf(const WorkerIdentity& identity, const AttemptKey& key, const std::string& token) {
  v1::Fence fence;
  fence.set_job_id(key.job_id);
  fence.set_epoch(key.epoch);
  fence.set_worker_id(identity.worker_id);
  fence.set_incarnation(identity.incarnation);
  fence.set_token(token);
  return fence;
}

v1::ReportProgressRequest ToProto(const WorkerIdentity& identity, const DoReport& action) {
  v1::ReportProgressRequest out;
  *out.mutable_fence() = FenceOf(identity, action.report.key, action.report.token);
  out.set_generation_seen(action.generation_seen);
  for (const StepMetric& metric : action.report.metrics) ToMetric(metric, out.add_metrics());
  std::visit(BodyWriter{out}, action.report.body);
  return out;
}

RegisterReply FromProto(const v1::RegisterResponse& response) {
  RegisterReply reply;
  reply.ok = true;
  reply.timeline = response.timeline();
  reply.generation = response.generation();
  reply.lease_lost_us = response.lease_lost_ms() * 1000;
  return reply;
}

absl::StatusOr<Assignment> FromProto(const v1::Assignment& in) {
  Assignment a;
  a.key = {in.job_id(), in.epoch()};
  a.token = in.token();
  a.continues_epoch = in.continues_epoch();
  a.device_id = in.device_id();
  a.kind = in.kind() == v1::Assignment::CHECK ? Kind::kCheck : Kind::kTrain;
  a.want =
      in.want() == v1::Assignment::WANT_UNSPECIFIED ? Want::kRun : static_cast<Want>(in.want());
  ASSIGN_OR_RETURN(a.spec, spec::TrainSpecFromJson(in.spec_json()));
  a.spec_json = in.spec_json();
  a.base_digest = in.base_digest();
  for (const auto& file : in.base_files()) a.base_files.push_back(FromBlob(file));
  a.base_path = in.base_path();
  if (in.has_dataset()) a.dataset = FromBlob(in.dataset());
  a.dataset_path = in.dataset_path();
  if (in.has_eval_dataset()) a.eval_dataset = FromBlob(in.eval_dataset());
  a.eval_dataset_path = in.eval_dataset_path();
  for (const auto& file : in.checkpoint_files()) a.checkpoint_files.push_back(FromBlob(file));
  a.checkpoint_step = in.checkpoint_step();
  a.planned_persistent_bytes = in.planned_persistent_bytes();
  a.planned_step_bytes = in.planned_step_bytes();
  a.planned_base_bytes = in.planned_base_bytes();
  a.numerics_id = in.numerics_id();
  a.run_alone = in.run_alone();
  a.display_name = in.display_name();
  a.priority = in.priority();
  a.base_display_name = in.base_display_name();
  return a;
}

SynchronizeReply FromProto(int64_t id, const v1::SynchronizeResponse& response) {
  SynchronizeReply reply;
  reply.id = id;
  reply.code = response.register_again() ? SynchronizeReply::Code::kRegisterAgain
                                         : SynchronizeReply::Code::kOk;
  reply.timeline = response.timeline();
  reply.generation = response.generation();
  reply.revision = response.revision();
  for (const auto& assignment : response.assignments()) {
    auto read = FromProto(assignment);
    if (read.ok()) {
      reply.assignments.push_back(std::move(*read));
    } else {
      LogError("assignment.unreadable", {{"job", assignment.job_id()},
                                         {"epoch", assignment.epoch()},
                                         {"why", std::string(read.status().message())}});
    }
  }
  return reply;
}

}  // namespace nibble::worker

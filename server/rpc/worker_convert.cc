#include "server/rpc/worker_convert.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/outside_text.h"
#include "base/status.h"

namespace nibble::server {
namespace {

namespace wv1 = worker::v1;

constexpr size_t kMaxFaultBytes = 1'000;
// What an engine takes before it holds anything is measured at each start, to the page. Counted in these,
// equal machines have equal profiles: one plan for all of them, one block of the scheduler's board.
constexpr int64_t kFixedUnitBytes = int64_t{4} << 20;
// What workers count goes into sums and products of 64 bits; nothing real is beyond these.
constexpr int64_t kMostSteps = int64_t{1} << 30;
constexpr int64_t kMostInStep = int64_t{1} << 40;  // tokens, microseconds
constexpr int64_t kMostInAll = int64_t{1} << 60;   // bytes, microseconds since 1970

int64_t UpTo(int64_t most, int64_t told) { return std::clamp<int64_t>(told, 0, most); }

template <typename Refs>
std::vector<core::FileRef> ReadFiles(const Refs& refs) {
  std::vector<core::FileRef> files;
  for (const wv1::BlobRef& ref : refs) files.push_back({ref.name(), ref.sha256(), ref.size_bytes()});
  return files;
}

void Fill(const core::FileRef& file, wv1::BlobRef* out) {
  out->set_name(file.name);
  out->set_sha256(file.sha256);
  out->set_size_bytes(file.size_bytes);
}

}  // namespace

absl::StatusOr<core::RegisterWorker> ReadRegister(const wv1::RegisterRequest& in) {
  core::RegisterWorker out;
  out.worker_id = in.worker_id();
  out.incarnation = in.incarnation();
  out.version = in.version();
  out.shares_file_system = in.shares_file_system();
  out.generation_seen = in.generation_seen();
  out.timeline_seen = in.timeline_seen();
  for (int i = 0; i < in.devices_size(); ++i) {
    const wv1::DeviceProfile& device = in.devices(i);
    auto profile = spec::DeviceProfileFromJson(device.profile_json());
    if (!profile.ok()) {
      return Error::Field(Reason::kSpecInvalid, absl::StrCat("devices[", i, "].profile_json"),
                          absl::StrCat("is no device profile: ", profile.status().message()))
          .ToStatus();
    }
    core::Device& added = out.devices.emplace_back();
    added.id = device.id();
    added.backend = device.backend();
    added.body = device.body();
    added.description = device.description();
    added.uuid = device.uuid();
    added.capacity_bytes = UpTo(kMostInAll, device.capacity_bytes());
    added.profile = *std::move(profile);
    added.profile_json = device.profile_json();
    int64_t& fixed = added.profile.fixed_bytes;
    if (fixed <= kMostInAll) fixed = (fixed + kFixedUnitBytes - 1) / kFixedUnitBytes * kFixedUnitBytes;
  }
  return out;
}

core::Synchronize ReadSynchronize(const wv1::SynchronizeRequest& in) {
  core::Synchronize out;
  out.worker_id = in.worker_id();
  out.incarnation = in.incarnation();
  out.generation_seen = in.generation_seen();
  out.known_revision = in.known_revision();
  out.draining = in.draining();
  out.no_room = RepairUtf8(in.no_room().substr(0, kMaxFaultBytes));
  for (const wv1::RunningAttempt& attempt : in.attempts()) {
    // A phase of a later release is a phase we know nothing about.
    const core::Phase phase = wv1::AttemptPhase_IsValid(attempt.phase())
                                  ? static_cast<core::Phase>(attempt.phase())
                                  : core::Phase::kUnspecified;
    out.attempts.push_back({attempt.job_id(), attempt.epoch(), attempt.device_id(), phase,
                            UpTo(kMostSteps, attempt.step()), UpTo(kMostInAll, attempt.used_bytes()),
                            attempt.intact(), RepairUtf8(attempt.trouble().substr(0, kMaxFaultBytes))});
  }
  for (const wv1::DeviceStatus& device : in.devices()) {
    out.devices.push_back({device.device_id(), UpTo(kMostInAll, device.used_bytes()),
                           {device.resident_bases().begin(), device.resident_bases().end()},
                           RepairUtf8(device.fault().substr(0, kMaxFaultBytes))});
  }
  return out;
}

core::Fence ReadFence(const wv1::Fence& in) {
  return {in.job_id(), in.epoch(), in.worker_id(), in.incarnation(), in.token()};
}

std::vector<store::StepMetric> ReadMetrics(const wv1::ReportProgressRequest& in) {
  std::vector<store::StepMetric> out;
  for (const wv1::StepMetric& metric : in.metrics()) {
    store::StepMetric& added = out.emplace_back();
    added.step = UpTo(kMostSteps, metric.step());
    added.epoch = in.fence().epoch();
    added.loss = metric.loss();
    added.gradient_norm = metric.gradient_norm();
    added.learning_rate = metric.learning_rate();
    added.tokens = UpTo(kMostInStep, metric.tokens());
    added.target_tokens = UpTo(kMostInStep, metric.target_tokens());
    added.step_time_us = UpTo(kMostInStep, metric.step_time_us());
    added.time_unix_us = UpTo(kMostInAll, metric.time_us());
    if (metric.has_eval_loss()) added.eval_loss = metric.eval_loss();
    added.used_bytes = UpTo(kMostInAll, metric.used_bytes());
    added.epoch_fraction = metric.epoch_fraction();
    if (metric.has_phases()) {
      const wv1::StepPhases& p = metric.phases();
      added.phase_us = {p.linear_us(), p.attention_us(), p.elementwise_us(),
                        p.loss_us(),   p.optimizer_us(), p.data_us()};
      for (int64_t& time_us : added.phase_us) time_us = UpTo(kMostInStep, time_us);
    }
  }
  return out;
}

std::optional<core::CommandBody> ReadReport(const wv1::ReportProgressRequest& in) {
  const core::Fence fence = ReadFence(in.fence());
  switch (in.report_case()) {
    case wv1::ReportProgressRequest::kPlan:
      return core::ReportPlan{fence, UpTo(kMostSteps, in.plan().planned_steps()), in.plan().plan_json(),
                              in.plan().numerics_id()};
    case wv1::ReportProgressRequest::kCheckpoint:
      return core::ReportCheckpoint{fence, UpTo(kMostSteps, in.checkpoint().step()),
                                    ReadFiles(in.checkpoint().files()),
                                    in.checkpoint().manifest_sha256(), in.checkpoint().loss()};
    case wv1::ReportProgressRequest::kFinished:
      return core::ReportFinished{fence, UpTo(kMostSteps, in.finished().step()),
                                  ReadFiles(in.finished().files()), in.finished().stop_reason()};
    case wv1::ReportProgressRequest::kFailed:
      return core::ReportFailed{fence, in.failed().reason(), in.failed().message(),
                                in.failed().infrastructure(), in.failed().neighbour_fault(),
                                in.failed().all_checkpoints()};
    case wv1::ReportProgressRequest::kCheck:
      return core::ReportCheck{fence, in.check().report_json(),
                               UpTo(kMostSteps, in.check().planned_steps())};
    case wv1::ReportProgressRequest::kReleased:
      return core::ReportReleased{fence, UpTo(kMostSteps, in.released().step())};
    case wv1::ReportProgressRequest::REPORT_NOT_SET:
      break;
  }
  return std::nullopt;
}

namespace {

void FillDataset(const core::Dataset* dataset, bool shares_file_system, wv1::BlobRef* blob,
                 std::string* path) {
  if (!dataset) return;
  Fill({dataset->id, dataset->sha256, dataset->size_bytes}, blob);
  if (shares_file_system) *path = dataset->path;
}

}  // namespace

void ToProto(const core::Assignment& assignment, bool shares_file_system, wv1::Assignment* out) {
  const core::Job& job = *assignment.job;
  const core::Attempt& attempt = *assignment.attempt;
  out->set_job_id(job.id);
  out->set_epoch(attempt.epoch);
  out->set_token(assignment.token);
  out->set_continues_epoch(attempt.continues_epoch);
  out->set_device_id(attempt.device_id);
  out->set_kind(static_cast<wv1::Assignment::Kind>(job.kind));
  out->set_want(static_cast<wv1::Assignment::Want>(assignment.want));
  out->set_spec_json(spec::TrainSpecToJson(core::SpecWith(job, attempt.plan)));
  if (const core::Model* model = assignment.model) {
    out->set_base_digest(model->digest);
    for (const core::FileRef& file : model->files) Fill(file, out->add_base_files());
    if (shares_file_system) out->set_base_path(model->root_path);
    out->set_base_display_name(model->display_name.empty() ? model->id : model->display_name);
  }
  FillDataset(assignment.dataset, shares_file_system, out->mutable_dataset(), out->mutable_dataset_path());
  if (assignment.eval_dataset) {
    FillDataset(assignment.eval_dataset, shares_file_system, out->mutable_eval_dataset(),
                out->mutable_eval_dataset_path());
  }
  if (const core::Checkpoint* checkpoint = assignment.resume) {
    for (const core::FileRef& file : checkpoint->files) Fill(file, out->add_checkpoint_files());
    out->set_checkpoint_step(checkpoint->step);
  }
  out->set_planned_base_bytes(attempt.plan.base_bytes);
  out->set_planned_persistent_bytes(attempt.plan.persistent_bytes);
  out->set_planned_step_bytes(attempt.plan.step_bytes);
  out->set_numerics_id(job.numerics_id);
  out->set_run_alone(attempt.run_alone);
  out->set_display_name(job.display_name.empty() ? job.id : job.display_name);
  out->set_priority(job.priority);
}

bool FenceHolds(const core::State& state, const core::CoreOptions& options, const core::Fence& fence) {
  const core::Job* job = state.FindJob(fence.job_id);
  const core::Attempt* attempt = job ? job->Current() : nullptr;
  if (!attempt || attempt->epoch != fence.epoch || attempt->worker_id != fence.worker_id ||
      attempt->incarnation != fence.incarnation) {
    return false;
  }
  return fence.token == core::AttemptToken(options, state, fence.job_id, fence.epoch, fence.worker_id,
                                           fence.incarnation);
}

}  // namespace nibble::server

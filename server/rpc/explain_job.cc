// JobService.ExplainJob: why a job waits, device by device, and what would let it start.
#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "base/id.h"
#include "base/status.h"
#include "server/core/job_explanation.h"
#include "server/plan_desk.h"
#include "server/rpc/call.h"
#include "server/rpc/convert.h"
#include "server/rpc/job_request.h"
#include "server/rpc/job_service.h"

namespace nibble::server {
namespace {

constexpr int32_t kDefaultDevices = 100;
constexpr size_t kMaxCounterfactuals = 5;

// Copied out of the loop.
struct Explained {
  core::Now now;
  core::Job job;
  core::JobExplanation why;
  std::optional<core::Model> model;  // when changes are to be looked for
  std::optional<core::Excerpt> excerpt;
};

v1::DeviceExplanation::Verdict VerdictOf(core::DeviceVerdict::Kind kind) {
  using Kind = core::DeviceVerdict::Kind;
  switch (kind) {
    case Kind::kFits: return v1::DeviceExplanation::FITS;
    case Kind::kNotLive: return v1::DeviceExplanation::AWAY;
    case Kind::kNumerics: return v1::DeviceExplanation::OTHER_NUMERICS;
    case Kind::kNoPlan: return v1::DeviceExplanation::NO_PLAN;
    case Kind::kNever: return v1::DeviceExplanation::TOO_SMALL;
    case Kind::kBytes: return v1::DeviceExplanation::NO_BYTES;
    case Kind::kAttempts: return v1::DeviceExplanation::NO_PLACE;
    case Kind::kLoad: return v1::DeviceExplanation::BUSY;
    case Kind::kReserved: return v1::DeviceExplanation::RESERVED;
  }
  return v1::DeviceExplanation::VERDICT_UNSPECIFIED;
}

// Monotonic to wall clock.
int64_t UnixOf(const core::Now& now, int64_t monotonic_us) {
  return now.unix_us + (monotonic_us - now.monotonic_us);
}

absl::Status Explain(const Outcome& outcome, const std::string& id, const std::string& scope,
                     size_t shown, Explained& out) {
  const core::State& state = outcome.state;
  ASSIGN_OR_RETURN(const core::Job* job, FindJob(state, id, scope));
  out.now = outcome.now;
  out.job = *job;
  core::QueueLook look(state, outcome.core, outcome.now.monotonic_us, scope);
  out.why = core::ExplainJob(*job, look, shown);
  const bool lacks_bytes =
      std::none_of(out.why.devices.begin(), out.why.devices.end(), [](const auto& d) {
        return d.verdict.kind == core::DeviceVerdict::Kind::kFits;
      });
  const core::Model* model = state.ModelOf(*job);
  if (out.why.devices.empty() || !lacks_bytes || model == nullptr) return absl::OkStatus();
  out.model = *model;
  out.excerpt.emplace(*model);
  return absl::OkStatus();
}

void Show(const core::DeviceExplanation& d, const core::Now& now, v1::DeviceExplanation* out) {
  out->set_worker(ResourceName("workers", d.worker_id));
  out->set_device(d.device_id);
  out->set_verdict(VerdictOf(d.verdict.kind));
  out->set_needed_bytes(d.verdict.needed_bytes);
  out->set_free_bytes(d.verdict.free_bytes);
  out->set_capacity_bytes(d.verdict.capacity_bytes);
  out->set_attempts(d.verdict.attempts);
  out->set_load_milli(d.verdict.load_milli);
  out->set_speed_percent(d.verdict.speed_percent);
  for (const std::string& job : d.held_by) out->add_held_by(job);
  out->set_reserved_for(d.reserved_for);
  out->set_refusal(d.refusal);
  if (d.start_us > 0) ToTimestamp(UnixOf(now, d.start_us), out->mutable_expected_start_time());
  for (const std::string& job : d.until) out->add_until(job);
}

absl::Status Answer(Edge& edge, Explained& in, size_t most, v1::ExplainJobResponse* out) {
  const core::JobExplanation& why = in.why;
  out->set_name(ResourceName("jobs", in.job.id));
  out->set_state(static_cast<v1::JobState>(in.job.state));
  out->set_state_reason(why.reason);
  out->set_queue_position(why.position);
  out->set_priority(in.job.priority);
  ToTimestamp(in.job.queued_unix_us, out->mutable_queued_time());
  out->set_overdue(why.overdue);
  out->set_over_quota(why.over_quota);
  out->set_backing_off(why.backing_off);
  out->set_project(in.job.tenant);
  out->set_project_share(static_cast<double>(why.share_millionths) / 1e6);
  out->set_before(why.before);
  out->set_before_at(why.before_at);
  out->set_devices_total(static_cast<int32_t>(why.devices.size()));
  const size_t shown = std::min(most, why.devices.size());
  for (size_t i = 0; i < shown; ++i) Show(why.devices[i], in.now, out->add_devices());
  if (!in.model) return absl::OkStatus();
  const core::State fleet = (*std::move(in.excerpt)).Take(in.now.monotonic_us);
  for (const core::Counterfactual& c : edge.plans->WhatWouldStart(
           fleet, in.job, *in.model, why.devices, kMaxCounterfactuals)) {
    v1::Counterfactual* shown_change = out->add_counterfactuals();
    ToProto(c.change, shown_change->mutable_change());
    shown_change->set_worker(ResourceName("workers", c.worker_id));
    shown_change->set_device(c.device_id);
  }
  return absl::OkStatus();
}

}  // namespace

grpc::ServerUnaryReactor* JobServiceImpl::ExplainJob(Context* context,
                                                     const v1::ExplainJobRequest* request,
                                                     v1::ExplainJobResponse* response) {
  const auto body = [=, this](const Caller& caller, Done done) {
    auto id = ParseName(request->name(), "jobs", "name");
    if (!id.ok()) return done(id.status());
    auto explained = std::make_shared<Explained>();
    const auto shown =
        static_cast<size_t>(request->max_devices() > 0 ? request->max_devices() : kDefaultDevices);
    const auto read = [=, this, id = *std::move(id),
                       scope = caller.Scope()](const Outcome& outcome) {
      const absl::Status status = Explain(outcome, id, scope, shown, *explained);
      if (!status.ok()) return done(status);
      const auto answer = [=, this] {
        OnWork(edge_, done, [=, this] { done(Answer(edge_, *explained, shown, response)); });
      };
      if (!explained->excerpt) return answer();
      CopyExcerpt(edge_, done, outcome, *explained->excerpt, answer);
    };
    if (!edge_.loop->Read(read)) done(Busy(edge_));
  };
  return Unary(edge_, context, "/nibble.v1.JobService/ExplainJob", body);
}

}  // namespace nibble::server

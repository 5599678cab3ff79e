// JobService: plans and the past.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/id.h"
#include "base/status.h"
#include "server/core/views.h"
#include "server/plan_desk.h"
#include "server/rpc/call.h"
#include "server/rpc/convert.h"
#include "server/rpc/convert_spec.h"
#include "server/rpc/job_request.h"
#include "server/rpc/job_service.h"
#include "server/rpc/page.h"

namespace nibble::server {
namespace {

constexpr int64_t kDefaultPoints = 1000;
// As many as fit a message of 4 MiB, which is what clients take unless told otherwise.
constexpr int64_t kMaxPoints = 30'000;

// What a plan is made of, copied out of the loop.
struct PlanInput {
  JobParts parts;
  core::Model model;
  core::State excerpt;
};

absl::Status FindPlanParts(const core::State& state, PlanInput& input) {
  const auto model = state.models.find(input.parts.model_id);
  if (model == state.models.end()) {
    return Error::Field(Reason::kBaseModelNotFound, "spec.base_model",
                        absl::StrCat("names models/", input.parts.model_id,
                                     ", which does not exist; register it first"));
  }
  for (const auto& [id, field] : {std::pair{input.parts.dataset_id, "spec.dataset"},
                                  {input.parts.eval_dataset_id, "spec.eval_dataset"}}) {
    if (!id.empty() && !state.datasets.contains(id)) {
      return Error::Field(Reason::kDatasetNotFound, field,
                          absl::StrCat("names datasets/", id, ", which does not exist; create it first"));
    }
  }
  input.model = model->second;
  input.excerpt = PlanningExcerpt(state);
  return absl::OkStatus();
}

absl::Status AnswerPlan(Edge& edge, const v1::JobSpec& given, PlanInput& input,
                        v1::PlanJobResponse* response) {
  ASSIGN_OR_RETURN(spec::TrainSpec resolved,
                   spec::ResolveTrainSpec(input.parts.spec, input.model.config));
  ASSIGN_OR_RETURN(resolved.recompute, spec::ChooseRecompute(input.model.config, resolved,
                                                             core::KnownDevices(input.excerpt)));
  *response->mutable_effective_spec() = ToJobSpec(resolved);
  response->mutable_effective_spec()->set_base_model(given.base_model());
  response->mutable_effective_spec()->set_dataset(given.dataset());
  response->mutable_effective_spec()->set_eval_dataset(given.eval_dataset());
  ASSIGN_OR_RETURN(const PlanDesk::Answer answer,
                   edge.plans->Plan(input.excerpt, input.model, resolved));
  for (const core::DeviceFit& fit : answer.devices.fits) ToProto(fit, response->add_fits());
  for (const core::DeviceFit& fit : answer.cards) {
    v1::DeviceFit* shown = response->add_fits();
    ToProto(fit, shown);
    shown->set_worker(fit.worker_id);  // a known card is no resource
  }
  const bool no_workers = answer.devices.fits.empty();
  for (const core::Suggestion& s :
       no_workers ? answer.card_suggestions : answer.devices.suggestions) {
    v1::Suggestion* shown = response->add_suggestions();
    shown->set_field(s.field);
    shown->set_value(s.value);
    shown->set_total_bytes(s.total_bytes);
    shown->set_description(s.description);
  }
  if (no_workers) response->add_notices("no worker is registered; only known cards are shown");
  response->add_notices("steps and time are known once the data set was checked with this model's tokenizer");
  return absl::OkStatus();
}

}  // namespace

grpc::ServerUnaryReactor* JobServiceImpl::PlanJob(Context* context, const v1::PlanJobRequest* request,
                                                  v1::PlanJobResponse* response) {
  return Unary(edge_, context, "/nibble.v1.JobService/PlanJob", [=, this](const Caller&, Done done) {
    // A plan needs no data: only the model's shape and the spec.
    v1::JobSpec spec = request->spec();
    if (spec.dataset().empty()) spec.set_dataset("datasets/none");
    auto parts = ReadJobSpec(spec);
    if (!parts.ok()) return done(parts.status());
    if (request->spec().dataset().empty()) parts->dataset_id.clear();
    auto input = std::make_shared<PlanInput>();
    input->parts = *std::move(parts);
    const bool posted = edge_.loop->Read([=, this](const Outcome& outcome) {
      const absl::Status status = FindPlanParts(outcome.state, *input);
      if (!status.ok()) return done(status);
      OnWork(edge_, done, [=, this] {
        done(UnderSpec(AnswerPlan(edge_, request->spec(), *input, response)));
      });
    });
    if (!posted) done(Busy(edge_));
  });
}

grpc::ServerUnaryReactor* JobServiceImpl::ListJobEvents(Context* context,
                                                        const v1::ListJobEventsRequest* request,
                                                        v1::ListJobEventsResponse* response) {
  const auto body = [=, this](const Caller&, Done done) {
    auto id = ParseName(request->name(), "jobs", "name");
    if (!id.ok()) return done(id.status());
    auto size = PageSize(request->page_size());
    if (!size.ok()) return done(size.status());
    const auto read = [=, this, id = *id, size = *size]() -> absl::Status {
      ASSIGN_OR_RETURN(const auto events, edge_.history->Events(id, request->after_sequence(), size));
      for (const core::EventRecord& event : events) ToProto(event, response->add_events());
      return absl::OkStatus();
    };
    const bool posted = edge_.loop->Read([=, this, id = *id](const Outcome& outcome) {
      const auto job = FindJob(outcome.state, id);
      if (!job.ok()) return done(job.status());
      OnIo(edge_, done, [=] { done(read()); });
    });
    if (!posted) done(Busy(edge_));
  };
  return Unary(edge_, context, "/nibble.v1.JobService/ListJobEvents", body);
}

grpc::ServerUnaryReactor* JobServiceImpl::QueryMetrics(Context* context,
                                                       const v1::QueryMetricsRequest* request,
                                                       v1::QueryMetricsResponse* response) {
  const auto body = [=, this](const Caller&, Done done) {
    auto id = ParseName(request->name(), "jobs", "name");
    if (!id.ok()) return done(id.status());
    if (request->max_points() < 0 || request->after_step() < 0 || request->until_step() < 0) {
      return done(Error::Field(Reason::kSpecInvalid, "max_points",
                               "and the steps must not be negative"));
    }
    const int64_t points = request->max_points() == 0
                               ? kDefaultPoints
                               : std::min<int64_t>(request->max_points(), kMaxPoints);
    const auto read = [=, this, id = *id]() -> absl::Status {
      const int64_t after_step = request->has_after_step() ? request->after_step() : -1;
      ASSIGN_OR_RETURN(const auto metrics,
                       edge_.history->Metrics(id, after_step, request->until_step(), points));
      for (const store::StepMetric& metric : metrics) ToProto(metric, response->add_points());
      return absl::OkStatus();
    };
    const bool posted = edge_.loop->Read([=, this, id = *id](const Outcome& outcome) {
      const auto job = FindJob(outcome.state, id);
      if (!job.ok()) return done(job.status());
      OnIo(edge_, done, [=] { done(read()); });
    });
    if (!posted) done(Busy(edge_));
  };
  return Unary(edge_, context, "/nibble.v1.JobService/QueryMetrics", body);
}

grpc::ServerUnaryReactor* JobServiceImpl::ListCheckpoints(Context* context,
                                                          const v1::ListCheckpointsRequest* request,
                                                          v1::ListCheckpointsResponse* response) {
  const auto body = [=, this](const Caller&, Done done) {
    auto id = ParseName(request->name(), "jobs", "name");
    if (!id.ok()) return done(id.status());
    ReadState(edge_, done, [response, id = *id](const Outcome& outcome) -> absl::Status {
      ASSIGN_OR_RETURN(const core::Job* job, FindJob(outcome.state, id));
      for (const core::Checkpoint& c : job->checkpoints) ToProto(c, response->add_checkpoints());
      return absl::OkStatus();
    });
  };
  return Unary(edge_, context, "/nibble.v1.JobService/ListCheckpoints", body);
}

}  // namespace nibble::server

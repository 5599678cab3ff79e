// JobService.PlanJob: what a job would need and where it would fit. Nothing is created.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/status.h"
#include "server/core/data_format.h"
#include "server/plan_desk.h"
#include "server/rpc/call.h"
#include "server/rpc/convert.h"
#include "server/rpc/convert_spec.h"
#include "server/rpc/job_request.h"
#include "server/rpc/job_service.h"

namespace nibble::server {
namespace {

constexpr size_t kMaxConfigBytes = size_t{1} << 20;

// What a plan is made of, copied out of the loop.
struct PlanInput {
  JobParts parts;
  PlanDesk::Question question;
  core::Now now;
  std::optional<core::Excerpt> excerpt;
};

// A model nobody registered: its shape is all a plan needs.
absl::StatusOr<core::Model> InlineModel(const v1::PlanJobRequest& request) {
  const std::string& json = request.model_config_json();
  if (!request.spec().base_model().empty()) {
    return Error::Field(Reason::kSpecInvalid, "model_config_json",
                        "and spec.base_model are both set; keep one of them")
        .ToStatus();
  }
  if (json.size() > kMaxConfigBytes) {
    return Error::Field(Reason::kRequestTooLarge, "model_config_json",
                        absl::StrCat("has ", json.size(), " bytes, at most ", kMaxConfigBytes,
                                     "; give the model's config.json"))
        .ToStatus();
  }
  core::Model model;
  ASSIGN_OR_RETURN(model.config, spec::ParseModelConfig(json));
  model.digest = Sha256Hex(json);
  model.config_json = json;
  return model;
}

absl::StatusOr<PlanInput> ReadPlan(const v1::PlanJobRequest& request) {
  PlanInput input;
  // A plan needs no data, and of the model only its shape.
  v1::JobSpec spec = request.spec();
  if (spec.dataset().empty()) spec.set_dataset("datasets/none");
  if (!request.model_config_json().empty()) {
    ASSIGN_OR_RETURN(input.question.model, InlineModel(request));
    spec.set_base_model("models/inline");
  }
  ASSIGN_OR_RETURN(input.parts, ReadJobSpec(spec));
  if (request.spec().dataset().empty()) input.parts.dataset_id.clear();
  input.question.methods = request.methods();
  input.question.layout = request.layout();
  input.question.shown = request.layout_worker();
  if (input.question.shown.starts_with("workers/")) input.question.shown.erase(0, 8);
  return input;
}

absl::StatusOr<const core::Dataset*> FindDataset(const core::State& state, const std::string& id,
                                                 const char* field, const std::string& scope) {
  if (id.empty()) return nullptr;
  const auto it = state.datasets.find(id);
  if (it != state.datasets.end() && Sees(scope, it->second.tenant)) return &it->second;
  return Error::Field(Reason::kDatasetNotFound, field,
                      absl::StrCat("names datasets/", id, ", which does not exist; create it first"))
      .ToStatus();
}

// On the loop's thread: names become things.
absl::Status FillPlan(const Outcome& outcome, const std::string& scope, PlanInput& input) {
  const core::State& state = outcome.state;
  PlanDesk::Question& q = input.question;
  if (q.model.digest.empty()) {
    const auto model = state.models.find(input.parts.model_id);
    if (model == state.models.end()) {
      return Error::Field(Reason::kBaseModelNotFound, "spec.base_model",
                          absl::StrCat("names models/", input.parts.model_id,
                                       ", which does not exist; register it first"));
    }
    q.model = model->second;
  }
  ASSIGN_OR_RETURN(const core::Dataset* dataset,
                   FindDataset(state, input.parts.dataset_id, "spec.dataset", scope));
  ASSIGN_OR_RETURN(const core::Dataset* eval_dataset,
                   FindDataset(state, input.parts.eval_dataset_id, "spec.eval_dataset", scope));
  ASSIGN_OR_RETURN(q.fit.spec, spec::ResolveTrainSpec(input.parts.spec, q.model.config));
  RETURN_IF_ERROR(core::CheckDataFormat(q.fit.spec, dataset, eval_dataset));
  if (dataset != nullptr) {
    q.fit.spec.data_rows = dataset->rows + (eval_dataset != nullptr ? eval_dataset->rows : 0);
  }
  input.excerpt.emplace(q.model);
  input.now = outcome.now;
  q.fit.now_us = outcome.now.monotonic_us;
  if (dataset != nullptr && !q.model.tokenizer_digest.empty()) {
    const auto check = state.checks.find(core::CheckKey(*dataset, eval_dataset, q.model, q.fit.spec));
    const core::Job* job = check == state.checks.end() ? nullptr : state.FindJob(check->second);
    if (job != nullptr && job->state == core::JobState::kSucceeded) {
      q.fit.planned_steps = job->progress.planned_steps;
    }
  }
  return absl::OkStatus();
}

void ShowNotices(const PlanInput& input, const PlanDesk::Answer& answer, v1::PlanJobResponse* response) {
  if (answer.devices.fits.empty()) {
    response->add_notices("no worker is registered; only known cards are shown");
  }
  response->add_notices(
      absl::StrCat("card-24gb and the like are cards to compare with, planned with CUDA kernels and ",
                   core::HumanBytes(core::kCardProcessBytes),
                   " for context and libraries; a worker measures its own when it starts"));
  if (input.question.fit.any_recompute) {
    response->add_notices(
        "recomputation is left to the server: each card is planned with as little as it has room for");
  }
  if (input.question.fit.planned_steps == 0) {
    response->add_notices(
        "how long it would take is known once a worker has read the data set (nibble validate)");
  }
  const auto& fits = answer.devices.fits;
  if (std::any_of(fits.begin(), fits.end(), [](const core::DeviceFit& fit) { return fit.end_is_scaled; })) {
    response->add_notices("ends are scaled from other jobs' steps: nothing like this one was measured yet");
  }
}

absl::Status AnswerPlan(Edge& edge, const v1::PlanJobRequest& request, PlanInput& input,
                        v1::PlanJobResponse* response) {
  const core::State fleet = (*std::move(input.excerpt)).Take(input.now.monotonic_us);
  core::FitQuestion& fit = input.question.fit;
  fit.any_recompute = fit.spec.recompute == spec::Recompute::kAuto;
  ASSIGN_OR_RETURN(const PlanDesk::Answer answer, edge.plans->Plan(fleet, input.question));
  v1::JobSpec* effective = response->mutable_effective_spec();
  *effective = ToJobSpec(answer.devices.fits.empty() ? answer.shown_spec : answer.device_spec);
  effective->set_base_model(request.spec().base_model());
  effective->set_dataset(request.spec().dataset());
  effective->set_eval_dataset(request.spec().eval_dataset());
  response->set_planned_steps(fit.planned_steps);
  for (const core::DeviceFit& device : answer.devices.fits) {
    v1::DeviceFit* shown = response->add_fits();
    ToProto(device, input.now, shown);
    shown->set_description(
        fleet.workers.at(device.worker_id).devices.at(device.device_id).description);
  }
  for (size_t i = 0; i < answer.cards.fits.size(); ++i) {
    v1::DeviceFit* shown = response->add_fits();
    ToProto(answer.cards.fits[i], input.now, shown);
    shown->set_worker(answer.cards.fits[i].worker_id);  // a known card is no resource
    shown->set_description(core::KnownCards()[i].description);
  }
  for (const core::Suggestion& s : answer.devices.suggestions) ToProto(s, response->add_suggestions());
  ShowNotices(input, answer, response);
  response->set_methods_at(answer.methods_at);
  for (const core::MethodMemory& method : answer.methods) ToProto(method, response->add_methods());
  if (answer.layout) {
    v1::MemoryLayout* layout = response->mutable_layout();
    layout->set_worker(answer.layout->worker_id);
    layout->set_device(answer.layout->device_id);
    ToProto(answer.layout->bytes, layout->mutable_plan());
    ToProto(answer.layout->plan, layout);
  }
  return absl::OkStatus();
}

}  // namespace

grpc::ServerUnaryReactor* JobServiceImpl::PlanJob(Context* context, const v1::PlanJobRequest* request,
                                                  v1::PlanJobResponse* response) {
  return Unary(edge_, context, "/nibble.v1.JobService/PlanJob", [=, this](const Caller& caller, Done done) {
    auto read = ReadPlan(*request);
    if (!read.ok()) return done(read.status());
    auto input = std::make_shared<PlanInput>(*std::move(read));
    // Until Done the call is there to be asked; its deadline cancels it, too.
    input->question.fit.unwanted = [context] { return context->IsCancelled(); };
    const bool posted = edge_.loop->Read([=, this, scope = caller.Scope()](const Outcome& outcome) {
      const absl::Status status = FillPlan(outcome, scope, *input);
      if (!status.ok()) return done(UnderSpec(status));
      CopyExcerpt(edge_, done, outcome, *input->excerpt, [=, this] {
        OnWork(edge_, done, [=, this] { done(AnswerPlan(edge_, *request, *input, response)); });
      });
    });
    if (!posted) done(Busy(edge_));
  });
}

}  // namespace nibble::server

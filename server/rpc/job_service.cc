#include "server/rpc/job_service.h"

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/id.h"
#include "base/status.h"
#include "server/core/views.h"
#include "server/plan_desk.h"
#include "server/rpc/call.h"
#include "server/rpc/convert.h"
#include "server/rpc/job_request.h"
#include "server/rpc/page.h"
#include "server/rpc/services.h"

namespace nibble::server {
namespace {

// Shows the job the command was about.
std::function<absl::Status(const Outcome&)> ShowJob(v1::Job* response, const std::string& scope) {
  return [response, scope](const Outcome& outcome) -> absl::Status {
    ASSIGN_OR_RETURN(const core::Job* job, FindJob(outcome.state, outcome.id, ""));
    JobView view(outcome.state, outcome.core, outcome.now, scope);
    ToProto(view, *job, response);
    return absl::OkStatus();
  };
}

// Cancel, pause and resume: a name in, the job out.
template <typename Verb>
void RunVerb(Edge& edge, const Caller& caller, Done done, const std::string& name, v1::Job* response) {
  auto id = ParseName(name, "jobs", "name");
  if (!id.ok()) return done(id.status());
  Command(edge, done, Verb{*std::move(id)}, ShowJob(response, caller.Scope()), caller.Scope());
}

// What CreateJob would do, without doing it.
absl::Status ValidateCreate(const Outcome& outcome, const core::CreateJob& command,
                            const std::string& scope, v1::Job* response) {
  ASSIGN_OR_RETURN(const core::Decision decision,
                   core::Decide(outcome.state, {outcome.now, command, scope}, outcome.core));
  for (const core::Event& event : decision.events) {
    if (const auto* queued = std::get_if<core::JobQueued>(&event.body)) {
      JobView view(outcome.state, outcome.core, outcome.now, scope);
      ToProto(view, queued->job, response);
      // It has no name yet, unless the user chose one.
      if (!command.job_id_given) response->clear_name();
      response->clear_uid();
      return absl::OkStatus();
    }
  }
  ASSIGN_OR_RETURN(const core::Job* job, FindJob(outcome.state, decision.id, ""));
  JobView view(outcome.state, outcome.core, outcome.now, scope);
  ToProto(view, *job, response);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<const core::Job*> FindJob(const core::State& state, const std::string& id,
                                         const std::string& scope) {
  const core::Job* job = state.FindJob(id);
  if (job != nullptr && Sees(scope, job->tenant)) return job;
  return Error(Reason::kJobNotFound, absl::StrCat("jobs/", id, " does not exist"))
      .With("name", absl::StrCat("jobs/", id))
      .ToStatus();
}

// Decides, and shows the job; NotPlanned when plans are missing and may not be compiled here.
void JobServiceImpl::TryCreate(const std::shared_ptr<core::CreateJob>& command,
                               const std::string& scope, bool validate_only, v1::Job* response,
                               const Tried& tried) {
  bool posted = false;
  if (validate_only) {
    posted = edge_.loop->Read([=](const Outcome& outcome) {
      tried(ValidateCreate(outcome, *command, scope, response), outcome);
    });
  } else {
    posted = edge_.loop->Post(
        *command,
        [=](const absl::Status& status, const Outcome& outcome) {
          tried(status.ok() ? ShowJob(response, scope)(outcome) : status, outcome);
        },
        scope);
  }
  if (!posted) tried(Busy(edge_), std::nullopt);
}

// Most jobs are like one that was planned before. For the others the plans are compiled on the pool, and the
// command comes again with them: the loop never waits for a plan.
grpc::ServerUnaryReactor* JobServiceImpl::CreateJob(Context* context,
                                                    const v1::CreateJobRequest* request,
                                                    v1::Job* response) {
  const auto body = [this, request, response](const Caller& caller, Done done) {
    auto read = ReadCreateJob(*request, caller.tenant);
    if (!read.ok()) return done(read.status());
    const auto command = std::make_shared<core::CreateJob>(*std::move(read));
    const bool validate_only = request->validate_only();
    command->plan_elsewhere = true;
    const std::string scope = caller.Scope();
    TryCreate(command, scope, validate_only, response, [=, this](const absl::Status& status, Where where) {
      if (!core::IsNotPlanned(status) || !where) return done(UnderSpec(status));
      const core::State& state = where->get().state;
      auto plan = [=, this, model = state.models.at(command->model_id),
                   rows = core::DataRows(state, *command),
                   devices = core::KnownDevices(state)] {
        command->ahead = std::make_shared<const core::PlannedAhead>(
            edge_.plans->PlanAhead(model, command->spec, rows, devices));
        // Should the fleet have changed meanwhile, the loop compiles what is missing after all.
        command->plan_elsewhere = false;
        TryCreate(command, scope, validate_only, response,
                  [done](const absl::Status& again, Where) { done(UnderSpec(again)); });
      };
      OnWork(edge_, done, std::move(plan));
    });
  };
  return Unary(edge_, context, "/nibble.v1.JobService/CreateJob", body);
}

grpc::ServerUnaryReactor* JobServiceImpl::GetJob(Context* context, const v1::GetJobRequest* request,
                                                 v1::Job* response) {
  return Unary(edge_, context, "/nibble.v1.JobService/GetJob", [=, this](const Caller& caller, Done done) {
    auto id = ParseName(request->name(), "jobs", "name");
    if (!id.ok()) return done(id.status());
    ReadState(edge_, done, [response, id = *std::move(id),
                            scope = caller.Scope()](const Outcome& outcome) -> absl::Status {
      ASSIGN_OR_RETURN(const core::Job* job, FindJob(outcome.state, id, scope));
      JobView view(outcome.state, outcome.core, outcome.now, scope);
      ToProto(view, *job, response);
      return absl::OkStatus();
    });
  });
}

namespace {

// A page is one message: beyond this it ends early, whatever was asked for.
constexpr size_t kMaxPageBytes = size_t{2} << 20;

// Newest first: a key that sorts the other way round.
std::string KeyOf(const core::Job& job) {
  return absl::StrCat(absl::Dec(INT64_MAX - job.number, absl::kZeroPad19));
}

// Jobs of a number below `before`, the newest first, until `visit` has enough and returns false. Where only
// some of those that live are asked for, the others, which may be very many, are not looked at.
template <typename Visit>
void ForJobs(const core::State& state, const std::set<int>& states, int64_t before, const Visit& visit) {
  const bool live = !states.empty() && std::none_of(states.begin(), states.end(), [](int s) {
    return core::IsTerminal(static_cast<core::JobState>(s));
  });
  std::map<int64_t, std::string> of_live;
  if (live) {
    for (const std::string& id : state.live_jobs) {
      const core::Job& job = state.jobs.at(id);
      if (job.kind == core::JobKind::kTrain && states.contains(static_cast<int>(job.state)))
        of_live[job.number] = id;
    }
  }
  const std::map<int64_t, std::string>& jobs = live ? of_live : state.jobs_by_number;
  for (auto it = jobs.lower_bound(before); it != jobs.begin();) {
    const core::Job& job = state.jobs.at((--it)->second);
    if (!states.empty() && !states.contains(static_cast<int>(job.state))) continue;
    if (!visit(job)) return;
  }
}

absl::Status ListPageOfJobs(const Outcome& outcome, const std::string& scope,
                            const v1::ListJobsRequest& request, v1::ListJobsResponse* response) {
  const std::set<int> states(request.states().begin(), request.states().end());
  std::string query = "jobs";
  for (const int state : states) absl::StrAppend(&query, ",", state);
  ASSIGN_OR_RETURN(const int32_t size, PageSize(request.page_size()));
  ASSIGN_OR_RETURN(const std::string start, PageStart(query, request.page_token()));
  int64_t key = 0;
  if (!start.empty() && (!absl::SimpleAtoi(start, &key) || key < 0)) return PageStart(query, "-").status();
  JobView view(outcome.state, outcome.core, outcome.now, scope);
  size_t bytes = 0;
  std::string last;
  ForJobs(outcome.state, states, INT64_MAX - key, [&](const core::Job& job) {
    if (!Sees(scope, job.tenant)) return true;
    if (response->jobs_size() == size || bytes > kMaxPageBytes) {
      response->set_next_page_token(PageToken(query, last));
      return false;
    }
    v1::Job* shown = response->add_jobs();
    ToProto(view, job, shown);
    shown->clear_dataset_report_json();  // it can be long
    bytes += shown->ByteSizeLong();
    last = KeyOf(job);
    return true;
  });
  return absl::OkStatus();
}

}  // namespace

grpc::ServerUnaryReactor* JobServiceImpl::ListJobs(Context* context, const v1::ListJobsRequest* request,
                                                   v1::ListJobsResponse* response) {
  return Unary(edge_, context, "/nibble.v1.JobService/ListJobs", [=, this](const Caller& caller, Done done) {
    ReadState(edge_, done, [request, response, scope = caller.Scope()](const Outcome& outcome) {
      return ListPageOfJobs(outcome, scope, *request, response);
    });
  });
}

grpc::ServerUnaryReactor* JobServiceImpl::UpdateJob(Context* context,
                                                    const v1::UpdateJobRequest* request,
                                                    v1::Job* response) {
  return Unary(edge_, context, "/nibble.v1.JobService/UpdateJob", [=, this](const Caller& caller, Done done) {
    auto command = ReadUpdateJob(*request);
    if (!command.ok()) return done(command.status());
    Command(edge_, done, *std::move(command), ShowJob(response, caller.Scope()), caller.Scope());
  });
}

grpc::ServerUnaryReactor* JobServiceImpl::CancelJob(Context* context,
                                                    const v1::CancelJobRequest* request,
                                                    v1::Job* response) {
  return Unary(edge_, context, "/nibble.v1.JobService/CancelJob", [=, this](const Caller& caller, Done done) {
    RunVerb<core::CancelJob>(edge_, caller, done, request->name(), response);
  });
}

grpc::ServerUnaryReactor* JobServiceImpl::PauseJob(Context* context, const v1::PauseJobRequest* request,
                                                   v1::Job* response) {
  return Unary(edge_, context, "/nibble.v1.JobService/PauseJob", [=, this](const Caller& caller, Done done) {
    RunVerb<core::PauseJob>(edge_, caller, done, request->name(), response);
  });
}

grpc::ServerUnaryReactor* JobServiceImpl::ResumeJob(Context* context,
                                                    const v1::ResumeJobRequest* request,
                                                    v1::Job* response) {
  return Unary(edge_, context, "/nibble.v1.JobService/ResumeJob", [=, this](const Caller& caller, Done done) {
    RunVerb<core::ResumeJob>(edge_, caller, done, request->name(), response);
  });
}

grpc::ServerUnaryReactor* JobServiceImpl::DeleteJob(Context* context,
                                                    const v1::DeleteJobRequest* request,
                                                    v1::DeleteJobResponse*) {
  return Unary(edge_, context, "/nibble.v1.JobService/DeleteJob", [=, this](const Caller& caller, Done done) {
    auto id = ParseName(request->name(), "jobs", "name");
    if (!id.ok()) return done(id.status());
    const auto deleted = [this, done, id = *id](const absl::Status& status, const Outcome&) {
      // Its metrics go with it, before the caller hears of it: the id may be used again from then on. Where
      // they stay, the keeper finds them.
      const bool posted = status.ok() && edge_.io->Post([this, done, id] {
        (void)edge_.metrics->DeleteJob(id);
        done(absl::OkStatus());
      });
      if (!posted) done(status);
    };
    if (!edge_.loop->Post(core::DeleteJob{*id}, deleted, caller.Scope())) done(Busy(edge_));
  });
}

std::unique_ptr<grpc::Service> NewJobService(Edge& edge) {
  return std::make_unique<JobServiceImpl>(edge);
}

}  // namespace nibble::server

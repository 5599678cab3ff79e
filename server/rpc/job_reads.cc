// JobService: the past.
#include <algorithm>
#include <functional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/id.h"
#include "base/status.h"
#include "server/rpc/call.h"
#include "server/rpc/convert.h"
#include "server/rpc/job_service.h"
#include "server/rpc/page.h"

namespace nibble::server {
namespace {

constexpr int64_t kDefaultPoints = 1000;
// With as many evaluations they fit a message of 4 MiB, which is what clients take unless told otherwise.
constexpr int64_t kMaxPoints = 15'000;

// `read`, which asks the disk, once the job is known to be there for this caller.
void ReadJobHistory(Edge& edge, const Done& done, const std::string& id, const std::string& scope,
                    const std::function<absl::Status(int64_t last_sequence)>& read) {
  const bool posted = edge.loop->Read([=, &edge](const Outcome& outcome) {
    const auto job = FindJob(outcome.state, id, scope);
    if (!job.ok()) return done(job.status());
    OnIo(edge, done, [=, last = (*job)->last_sequence] { done(read(last)); });
  });
  if (!posted) done(Busy(edge));
}

}  // namespace

grpc::ServerUnaryReactor* JobServiceImpl::ListJobEvents(Context* context,
                                                        const v1::ListJobEventsRequest* request,
                                                        v1::ListJobEventsResponse* response) {
  const auto body = [=, this](const Caller& caller, Done done) {
    auto id = ParseName(request->name(), "jobs", "name");
    if (!id.ok()) return done(id.status());
    auto size = PageSize(request->page_size());
    if (!size.ok()) return done(size.status());
    const auto read = [=, this, id = *id, size = *size](int64_t last_sequence) -> absl::Status {
      ASSIGN_OR_RETURN(const auto events,
                       edge_.history->Events(id, request->after_sequence(), last_sequence, size));
      for (const core::EventRecord& event : events) ToProto(event, response->add_events());
      return absl::OkStatus();
    };
    ReadJobHistory(edge_, done, *id, caller.Scope(), read);
  };
  return Unary(edge_, context, "/nibble.v1.JobService/ListJobEvents", body);
}

grpc::ServerUnaryReactor* JobServiceImpl::QueryMetrics(Context* context,
                                                       const v1::QueryMetricsRequest* request,
                                                       v1::QueryMetricsResponse* response) {
  const auto body = [=, this](const Caller& caller, Done done) {
    auto id = ParseName(request->name(), "jobs", "name");
    if (!id.ok()) return done(id.status());
    if (request->max_points() < 0 || request->after_step() < 0 || request->until_step() < 0) {
      return done(Error::Field(Reason::kSpecInvalid, "max_points",
                               "and the steps must not be negative"));
    }
    const int64_t points = request->max_points() == 0
                               ? kDefaultPoints
                               : std::min<int64_t>(request->max_points(), kMaxPoints);
    const auto read = [=, this, id = *id](int64_t) -> absl::Status {
      const int64_t after_step = request->has_after_step() ? request->after_step() : -1;
      ASSIGN_OR_RETURN(const auto metrics,
                       edge_.history->Metrics(id, after_step, request->until_step(), points));
      for (const store::StepMetric& metric : metrics) ToProto(metric, response->add_points());
      return absl::OkStatus();
    };
    ReadJobHistory(edge_, done, *id, caller.Scope(), read);
  };
  return Unary(edge_, context, "/nibble.v1.JobService/QueryMetrics", body);
}

grpc::ServerUnaryReactor* JobServiceImpl::ListCheckpoints(Context* context,
                                                          const v1::ListCheckpointsRequest* request,
                                                          v1::ListCheckpointsResponse* response) {
  const auto body = [=, this](const Caller& caller, Done done) {
    auto id = ParseName(request->name(), "jobs", "name");
    if (!id.ok()) return done(id.status());
    const auto read = [response, id = *id, scope = caller.Scope()](const Outcome& outcome) -> absl::Status {
      ASSIGN_OR_RETURN(const core::Job* job, FindJob(outcome.state, id, scope));
      for (const core::Checkpoint& c : job->checkpoints) ToProto(c, response->add_checkpoints());
      return absl::OkStatus();
    };
    ReadState(edge_, done, read);
  };
  return Unary(edge_, context, "/nibble.v1.JobService/ListCheckpoints", body);
}

}  // namespace nibble::server

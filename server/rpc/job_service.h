// JobService: checks and converts, asks the loop, converts back. See proto/nibble/v1/job.proto.
//
// The methods stand in several files, because gRPC headers compile slowly: job_service.cc (commands and
// rows), job_reads.cc (the past), plan_job.cc, explain_job.cc, job_watch.cc (the stream).
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "nibble/v1/job.grpc.pb.h"
#include "server/edge.h"
#include "server/rpc/job_watch.h"

namespace nibble::server {

class JobServiceImpl final : public v1::JobService::CallbackService {
 public:
  explicit JobServiceImpl(Edge& edge)
      : edge_(edge), tick_(edge.ticker->Add(1'000'000, [this] { watches_.Tick(); })) {}
  ~JobServiceImpl() override { edge_.ticker->Remove(tick_); }

  using Context = grpc::CallbackServerContext;
  using Reactor = grpc::ServerUnaryReactor;
  Reactor* PlanJob(Context*, const v1::PlanJobRequest*, v1::PlanJobResponse*) override;
  Reactor* CreateJob(Context*, const v1::CreateJobRequest*, v1::Job*) override;
  Reactor* GetJob(Context*, const v1::GetJobRequest*, v1::Job*) override;
  Reactor* ExplainJob(Context*, const v1::ExplainJobRequest*, v1::ExplainJobResponse*) override;
  Reactor* ListJobs(Context*, const v1::ListJobsRequest*, v1::ListJobsResponse*) override;
  Reactor* UpdateJob(Context*, const v1::UpdateJobRequest*, v1::Job*) override;
  Reactor* CancelJob(Context*, const v1::CancelJobRequest*, v1::Job*) override;
  Reactor* PauseJob(Context*, const v1::PauseJobRequest*, v1::Job*) override;
  Reactor* ResumeJob(Context*, const v1::ResumeJobRequest*, v1::Job*) override;
  Reactor* DeleteJob(Context*, const v1::DeleteJobRequest*, v1::DeleteJobResponse*) override;
  grpc::ServerWriteReactor<v1::WatchJobResponse>* WatchJob(Context*,
                                                           const v1::WatchJobRequest*) override;
  Reactor* ListJobEvents(Context*, const v1::ListJobEventsRequest*, v1::ListJobEventsResponse*) override;
  Reactor* QueryMetrics(Context*, const v1::QueryMetricsRequest*, v1::QueryMetricsResponse*) override;
  Reactor* ListCheckpoints(Context*, const v1::ListCheckpointsRequest*,
                           v1::ListCheckpointsResponse*) override;

 private:
  // What came of a try; where, on the loop's thread, unless it never got there.
  using Where = std::optional<std::reference_wrapper<const ControlLoop::Outcome>>;
  using Tried = std::function<void(const absl::Status&, Where)>;
  void TryCreate(const std::shared_ptr<core::CreateJob>& command, const std::string& scope,
                 bool validate_only, v1::Job* response, const Tried& tried);

  Edge& edge_;
  WatchList watches_;
  const int64_t tick_;
};

// The job, or JOB_NOT_FOUND.
absl::StatusOr<const core::Job*> FindJob(const core::State& state, const std::string& id,
                                         const std::string& scope);

}  // namespace nibble::server

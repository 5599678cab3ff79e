#include "client/client.h"

#include <grpcpp/channel.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "base/id.h"
#include "base/random.h"
#include "base/status.h"
#include "nibble/v1/adapter.grpc.pb.h"
#include "nibble/v1/dataset.grpc.pb.h"
#include "nibble/v1/fleet.grpc.pb.h"
#include "nibble/v1/job.grpc.pb.h"
#include "nibble/v1/model.grpc.pb.h"
#include "proto/endpoint.h"
#include "proto/from_grpc.h"
#include "proto/trusted_channel.h"

namespace nibble::client {
namespace {

enum class Repeat { kSafe, kNever };
// For calls that make the server read files: a model of many GiB is hashed before the answer comes.
constexpr int64_t kLongCallMs = 3'600'000;

template <typename Stub, typename Request, typename Response>
absl::StatusOr<Response> Call(const Client& client,
                              grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                           Response*),
                              const Request& request, Repeat repeat, int64_t timeout_ms = 0) {
  for (int attempt = 0;; ++attempt) {
    grpc::ClientContext context;
    client.Prepare(context, timeout_ms ? timeout_ms : client.options().call_timeout_ms);
    Response response;
    Stub stub(client.channel());
    const grpc::Status status = (stub.*method)(&context, request, &response);
    if (status.error_code() != grpc::StatusCode::UNAVAILABLE &&
        status.error_code() != grpc::StatusCode::DEADLINE_EXCEEDED) {
      client.set_reached();
      const auto& trailing = context.GetServerTrailingMetadata();
      const auto warning = trailing.find("nibble-warning");
      client.set_warning(warning == trailing.end()
                             ? ""
                             : std::string(warning->second.data(), warning->second.size()));
    }
    if (status.ok()) return response;
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE) client.RenewTrust();
    if (status.error_code() != grpc::StatusCode::UNAVAILABLE || repeat == Repeat::kNever ||
        attempt >= client.options().retries) {
      return FromGrpc(status);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(
        BackoffMs(client.options().first_backoff_ms, attempt, SystemEntropy())));
  }
}

template <typename Request>
Request Named(const std::string& name) {
  Request request;
  request.set_name(name);
  return request;
}

// Every page of a list, as one answer.
template <typename Stub, typename Request, typename Response>
absl::StatusOr<Response> AllPages(const Client& client,
                                  grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                               Response*),
                                  Request request) {
  Response all;
  do {
    ASSIGN_OR_RETURN(const Response page, Call(client, method, request, Repeat::kSafe));
    request.set_page_token(page.next_page_token());
    all.MergeFrom(page);
  } while (!request.page_token().empty());
  all.clear_next_page_token();
  return all;
}

}  // namespace

int64_t BackoffMs(int64_t first_ms, int attempt, uint64_t random) {
  const int64_t full = std::min<int64_t>(first_ms << std::min(attempt, 10), 3000);
  return full / 2 + static_cast<int64_t>(random % static_cast<uint64_t>(full / 2 + 1));
}

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(ClientOptions options) {
  RETURN_IF_ERROR(CheckToken(options.token));
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  // The library takes this for the time a connection may need, too.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 10'000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 5000);
  // A peer that is gone without a word is noticed while a call is out, so that a watch does not
  // wait for ever; servers allow pings this often.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  // Retrying is decided here, per call; and an address given is an address meant, proxy or not.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetMaxReceiveMessageSize(64 << 20);
  ASSIGN_OR_RETURN(auto channel, TrustedChannel::Open(options.server, options.ca_file, arguments));
  return std::unique_ptr<Client>(new Client(std::move(options), std::move(channel)));
}

Client::Client(ClientOptions options, std::unique_ptr<TrustedChannel> channel)
    : options_(std::move(options)), channel_(std::move(channel)) {}
Client::~Client() = default;

std::shared_ptr<grpc::Channel> Client::channel() const { return channel_->Get(); }
void Client::RenewTrust() const { channel_->Renew(); }

void Client::Prepare(grpc::ClientContext& context, int64_t timeout_ms) const {
  if (timeout_ms > 0) {
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(timeout_ms));
  }
  if (!options_.token.empty()) context.AddMetadata("authorization", "Bearer " + options_.token);
}

std::string Client::warning() const {
  std::lock_guard lock(warning_mutex_);
  return warning_;
}
void Client::set_warning(std::string warning) const {
  std::lock_guard lock(warning_mutex_);
  warning_ = std::move(warning);
}

absl::StatusOr<v1::PlanJobResponse> Client::PlanJob(const v1::PlanJobRequest& request) {
  return Call(*this, &v1::JobService::Stub::PlanJob, request, Repeat::kSafe);
}

absl::StatusOr<v1::Job> Client::CreateJob(v1::CreateJobRequest request) {
  if (request.request_id().empty()) request.set_request_id(NewUuid());
  return Call(*this, &v1::JobService::Stub::CreateJob, request, Repeat::kSafe);
}

absl::StatusOr<v1::Job> Client::GetJob(const std::string& name) {
  return Call(*this, &v1::JobService::Stub::GetJob, Named<v1::GetJobRequest>(name),
              Repeat::kSafe);
}

absl::StatusOr<v1::ExplainJobResponse> Client::ExplainJob(const std::string& name,
                                                          int32_t max_devices) {
  v1::ExplainJobRequest request;
  request.set_name(name);
  request.set_max_devices(max_devices);
  return Call(*this, &v1::JobService::Stub::ExplainJob, request, Repeat::kSafe);
}

absl::StatusOr<v1::ListJobsResponse> Client::ListJobs(const std::vector<v1::JobState>& states, int limit,
                                                      const std::map<std::string, std::string>& labels) {
  constexpr int kPage = 500;
  const auto has_labels = [&](const v1::Job& job) {
    return std::all_of(labels.begin(), labels.end(), [&](const auto& label) {
      const auto it = job.labels().find(label.first);
      return it != job.labels().end() && it->second == label.second;
    });
  };
  v1::ListJobsResponse all;
  v1::ListJobsRequest request;
  for (v1::JobState state : states) request.add_states(state);
  do {
    // With labels a page may have few of them, or none.
    const int left = limit > 0 && labels.empty() ? limit - all.jobs_size() : kPage;
    request.set_page_size(std::min(left, kPage));
    ASSIGN_OR_RETURN(
        v1::ListJobsResponse page,
        Call(*this, &v1::JobService::Stub::ListJobs, request, Repeat::kSafe));
    request.set_page_token(page.next_page_token());
    for (v1::Job& job : *page.mutable_jobs()) {
      if (has_labels(job) && (limit <= 0 || all.jobs_size() < limit)) *all.add_jobs() = std::move(job);
    }
  } while (!request.page_token().empty() && (limit <= 0 || all.jobs_size() < limit));
  return all;
}

absl::StatusOr<v1::Job> Client::UpdateJob(const v1::UpdateJobRequest& request) {
  return Call(*this, &v1::JobService::Stub::UpdateJob, request, Repeat::kSafe);
}

absl::StatusOr<v1::Job> Client::CancelJob(const std::string& name) {
  return Call(*this, &v1::JobService::Stub::CancelJob,
              Named<v1::CancelJobRequest>(name), Repeat::kSafe);
}

absl::StatusOr<v1::Job> Client::PauseJob(const std::string& name) {
  return Call(*this, &v1::JobService::Stub::PauseJob,
              Named<v1::PauseJobRequest>(name), Repeat::kSafe);
}

absl::StatusOr<v1::Job> Client::ResumeJob(const std::string& name) {
  return Call(*this, &v1::JobService::Stub::ResumeJob,
              Named<v1::ResumeJobRequest>(name), Repeat::kSafe);
}

absl::Status Client::DeleteJob(const std::string& name) {
  return Call(*this, &v1::JobService::Stub::DeleteJob,
              Named<v1::DeleteJobRequest>(name), Repeat::kNever)
      .status();
}

absl::StatusOr<v1::ListJobEventsResponse> Client::ListJobEvents(const std::string& name) {
  constexpr int kPage = 500;
  v1::ListJobEventsResponse all;
  auto request = Named<v1::ListJobEventsRequest>(name);
  request.set_page_size(kPage);
  while (true) {
    ASSIGN_OR_RETURN(
        const v1::ListJobEventsResponse page,
        Call(*this, &v1::JobService::Stub::ListJobEvents, request, Repeat::kSafe));
    all.MergeFrom(page);
    if (page.events_size() == 0 || page.events_size() < kPage) return all;
    request.set_after_sequence(page.events(page.events_size() - 1).sequence());
  }
}

absl::StatusOr<v1::QueryMetricsResponse> Client::QueryMetrics(
    const v1::QueryMetricsRequest& request) {
  return Call(*this, &v1::JobService::Stub::QueryMetrics, request, Repeat::kSafe);
}

absl::StatusOr<v1::ListCheckpointsResponse> Client::ListCheckpoints(const std::string& name) {
  return Call(*this, &v1::JobService::Stub::ListCheckpoints,
              Named<v1::ListCheckpointsRequest>(name), Repeat::kSafe);
}

absl::StatusOr<v1::Dataset> Client::CreateDataset(const v1::CreateDatasetRequest& request) {
  return Call(*this, &v1::DatasetService::Stub::CreateDataset, request,
              Repeat::kNever, kLongCallMs);
}

absl::StatusOr<v1::ValidateDatasetResponse> Client::ValidateDataset(
    const v1::ValidateDatasetRequest& request) {
  return Call(*this, &v1::DatasetService::Stub::ValidateDataset, request,
              Repeat::kSafe);
}

absl::StatusOr<v1::PreviewDatasetResponse> Client::PreviewDataset(const std::string& name,
                                                                  int rows) {
  auto request = Named<v1::PreviewDatasetRequest>(name);
  request.set_rows(rows);
  return Call(*this, &v1::DatasetService::Stub::PreviewDataset, request,
              Repeat::kSafe);
}

absl::StatusOr<v1::Dataset> Client::GetDataset(const std::string& name) {
  return Call(*this, &v1::DatasetService::Stub::GetDataset,
              Named<v1::GetDatasetRequest>(name), Repeat::kSafe);
}

absl::StatusOr<v1::ListDatasetsResponse> Client::ListDatasets() {
  return AllPages(*this, &v1::DatasetService::Stub::ListDatasets,
                  v1::ListDatasetsRequest());
}

absl::Status Client::DeleteDataset(const std::string& name) {
  return Call(*this, &v1::DatasetService::Stub::DeleteDataset,
              Named<v1::DeleteDatasetRequest>(name), Repeat::kNever)
      .status();
}

absl::StatusOr<v1::Model> Client::RegisterModel(const v1::RegisterModelRequest& request) {
  return Call(*this, &v1::ModelService::Stub::RegisterModel, request,
              Repeat::kNever, kLongCallMs);
}

absl::StatusOr<v1::Model> Client::GetModel(const std::string& name) {
  return Call(*this, &v1::ModelService::Stub::GetModel,
              Named<v1::GetModelRequest>(name), Repeat::kSafe);
}

absl::StatusOr<v1::ListModelsResponse> Client::ListModels() {
  return AllPages(*this, &v1::ModelService::Stub::ListModels,
                  v1::ListModelsRequest());
}

absl::Status Client::DeleteModel(const std::string& name) {
  return Call(*this, &v1::ModelService::Stub::DeleteModel,
              Named<v1::DeleteModelRequest>(name), Repeat::kNever)
      .status();
}

absl::StatusOr<v1::Adapter> Client::GetAdapter(const std::string& name) {
  return Call(*this, &v1::AdapterService::Stub::GetAdapter,
              Named<v1::GetAdapterRequest>(name), Repeat::kSafe);
}

absl::StatusOr<v1::ListAdaptersResponse> Client::ListAdapters() {
  return AllPages(*this, &v1::AdapterService::Stub::ListAdapters,
                  v1::ListAdaptersRequest());
}

absl::Status Client::DeleteAdapter(const std::string& name) {
  return Call(*this, &v1::AdapterService::Stub::DeleteAdapter,
              Named<v1::DeleteAdapterRequest>(name), Repeat::kNever)
      .status();
}

absl::StatusOr<v1::ListWorkersResponse> Client::ListWorkers() {
  return AllPages(*this, &v1::FleetService::Stub::ListWorkers,
                  v1::ListWorkersRequest());
}

absl::StatusOr<v1::Worker> Client::DrainWorker(const std::string& name) {
  return Call(*this, &v1::FleetService::Stub::DrainWorker,
              Named<v1::DrainWorkerRequest>(name), Repeat::kSafe);
}

absl::StatusOr<v1::Worker> Client::UndrainWorker(const std::string& name) {
  return Call(*this, &v1::FleetService::Stub::UndrainWorker,
              Named<v1::UndrainWorkerRequest>(name), Repeat::kSafe);
}

absl::Status Client::DeleteWorker(const std::string& name) {
  return Call(*this, &v1::FleetService::Stub::DeleteWorker,
              Named<v1::DeleteWorkerRequest>(name), Repeat::kNever)
      .status();
}

}  // namespace nibble::client

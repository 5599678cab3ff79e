// The C++ client of a Nibble server: one channel at a time, every call typed, errors decoded.
//
// Calls that are safe to repeat (reads, idempotent verbs, calls with a request_id) are retried on
// UNAVAILABLE with jittered back-off; nothing else ever is. Methods block and are thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nibble/v1/adapter.pb.h"
#include "nibble/v1/blob.pb.h"
#include "nibble/v1/dataset.pb.h"
#include "nibble/v1/fleet.pb.h"
#include "nibble/v1/job.pb.h"
#include "nibble/v1/model.pb.h"

namespace grpc {
class Channel;
class ClientContext;
}  // namespace grpc

namespace nibble {
class TrustedChannel;
}

namespace nibble::client {

struct ClientOptions {
  std::string server = "127.0.0.1:7070";  // host:port; "https://host:port" asks for TLS
  std::string token;                      // bearer token; empty on a loopback server
  std::string ca_file;                    // PEM; implies TLS
  int64_t call_timeout_ms = 30'000;
  int retries = 4;                 // of a retryable call
  int64_t first_backoff_ms = 200;  // doubles, with jitter, up to 3 s
  int64_t patience_ms = 300'000;   // of transfers and waits with a server that is away
  std::function<void(const absl::Status&)> on_away;  // when such a time begins; may be empty
};

class Client {
 public:
  static absl::StatusOr<std::unique_ptr<Client>> Connect(ClientOptions options);
  ~Client();

  absl::StatusOr<v1::PlanJobResponse> PlanJob(const v1::PlanJobRequest& request);
  // Fills in a request_id when there is none, so that a retry cannot make a second job.
  absl::StatusOr<v1::Job> CreateJob(v1::CreateJobRequest request);
  absl::StatusOr<v1::Job> GetJob(const std::string& name);
  absl::StatusOr<v1::ExplainJobResponse> ExplainJob(const std::string& name, int32_t max_devices);
  // Up to `limit` jobs over as many pages as it takes; 0 = all.
  // Those that have all of `labels`; at most `limit`, 0 = all.
  absl::StatusOr<v1::ListJobsResponse> ListJobs(const std::vector<v1::JobState>& states, int limit,
                                                const std::map<std::string, std::string>& labels = {});
  // What may change of a job that exists: the fields that the request's mask names.
  absl::StatusOr<v1::Job> UpdateJob(const v1::UpdateJobRequest& request);
  absl::StatusOr<v1::Job> CancelJob(const std::string& name);
  absl::StatusOr<v1::Job> PauseJob(const std::string& name);
  absl::StatusOr<v1::Job> ResumeJob(const std::string& name);
  absl::Status DeleteJob(const std::string& name);
  absl::StatusOr<v1::ListJobEventsResponse> ListJobEvents(const std::string& name);
  absl::StatusOr<v1::QueryMetricsResponse> QueryMetrics(const v1::QueryMetricsRequest& request);
  absl::StatusOr<v1::ListCheckpointsResponse> ListCheckpoints(const std::string& name);

  absl::StatusOr<v1::Dataset> CreateDataset(const v1::CreateDatasetRequest& request);
  absl::StatusOr<v1::ValidateDatasetResponse> ValidateDataset(
      const v1::ValidateDatasetRequest& request);
  absl::StatusOr<v1::PreviewDatasetResponse> PreviewDataset(const std::string& name, int rows);
  absl::StatusOr<v1::Dataset> GetDataset(const std::string& name);
  absl::StatusOr<v1::ListDatasetsResponse> ListDatasets();
  absl::Status DeleteDataset(const std::string& name);

  absl::StatusOr<v1::Model> RegisterModel(const v1::RegisterModelRequest& request);
  absl::StatusOr<v1::Model> GetModel(const std::string& name);
  absl::StatusOr<v1::ListModelsResponse> ListModels();
  absl::Status DeleteModel(const std::string& name);

  absl::StatusOr<v1::Adapter> GetAdapter(const std::string& name);
  absl::StatusOr<v1::ListAdaptersResponse> ListAdapters();
  absl::Status DeleteAdapter(const std::string& name);

  absl::StatusOr<v1::ListWorkersResponse> ListWorkers();
  absl::StatusOr<v1::Worker> DrainWorker(const std::string& name);
  absl::StatusOr<v1::Worker> UndrainWorker(const std::string& name);
  absl::Status DeleteWorker(const std::string& name);

  const ClientOptions& options() const { return options_; }
  std::shared_ptr<grpc::Channel> channel() const;
  // For who could not reach the server: where options().ca_file holds other certificates by now, they are
  // trusted from the next channel() on.
  void RenewTrust() const;
  // The server has answered something, be it a refusal: what was there once may come back.
  bool reached() const { return reached_; }
  void set_reached() const { reached_ = true; }
  // What the server's last answer warned of (its disk is full, so it may be old); "" = nothing.
  std::string warning() const;
  void set_warning(std::string warning) const;
  // Puts the credential on a call; timeout 0 = none, for streams.
  void Prepare(grpc::ClientContext& context, int64_t timeout_ms) const;

 private:
  Client(ClientOptions options, std::unique_ptr<TrustedChannel> channel);

  const ClientOptions options_;
  const std::unique_ptr<TrustedChannel> channel_;
  mutable std::atomic<bool> reached_{false};
  mutable std::mutex warning_mutex_;
  mutable std::string warning_;
};

// Waits before the `attempt`-th retry (from 0): doubling, between half and all of it, at most 3 s.
int64_t BackoffMs(int64_t first_ms, int attempt, uint64_t random);

}  // namespace nibble::client

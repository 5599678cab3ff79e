// WatchJob: a snapshot, then what happens, until the job is over.
//
// Order: the snapshot and the subscription are made in one turn of the loop, so nothing falls between
// them; what was before comes from History; then what the hub publishes. Buffers are bounded: while a
// watcher is slow nothing is taken from its subscription, the hub cuts it, and it goes on from History,
// in a turn of the loop again, as the job may be gone by then. One that takes nothing for stuck_write_us
// is dropped.
//
// One write is outstanding at a time. All members are guarded by the mutex; an object lives as long as
// gRPC or any posted closure knows it.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "grpcpp/support/server_callback.h"
#include "nibble/v1/job.pb.h"
#include "server/edge.h"

namespace nibble::server {

class JobWatch final : public grpc::ServerWriteReactor<v1::WatchJobResponse>,
                       public std::enable_shared_from_this<JobWatch> {
 public:
  // `scope`: Caller::Scope.
  JobWatch(Edge& edge, grpc::CallbackServerContext* context, std::string job_id, std::string scope,
           const v1::WatchJobRequest& request);
  // After construction, once.
  void Start();
  // Finishes at once with an error; instead of Start.
  void Refuse(const absl::Status& status);
  // Every second or so: heartbeats, stuck writers, callers that may no longer watch, wake-ups that found no
  // room in the pool.
  void Tick();

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  void Begin(const ControlLoop::Outcome& outcome);
  absl::Status CheckBegin(const core::Job& job) const;
  void GoOn();
  void Subscribe();
  void Load();
  void Drain();
  void PostDrain();
  void TakeNew(WatchHub::Taken taken);
  void PushEvent(const core::EventRecord& event);
  void PushMetric(const store::StepMetric& metric);
  void PushMetricsAfter(int64_t step, std::unique_lock<std::mutex>& lock);
  void End(const absl::Status& status);
  void Pump();

  Edge& edge_;
  grpc::CallbackServerContext* context_;
  const std::string job_id_;
  const std::string scope_;

  std::mutex mutex_;
  std::shared_ptr<JobWatch> self_;   // until OnDone
  std::shared_ptr<WatchHub::Subscription> subscription_;
  std::deque<v1::WatchJobResponse> out_;
  v1::WatchJobResponse current_;
  std::optional<grpc::Status> final_;
  bool writing_ = false;
  bool finished_ = false;            // Finish was called
  bool loading_ = true;              // History is not read yet
  bool draining_ = false;            // one Drain at a time,
  bool drain_again_ = false;         // and another when it was asked for meanwhile
  bool terminal_ = false;            // the job is over; what is left is in History
  int64_t last_sequence_ = 0;
  int64_t number_ = 0;               // the job's, of which each has its own; 0 = there was no snapshot yet
  int64_t begun_sequence_ = 0;       // the job's when the subscription was made
  std::pair<int64_t, int64_t> last_metric_{0, 0};  // epoch, step
  int64_t after_step_ = 0;
  int64_t sent_us_ = 0;              // when the last write began or ended
};

// The watches of a server, for the ticker. Thread-safe.
class WatchList {
 public:
  void Add(const std::shared_ptr<JobWatch>& watch);
  void Tick();
  size_t size();

 private:
  std::mutex mutex_;
  std::vector<std::weak_ptr<JobWatch>> watches_;
};

}  // namespace nibble::server

#include "server/memory_history.h"

#include "base/error.h"
#include "base/status.h"

namespace nibble::server {
namespace {

class MemoryHistory : public store::History {
 public:
  MemoryHistory(ControlLoop* loop, store::Store* store, store::MetricStore* metrics)
      : loop_(loop), store_(store), metrics_(metrics) {}

  absl::StatusOr<std::vector<core::EventRecord>> Events(std::string_view job_id, int64_t after_sequence,
                                                        int64_t last_sequence, int64_t limit) override {
    absl::StatusOr<std::vector<core::EventRecord>> events =
        Error(Reason::kShuttingDown, "the server is shutting down").ToStatus();
    (void)loop_->ReadAndWait(
        [&](const ControlLoop::Outcome&) { events = store_->ReadEvents(job_id, after_sequence, limit); });
    if (events.ok()) RETURN_IF_ERROR(store::CheckNoGap(job_id, after_sequence, last_sequence, *events));
    return events;
  }
  absl::StatusOr<std::vector<core::EventRecord>> AllEvents(int64_t, int64_t) override {
    return Error(Reason::kUnsupportedOption, "a server in memory keeps no audit trail").ToStatus();
  }
  absl::StatusOr<std::vector<store::StepMetric>> Metrics(std::string_view job_id, int64_t after_step,
                                                         int64_t until_step, int64_t max_points) override {
    return metrics_->Read(job_id, after_step, until_step, max_points);
  }

 private:
  ControlLoop* loop_;
  store::Store* store_;
  store::MetricStore* metrics_;
};

}  // namespace

std::unique_ptr<store::History> NewMemoryHistory(ControlLoop* loop, store::Store* store,
                                                 store::MetricStore* metrics) {
  return std::make_unique<MemoryHistory>(loop, store, metrics);
}

}  // namespace nibble::server

// The fakes: stores that live as long as the process, for tests and as the simulator's disk.
//
// A MemoryStore survives the control loop that uses it, so a server restart can be simulated.
// Faults can be asked for: fail a Commit before or after it took effect.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "server/store/store.h"

namespace nibble::store {

// The state as it would come back from a store: volatile fields at their defaults, and what is stored only
// along with other changes of a worker.
core::State WithoutVolatile(core::State state);

class MemoryStore : public Store {
 public:
  enum class Fault { kNone, kFailBefore, kFailAfter };
  absl::StatusOr<core::State> Load() override;
  absl::Status Reread(core::State& state) override;
  absl::Status Commit(const core::State& state,
                      const std::vector<core::EventRecord>& records) override;
  absl::StatusOr<std::vector<core::EventRecord>> ReadEvents(std::string_view job_id,
                                                            int64_t after_sequence,
                                                            int64_t limit) override;
  absl::StatusOr<int64_t> PruneEvents(int64_t before_unix_us, int64_t limit) override;
  // Asked before every Commit.
  void SetFaults(std::function<Fault()> faults) { faults_ = std::move(faults); }
  // From now on: Reread drops the jobs that are named and fails, Load fails.
  void FailReads(bool reread, bool load) { fail_reread_ = reread; fail_load_ = load; }
  // The rows as they stand, and all events; for checks.
  const core::State& rows() const { return rows_; }
  const std::vector<core::EventRecord>& events() const { return events_; }
  int64_t loads() const { return loads_; }

 private:
  core::State rows_;
  std::vector<core::EventRecord> events_;
  std::function<Fault()> faults_;
  bool fail_reread_ = false;
  bool fail_load_ = false;
  int64_t loads_ = 0;
};

class MemoryMetricStore : public MetricStore {
 public:
  absl::Status Append(std::string_view job_id, const std::vector<StepMetric>& metrics) override;
  absl::StatusOr<std::vector<StepMetric>> Read(std::string_view job_id, int64_t after_step,
                                               int64_t until_step, int64_t max_points) override;
  absl::Status DeleteJob(std::string_view job_id) override;
  absl::StatusOr<std::vector<std::string>> JobIds(std::string_view after, int64_t limit) override;

 private:
  std::mutex mutex_;
  std::map<std::string, std::map<std::pair<int64_t, int64_t>, StepMetric>, std::less<>> metrics_;
};

}  // namespace nibble::store

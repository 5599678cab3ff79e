// The durable twin of core::State, and the data plane beside it.
//
// Store holds what the control loop decides: one Commit is one transaction, with the events and
// every row they changed. It is used by the loop's thread alone. After a failed Commit nobody knows
// what is on disk: the caller must Reread, or Load, before it answers anybody.
//
// MetricStore holds step metrics. It never takes part in a Commit; its writes may lose the last moments
// at a power cut, which workers heal by sending again. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/spec/step_phases.h"
#include "server/core/event_record.h"
#include "server/core/state.h"

namespace nibble::store {

class Store {
 public:
  virtual ~Store() = default;
  // The state as of the last Commit; indexes built, volatile fields at their defaults.
  virtual absl::StatusOr<core::State> Load() = 0;
  // After a failed Commit: makes the rows that state.touched names what they are on the disk (volatile
  // fields at their defaults), or drops them; all others are as they were stored anyway, so that nobody
  // reads the whole database. Touched is empty then; indexes are not built. When it fails, Load.
  virtual absl::Status Reread(core::State& state) = 0;
  // Writes `records` and the rows that state.touched names, all or nothing, durably.
  // STORAGE_FULL when the disk is full, STORE_UNAVAILABLE otherwise.
  virtual absl::Status Commit(const core::State& state,
                              const std::vector<core::EventRecord>& records) = 0;
  // Events of a job with sequence > after, oldest first, at most `limit`.
  virtual absl::StatusOr<std::vector<core::EventRecord>> ReadEvents(std::string_view job_id,
                                                                    int64_t after_sequence,
                                                                    int64_t limit) = 0;
  // Removes the oldest events of before that time, at most `limit`, in a transaction of its own; how many.
  virtual absl::StatusOr<int64_t> PruneEvents(int64_t before_unix_us, int64_t limit) = 0;
};

// For each of a commit's records whether its job was deleted later in the same commit and its id taken again:
// these belong to no job, and their sequence numbers to the one that has the id now.
std::vector<bool> OfReplacedJobs(const std::vector<core::EventRecord>& records);

// One optimizer step of one attempt.
struct StepMetric {
  int64_t step = 0;
  int64_t epoch = 0;  // of the attempt that wrote it
  double loss = 0;
  double gradient_norm = 0;
  double learning_rate = 0;
  int64_t tokens = 0;
  int64_t target_tokens = 0;
  int64_t step_time_us = 0;
  int64_t time_unix_us = 0;
  std::optional<double> eval_loss;
  int64_t used_bytes = 0;
  double epoch_fraction = 0;  // of the data
  spec::StepPhaseTimes phase_us{};  // zeros = not measured
  bool operator==(const StepMetric&) const = default;
};

class MetricStore {
 public:
  virtual ~MetricStore() = default;
  // Repeats of (job, epoch, step) are dropped, but a repeat that brings an eval_loss adds it.
  // Returns when written. The caller has had the fence checked.
  virtual absl::Status Append(std::string_view job_id, const std::vector<StepMetric>& metrics) = 0;
  // Steps in (after, until], until 0 = no bound; per step the row of the highest epoch. More than
  // max_points are thinned evenly, keeping the first and the last, and as many evaluations. 0 = all.
  virtual absl::StatusOr<std::vector<StepMetric>> Read(std::string_view job_id, int64_t after_step,
                                                       int64_t until_step, int64_t max_points) = 0;
  virtual absl::Status DeleteJob(std::string_view job_id) = 0;
  // Jobs that have metrics, in order of their ids, after `after`; at most `limit`.
  virtual absl::StatusOr<std::vector<std::string>> JobIds(std::string_view after, int64_t limit) = 0;
};

}  // namespace nibble::store

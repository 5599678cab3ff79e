// Where a job would fit, how much more would, when it would start and end there, and what would make
// it fit. Pure but for the planner's memory.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/core/decide.h"
#include "server/core/schedule_load.h"
#include "server/core/state.h"

namespace nibble::core {

// The largest micro-batch looked for.
inline constexpr int32_t kLargestBatch = 256;

struct DeviceFit {
  std::string worker_id;
  std::string device_id;
  enum class Verdict { kFitsNow, kFitsAlone, kNever } verdict = Verdict::kNever;
  int64_t capacity_bytes = 0;
  Capacity capacity;  // the same, and the host's part
  int64_t free_bytes = 0;
  int64_t shortfall_bytes = 0;  // of the device's memory
  int64_t pinned_shortfall_bytes = 0;
  int64_t host_shortfall_bytes = 0;
  // Why such a device does not take the job, whatever its memory; then kNever, and without a plan.
  absl::Status refusal;
  PlanBytes plan;
  int32_t largest_micro_batch_size = 0;  // alone, the rest as it is; at most kLargestBatch
  int32_t largest_sequence_len = 0;      // likewise; at most the model's positions
  std::vector<Suggestion> suggestions;   // when kNever
  // A job created now; 0 = not known.
  int64_t expected_start_us = 0;  // monotonic
  int64_t expected_end_us = 0;
  bool end_is_scaled = false;  // from the steps of another plan: nothing like it was measured yet
};
struct FitReport {
  std::vector<DeviceFit> fits;  // all devices of workers that are not lost but for those withdrawn
  // For the device with the smallest shortfall of those that take it; empty when the job fits somewhere.
  std::vector<Suggestion> suggestions;
};
struct FitQuestion {
  spec::TrainSpec spec;       // resolved; recomputation and base cache too, for FitsOf
  int64_t planned_steps = 0;  // 0 = not known
  int64_t now_us = 0;
  // Recomputation was left to the server: larger batches may recompute more.
  bool any_recompute = false;
  // Asked between two plans; set once nobody waits for the answer any more.
  std::function<bool()> unwanted;
};
// CANCELLED once it is unwanted, and so is what is answered to it.
absl::Status CheckWanted(const FitQuestion& question);
absl::StatusOr<FitReport> FitsOf(const State& state, const Model& model, const FitQuestion& question,
                                 Core& core);

}  // namespace nibble::core

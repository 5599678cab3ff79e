// What training on this worker adds up to, for /metrics: steps, tokens, times, checkpoints.
//
// Fed with every input the agent gets; jobs are not told apart (theirs are the server's to show). Count
// runs on the loop's thread, the rest is read from any.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>

#include "worker/core/messages.h"

namespace nibble::worker {

// Observations in seconds, by upper bound; the last bucket has none.
class DurationCounts {
 public:
  static constexpr std::array<double, 10> kBounds = {0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300};

  void Observe(int64_t us);
  int64_t bucket(size_t i) const { return buckets_[i]; }   // not cumulative; i up to kBounds.size()
  double sum_seconds() const { return static_cast<double>(sum_us_) / 1e6; }

 private:
  std::array<std::atomic<int64_t>, kBounds.size() + 1> buckets_{};
  std::atomic<int64_t> sum_us_{0};
};

struct TrainCounts {
  void Count(const Input& input, int64_t now_us);
  // The attempt is gone, perhaps in the middle of a checkpoint.
  void Forget(const AttemptKey& key) { checkpointing_since_us_.erase(key); }

  std::atomic<int64_t> steps{0};
  std::atomic<int64_t> fused_steps{0};         // of these in a turn of several jobs
  std::atomic<int64_t> nonfinite_steps{0};     // changed nothing: loss or gradient was not finite
  std::atomic<int64_t> target_tokens{0};
  std::atomic<int64_t> context_tokens{0};      // read, but without a loss
  std::atomic<int64_t> checkpoint_failures{0};  // of writing or uploading checkpoints and adapters
  std::array<std::atomic<int64_t>, spec::kStepPhaseNames.size()> phase_us{};  // of steps
  DurationCounts step_time;
  DurationCounts checkpoint_time;              // from the engine's beginning to its being durable there

 private:
  std::map<AttemptKey, int64_t> checkpointing_since_us_;
};

}  // namespace nibble::worker

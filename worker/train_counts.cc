#include "worker/train_counts.h"

#include <algorithm>
#include <cmath>

namespace nibble::worker {

void DurationCounts::Observe(int64_t us) {
  const double seconds = static_cast<double>(us) / 1e6;
  const auto bound = std::lower_bound(kBounds.begin(), kBounds.end(), seconds);
  ++buckets_[static_cast<size_t>(bound - kBounds.begin())];
  sum_us_ += us;
}

void TrainCounts::Count(const Input& input, int64_t now_us) {
  if (const auto* step = std::get_if<EngineStep>(&input)) {
    const StepMetric& metric = step->metric;
    ++steps;
    if (metric.jobs > 1) ++fused_steps;
    if (!std::isfinite(metric.loss) || !std::isfinite(metric.gradient_norm)) ++nonfinite_steps;
    target_tokens += metric.target_tokens;
    context_tokens += metric.tokens - metric.target_tokens;
    step_time.Observe(metric.step_time_us);
    for (size_t i = 0; i < phase_us.size(); ++i) phase_us[i] += metric.phase_us[i];
  } else if (const auto* phase = std::get_if<EnginePhase>(&input)) {
    if (phase->phase == Phase::kCheckpointing) checkpointing_since_us_[phase->key] = now_us;
  } else if (const auto* checkpoint = std::get_if<EngineCheckpoint>(&input)) {
    const auto since = checkpointing_since_us_.find(checkpoint->key);
    if (since == checkpointing_since_us_.end()) return;
    checkpoint_time.Observe(now_us - since->second);
    checkpointing_since_us_.erase(since);
  } else if (std::holds_alternative<UploadFailed>(input) ||
             std::holds_alternative<EngineNoRoom>(input)) {
    ++checkpoint_failures;
  } else if (const auto* finished = std::get_if<EngineFinished>(&input)) {
    Forget(finished->key);
  } else if (const auto* failed = std::get_if<EngineFailed>(&input)) {
    Forget(failed->key);
  }
}

}  // namespace nibble::worker

#include "server/job_head.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/log.h"

namespace nibble::server {
namespace {

// Of more steps than these since the row was written some are read: those between had about as many tokens.
constexpr int64_t kMostRead = 10'000;
constexpr int64_t kMostInAll = int64_t{1} << 60;  // tokens: nothing real is beyond

// Keeps the average steady while single steps vary.
double SmoothRate(double before, int64_t tokens, int64_t step_time_us) {
  if (step_time_us <= 0) return before;
  const double rate = static_cast<double>(tokens) * 1e6 / static_cast<double>(step_time_us);
  return before > 0 ? 0.8 * before + 0.2 * rate : rate;
}

}  // namespace

core::Progress HeadAfter(const core::Progress& before, const std::vector<store::StepMetric>& metrics) {
  core::Progress head = before;
  const auto set = [](double value, std::optional<double>& field) {
    if (std::isfinite(value)) field = value;
  };
  for (const store::StepMetric& metric : metrics) {
    if (metric.eval_loss) set(*metric.eval_loss, head.eval_loss);
    head.used_bytes = std::max(head.used_bytes, metric.used_bytes);
    // An evaluation alone: its step was not told (logging_steps), or is lost.
    if (metric.eval_loss && metric.tokens == 0) continue;
    if (metric.step <= head.step) continue;
    const int64_t steps = metric.step - head.step;  // more than one: those between were not told
    head.trained_tokens =
        std::min(kMostInAll, head.trained_tokens + std::min(kMostInAll / steps, metric.tokens) * steps);
    head.step = metric.step;
    head.epoch = std::max(head.epoch, metric.epoch_fraction);
    head.step_time_us = metric.step_time_us;
    head.tokens_per_second = SmoothRate(head.tokens_per_second, metric.tokens, metric.step_time_us);
    set(metric.loss, head.loss);
    set(metric.gradient_norm, head.gradient_norm);
    set(metric.learning_rate, head.learning_rate);
  }
  return head;
}

void CatchUp(store::MetricStore& metrics, core::State& state) {
  for (const std::string& id : state.live_jobs) {
    core::Job& job = state.jobs.at(id);
    if (job.Current() == nullptr) continue;
    // With the row's own step: its evaluation may have come later.
    auto steps = metrics.Read(id, std::max<int64_t>(0, job.progress.step - 1), 0, kMostRead);
    if (!steps.ok()) {
      LogWarning("metrics.unreadable", {{"job", id}, {"why", std::string(steps.status().message())}});
      continue;
    }
    // Earlier attempts may have come further than the checkpoint this one began from.
    std::erase_if(*steps, [&](const store::StepMetric& metric) { return metric.epoch != job.epoch; });
    job.progress = HeadAfter(job.progress, *steps);
  }
}

}  // namespace nibble::server

#include "server/core/plan_fit.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "base/status.h"
#include "server/core/schedule.h"
#include "server/core/schedule_sync.h"

namespace nibble::core {
namespace {

// The largest number of units that fits, as a multiple of `unit`; 0 when not even `low` does.
int32_t LargestThatFits(int32_t low, int32_t high, int32_t unit,
                        const std::function<bool(int32_t)>& fits) {
  if (high < low || !fits(low * unit)) return 0;
  while (low < high) {
    const int32_t middle = low + (high - low + 1) / 2;
    if (fits(middle * unit)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low * unit;
}

void FindLargest(const Model& model, const FitQuestion& question, const Device& device, Core& core,
                 DeviceFit& fit) {
  spec::TrainSpec spec = question.spec;
  if (question.any_recompute) spec::Recomputation{spec::Recompute::kFull}.SetIn(spec);
  const auto fits = [&](const spec::TrainSpec& s) {
    if (!CheckWanted(question).ok()) return false;  // and so on to the end, without another plan
    if (!core.planner.Resolve(s, model.config).ok()) return false;
    const absl::StatusOr<PlanBytes> plan = core.planner.Plan(model, s, device.profile);
    return plan.ok() && Need(*plan).FitsAlone(Capacity(device));
  };
  const auto batch_fits = [&](int32_t size) {
    spec::TrainSpec s = spec;
    s.micro_batch_size = size;
    return fits(s);
  };
  const auto length_fits = [&](int32_t length) {
    spec::TrainSpec s = spec;
    s.sequence_len = length;
    return fits(s);
  };
  fit.largest_micro_batch_size = LargestThatFits(1, kLargestBatch, 1, batch_fits);
  const auto positions =
      static_cast<int32_t>(std::min<int64_t>(model.config.max_positions, 1 << 20));
  if (length_fits(positions)) {
    fit.largest_sequence_len = positions;
    return;
  }
  constexpr int32_t kLengthUnit = 64;
  fit.largest_sequence_len = LargestThatFits(1, positions / kLengthUnit, kLengthUnit, length_fits);
}

// How long a job of this spec would train; nothing when nothing like it was measured yet.
Estimate ExpectedDuration(const State& state, const Model& model, const FitQuestion& question,
                          const Device& device) {
  if (question.planned_steps <= 0) return {};
  Job job;
  job.spec = question.spec;
  job.model_id = model.id;
  job.plan_key = PlanKey(model, question.spec);
  job.progress.planned_steps = question.planned_steps;
  const Estimate estimate = Predict(state, job, SpeedOf(device.profile));
  return estimate.measured || state.picos_per_work > 0 ? estimate : Estimate{};
}

// All but when it would start and end there.
DeviceFit FitOf(const State& state, const Model& model, const FitQuestion& question, const Worker& worker,
                const Device& device, Core& core) {
  DeviceFit fit;
  const DeviceLoad load = LoadOf(state, worker, device.id);
  fit.worker_id = worker.id;
  fit.device_id = device.id;
  fit.capacity_bytes = device.capacity_bytes;
  fit.capacity = Capacity(device);
  fit.free_bytes = device.capacity_bytes - load.TotalBytes();
  // With a smaller batch it may be taken.
  FindLargest(model, question, device, core, fit);
  absl::StatusOr<PlanBytes> plan = core.planner.Plan(model, question.spec, device.profile);
  if (!plan.ok()) {
    fit.refusal = plan.status();
    return fit;
  }
  fit.plan = *std::move(plan);
  fit.shortfall_bytes = std::max<int64_t>(0, fit.plan.TotalBytes() - device.capacity_bytes);
  const Need need(fit.plan);
  const auto over = [](int64_t bytes, int64_t bound) {
    return bound == 0 ? 0 : std::max<int64_t>(0, bytes - bound);
  };
  fit.pinned_shortfall_bytes = over(need.beside.pinned_bytes, fit.capacity.beside.pinned_bytes);
  fit.host_shortfall_bytes = over(need.beside.host_bytes, fit.capacity.beside.host_bytes);
  const std::string group = GroupKey(model, question.spec);
  if (load.Fits(fit.capacity, group, fit.plan, false, core.options)) {
    fit.verdict = DeviceFit::Verdict::kFitsNow;
  } else if (need.FitsAlone(fit.capacity)) {
    fit.verdict = DeviceFit::Verdict::kFitsAlone;
  } else {
    fit.suggestions = core.planner.Suggest(model, question.spec, device.profile, device.capacity_bytes);
  }
  return fit;
}

}  // namespace

absl::Status CheckWanted(const FitQuestion& question) {
  if (question.unwanted && question.unwanted()) return absl::CancelledError("nobody waits for this plan");
  return absl::OkStatus();
}

absl::StatusOr<FitReport> FitsOf(const State& state, const Model& model, const FitQuestion& question,
                                 Core& core) {
  FitReport report;
  const auto starts = ExpectedStarts(state, model, question.spec, question.now_us, core);
  for (const auto& [worker_id, worker] : state.workers) {
    if (worker.lost) continue;
    for (const auto& [device_id, device] : worker.devices) {
      if (!device.fault.empty()) continue;
      RETURN_IF_ERROR(CheckWanted(question));
      DeviceFit fit = FitOf(state, model, question, worker, device, core);
      if (const auto start = starts.find({worker_id, device_id}); start != starts.end()) {
        fit.expected_start_us = start->second;
        const Estimate duration = ExpectedDuration(state, model, question, device);
        if (duration.total_us > 0) fit.expected_end_us = start->second + duration.total_us;
        fit.end_is_scaled = duration.total_us > 0 && !duration.measured;
      }
      report.fits.push_back(std::move(fit));
    }
  }
  RETURN_IF_ERROR(CheckWanted(question));
  const auto short_of = [](const DeviceFit& fit) {
    const int64_t bytes = fit.shortfall_bytes + fit.pinned_shortfall_bytes + fit.host_shortfall_bytes;
    return std::pair(!fit.refusal.ok(), bytes);
  };
  const auto nearest = std::min_element(
      report.fits.begin(), report.fits.end(),
      [&](const DeviceFit& a, const DeviceFit& b) { return short_of(a) < short_of(b); });
  if (nearest != report.fits.end()) report.suggestions = nearest->suggestions;
  return report;
}

}  // namespace nibble::core

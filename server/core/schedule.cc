#include "server/core/schedule.h"

#include <algorithm>
#include <limits>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "server/core/schedule_internal.h"

namespace nibble::core {

void DeviceLoad::Add(const std::string& group, const PlanBytes& plan, bool alone) {
  Group& g = groups[group];
  g.fixed_bytes = std::max(g.fixed_bytes, plan.fixed_bytes);
  g.base_bytes = std::max(g.base_bytes, plan.base_bytes);
  g.persistent_bytes += plan.persistent_bytes;
  g.host_bytes += plan.host_bytes;
  g.step_bytes = std::max(g.step_bytes, plan.step_bytes);
  g.alone = g.alone || alone;
  ++g.attempts;
  ++attempts;
}

int64_t DeviceLoad::TotalBytes() const {
  int64_t total_bytes = 0;
  for (const auto& [key, group] : groups) total_bytes += group.TotalBytes();
  return total_bytes;
}

int64_t DeviceLoad::Added(const std::string& group, const PlanBytes& plan) const {
  DeviceLoad with = *this;
  with.Add(group, plan, false);
  return with.TotalBytes() - TotalBytes();
}

bool DeviceLoad::Fits(int64_t capacity_bytes, const std::string& group, const PlanBytes& plan,
                      bool alone, const CoreOptions& options) const {
  if (attempts >= options.max_attempts_per_device) return false;
  const auto mine = groups.find(group);
  if (mine == groups.end()) {
    if (static_cast<int32_t>(groups.size()) >= options.max_bases_per_device) return false;
  } else if (alone || mine->second.alone) {
    return false;
  }
  return TotalBytes() + Added(group, plan) <= capacity_bytes;
}

DeviceLoad LoadOf(const State& state, const Worker& worker, const std::string& device_id) {
  DeviceLoad load;
  const auto held = state.holding.find(worker.id);
  if (held == state.holding.end()) return load;
  for (const AttemptKey& key : held->second) {
    const Attempt& attempt = *state.FindAttempt(key);
    if (attempt.device_id == device_id && !attempt.group.empty()) {
      load.Add(attempt.group, attempt.plan, attempt.run_alone);
    }
  }
  return load;
}

std::vector<const Job*> QueueOrder(const State& state, const CoreOptions& options) {
  // All wait equally fast, so the order does not depend on the time: a point of priority is worth
  // aging_us of age.
  std::vector<std::tuple<int64_t, int64_t, const Job*>> ranked;
  for (const std::string& id : state.queued_jobs) {
    const Job& job = state.jobs.at(id);
    if (job.kind != JobKind::kTrain) continue;
    ranked.emplace_back(job.queued_us - job.priority * options.aging_us, job.number, &job);
  }
  std::sort(ranked.begin(), ranked.end(), [](const auto& a, const auto& b) {
    return std::tie(std::get<0>(a), std::get<1>(a)) < std::tie(std::get<0>(b), std::get<1>(b));
  });
  std::vector<const Job*> order;
  order.reserve(ranked.size());
  for (const auto& entry : ranked) order.push_back(std::get<2>(entry));
  return order;
}

int64_t ExpectedEndUs(const Job& job, int64_t now_us) {
  const Progress& p = job.progress;
  if (p.planned_steps <= 0 || p.step_time_us <= 0) return kNever;
  return now_us + std::max<int64_t>(0, p.planned_steps - p.step) * p.step_time_us;
}

std::vector<DeviceView> LiveDevices(const State& state, const CoreOptions& options,
                                    int64_t now_us) {
  std::vector<DeviceView> devices;
  for (const auto& [worker_id, worker] : state.workers) {
    if (worker.draining || worker.self_draining) continue;
    if (HealthOf(worker, options, now_us) != WorkerHealth::kAlive) continue;
    for (const auto& [device_id, device] : worker.devices) {
      DeviceView view;
      view.worker = &worker;
      view.device = &device;
      view.load = LoadOf(state, worker, device_id);
      const auto held = state.holding.find(worker_id);
      if (held != state.holding.end()) {
        for (const AttemptKey& key : held->second) {
          const Attempt& attempt = *state.FindAttempt(key);
          if (attempt.device_id != device_id || attempt.group.empty()) continue;
          view.held.push_back({&attempt, ExpectedEndUs(state.jobs.at(key.first), now_us)});
        }
      }
      devices.push_back(std::move(view));
    }
  }
  return devices;
}

bool NumericsAllow(const Job& job, const Device& device) {
  return job.numerics_class.empty() || job.spec.allow_numerics_change ||
         job.numerics_class == NumericsClass(device.profile);
}

std::optional<Reservation> Reserve(const Job& job, const Model& model,
                                   const std::vector<DeviceView>& devices, Core& core) {
  std::optional<Reservation> best;
  for (size_t i = 0; i < devices.size(); ++i) {
    const DeviceView& view = devices[i];
    if (!NumericsAllow(job, *view.device)) continue;
    const absl::StatusOr<PlanBytes>& plan = core.planner.PlanOf(job, model, view.device->profile);
    if (!plan.ok()) continue;
    Reservation r{i, GroupKey(model, job.spec), *plan, job.run_alone, view.Rest({}), 0, &job, {}};
    std::vector<HeldAttempt> held = view.held;
    std::sort(held.begin(), held.end(), [](const HeldAttempt& a, const HeldAttempt& b) {
      return std::tie(a.expected_end_us, a.attempt->start_unix_us, a.attempt->job_id) <
             std::tie(b.expected_end_us, b.attempt->start_unix_us, b.attempt->job_id);
    });
    size_t ended = 0;
    while (!r.rest.Fits(view.device->capacity_bytes, r.group, r.plan, r.alone, core.options) &&
           ended < held.size()) {
      r.start_us = held[ended].expected_end_us;
      r.gone.insert(held[ended].attempt);
      ++ended;
      r.rest = view.Rest(r.gone);
    }
    if (!r.rest.Fits(view.device->capacity_bytes, r.group, r.plan, r.alone, core.options)) continue;
    if (!best || std::tie(r.start_us, ended) < std::make_tuple(best->start_us, best->gone.size()))
      best = r;
  }
  return best;
}

DeviceLoad DeviceView::Rest(const std::set<const Attempt*>& gone) const {
  DeviceLoad rest;
  for (const HeldAttempt& h : held) {
    if (gone.count(h.attempt) == 0)
      rest.Add(h.attempt->group, h.attempt->plan, h.attempt->run_alone);
  }
  for (const Admitted& a : admitted) rest.Add(a.group, a.plan, a.alone);
  return rest;
}

namespace {

// Smaller is better: not where it failed before, an idle device before a shared one (sharing means
// taking turns), where the base already is, the tightest fit, names.
using Rank = std::tuple<bool, int32_t, bool, int64_t, std::string, std::string>;

class Pass {
 public:
  Pass(const State& state, int64_t now_us, Core& core)
      : state_(state),
        now_us_(now_us),
        core_(core),
        devices_(LiveDevices(state, core.options, now_us)) {}

  Schedule Run() {
    std::set<std::string> keys;
    size_t examined = 0;
    for (const Job* job : QueueOrder(state_, core_.options)) {
      if (++examined > kMaxJobsPerPass) break;
      const Model* model = state_.ModelOf(*job);
      if (model == nullptr) continue;
      const bool placed = job->not_before_us <= now_us_ && Place(*job, *model);
      if (placed) continue;
      if (!reserved_ && job->not_before_us <= now_us_)
        reserved_ = Reserve(*job, *model, devices_, core_);
      if (job->progress.planned_steps == 0 && job->report_json.empty() && WantsCheck(*job) &&
          keys.insert(job->check_key).second) {
        result_.wanting_checks.push_back(job->id);
      }
    }
    PlaceChecks();
    return std::move(result_);
  }

 private:
  // A job whose turn will not come soon has its data read in the meantime.
  bool WantsCheck(const Job& job) const {
    if (devices_.empty()) return false;
    const auto it = state_.checks.find(job.check_key);
    return it == state_.checks.end();
  }

  bool Place(const Job& job, const Model& model) {
    const std::string group = GroupKey(model, job.spec);
    DeviceView* best = nullptr;
    Rank best_rank;
    for (size_t i = 0; i < devices_.size(); ++i) {
      DeviceView& view = devices_[i];
      if (!NumericsAllow(job, *view.device)) continue;
      const absl::StatusOr<PlanBytes>& plan =
          core_.planner.PlanOf(job, model, view.device->profile);
      if (!plan.ok()) continue;
      if (!view.load.Fits(view.device->capacity_bytes, group, *plan, job.run_alone, core_.options))
        continue;
      if (Delays(i, group, *plan, job.run_alone)) continue;
      const bool resident =
          view.load.groups.count(group) > 0 || view.device->resident_bases.count(model.digest) > 0;
      const int64_t left_bytes =
          view.device->capacity_bytes - view.load.TotalBytes() - view.load.Added(group, *plan);
      Rank rank{job.poisoned_workers.count(view.worker->id) > 0,
                view.load.attempts,
                !resident,
                left_bytes,
                view.worker->id,
                view.device->id};
      if (best != nullptr && rank >= best_rank) continue;
      best = &view;
      best_rank = rank;
    }
    if (best == nullptr) return false;
    const PlanBytes plan = *core_.planner.PlanOf(job, model, best->device->profile);
    best->load.Add(group, plan, job.run_alone);
    best->admitted.push_back({group, plan, job.run_alone});
    result_.placements.push_back({job.id, best->worker->id, best->device->id, group, plan,
                                  absl::StrCat(std::get<2>(best_rank) ? "" : "base resident, ",
                                               HumanBytes(std::get<3>(best_rank)), " left")});
    return true;
  }

  // Whether the job that has the reservation could then no longer start when it is due.
  bool Delays(size_t device, const std::string& group, const PlanBytes& plan, bool alone) const {
    if (!reserved_ || reserved_->device != device) return false;
    const DeviceView& view = devices_[device];
    DeviceLoad then = view.Rest(reserved_->gone);
    then.Add(group, plan, alone);
    return !then.Fits(view.device->capacity_bytes, reserved_->group, reserved_->plan,
                      reserved_->alone, core_.options);
  }

  // CHECKs hold no device bytes; they go to the worker with the fewest.
  void PlaceChecks() {
    std::map<std::string, int32_t> running;
    for (const auto& [worker_id, held] : state_.holding) {
      for (const AttemptKey& key : held)
        running[worker_id] += state_.jobs.at(key.first).kind == JobKind::kCheck;
    }
    for (const std::string& id : state_.queued_jobs) {
      const Job& job = state_.jobs.at(id);
      if (job.kind != JobKind::kCheck || job.not_before_us > now_us_) continue;
      const DeviceView* best = nullptr;
      for (const DeviceView& view : devices_) {
        if (running[view.worker->id] >= core_.options.max_checks_per_worker) continue;
        if (best == nullptr || running[view.worker->id] < running[best->worker->id]) best = &view;
      }
      if (best == nullptr) return;
      ++running[best->worker->id];
      result_.placements.push_back(
          {job.id, best->worker->id, best->device->id, "", {}, "reads the data"});
    }
  }

  const State& state_;
  const int64_t now_us_;
  Core& core_;
  std::vector<DeviceView> devices_;
  std::optional<Reservation> reserved_;
  Schedule result_;
};

}  // namespace

Schedule MakeSchedule(const State& state, int64_t now_us, Core& core) {
  return Pass(state, now_us, core).Run();
}

}  // namespace nibble::core

#include "tests/fleet/run.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/status.h"

namespace nibble::fleet {
namespace {

constexpr double kUsPerHour = 3.6e9;
constexpr double kShortestUs = 10.0 * 60 * 1e6;  // of bounded slowdown

void CountJobs(const Floor& floor, RunResult& result) {
  int64_t last_us = 0;
  for (size_t i = 0; i < floor.workload().jobs.size(); ++i) {
    const FleetJob& job = floor.workload().jobs[i];
    const JobRun& run = floor.run(static_cast<int32_t>(i));
    const double completion_us = static_cast<double>(run.end_us - job.arrive_us);
    result.completion_h.push_back(completion_us / kUsPerHour);
    const double own_us = job.OwnUs() + static_cast<double>(floor.scenario().costs.start_us);
    result.slowdown.push_back(std::max(1.0, completion_us / std::max(own_us, kShortestUs)));
    last_us = std::max(last_us, run.end_us);
    const double bound_us = std::max(10.0 * static_cast<double>(job.nominal_us), 24 * kUsPerHour);
    const double wait = static_cast<double>(run.first_start_us - job.arrive_us) / bound_us;
    result.worst_wait = std::max(result.worst_wait, wait);
    if (wait > 1) ++result.bound_broken;
  }
  result.makespan_h = static_cast<double>(last_us) / kUsPerHour;
}

void CountShares(const Floor& floor, RunResult& result) {
  const std::vector<Tenant>& tenants = floor.scenario().tenants;
  double weights = 0;
  for (const Tenant& t : tenants) weights += t.weight;
  double capacity = 0;
  for (int32_t d = 0; d < floor.devices(); ++d)
    capacity += static_cast<double>(floor.device(d).capacity_bytes);
  std::vector<double> errors;
  for (const Totals::Hour& hour : floor.totals().hours) {
    if (!hour.backlogged || tenants.size() < 2) continue;
    std::vector<double> share(tenants.size());
    double sum = 0;
    for (size_t t = 0; t < tenants.size(); ++t) {
      share[t] = std::max(hour.memory_us[t] / capacity, hour.device_us[t] / floor.devices());
      sum += share[t];
    }
    double error = 0;
    for (size_t t = 0; t < tenants.size(); ++t)
      error =
          std::max(error, std::abs(share[t] / std::max(sum, 1e-9) - tenants[t].weight / weights));
    errors.push_back(100 * error);
  }
  result.backlogged_hours = static_cast<int64_t>(errors.size());
  for (const double e : errors) result.share_error_mean += e / static_cast<double>(errors.size());
  result.share_error_p95 = Quantile(errors, 0.95);
}

void CountTotals(const Totals& t, RunResult& result) {
  result.planned_over_touched = t.reserved_bytes_us / std::max(1.0, t.touched_bytes_us);
  result.reserved = t.reserved_bytes_us / std::max(1.0, t.capacity_bytes_us);
  result.unreserved_backlog = t.unallocated_backlog_us / std::max(1.0, t.capacity_backlog_us);
  result.preemptions = t.preemptions;
  result.over_capacity = t.over_capacity;
}

}  // namespace

double Quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  const double rank = std::ceil(q * static_cast<double>(values.size()));
  const size_t at = std::clamp<size_t>(static_cast<size_t>(rank), 1, values.size()) - 1;
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(at), values.end());
  return values[at];
}

RunResult RunPolicy(const Scenario& scenario, const Workload& workload, std::string_view name,
                    uint64_t seed) {
  const auto begin = std::chrono::steady_clock::now();
  Floor floor(&scenario, &workload, ReservingOf(name));
  const std::unique_ptr<Policy> policy = MakePolicy(name, &floor);
  size_t next = 0;
  while (floor.unfinished() > 0) {
    const int64_t arrival_us =
        next < workload.jobs.size() ? workload.jobs[next].arrive_us : kNeverUs;
    const int64_t now_us = std::min({arrival_us, floor.NextUs(), policy->NextUs()});
    CHECK(now_us < kNeverUs);  // else jobs wait for ever
    floor.AdvanceTo(now_us);
    for (const int32_t id : floor.Finished()) {
      floor.End(id);
      policy->Ended(id);
    }
    for (; next < workload.jobs.size() && workload.jobs[next].arrive_us <= now_us; ++next) {
      floor.Arrive(static_cast<int32_t>(next));
      policy->Arrived(static_cast<int32_t>(next));
    }
    policy->Act();
  }
  RunResult result;
  result.policy = std::string(name);
  result.seed = seed;
  CountJobs(floor, result);
  CountShares(floor, result);
  CountTotals(floor.totals(), result);
  result.busy = floor.totals().busy_us / (result.makespan_h * kUsPerHour * floor.devices());
  result.passes = static_cast<int64_t>(policy->pass_s().size());
  result.pass_p99_ms = 1e3 * Quantile(policy->pass_s(), 0.99);
  result.wall_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

namespace {

// Quantiles at 0, 1, ... 100 %; none of none.
std::vector<double> Steps(std::vector<double> values) {
  std::vector<double> steps;
  if (values.empty()) return steps;
  std::sort(values.begin(), values.end());
  for (size_t i = 0; i <= 100; ++i) steps.push_back(values[i * (values.size() - 1) / 100]);
  return steps;
}

}  // namespace

Summary Summarize(const std::vector<RunResult>& runs) {
  Summary s;
  if (runs.empty()) return s;
  s.policy = runs.front().policy;
  s.runs = static_cast<int64_t>(runs.size());
  const double n = static_cast<double>(runs.size());
  std::vector<double> completion;
  std::vector<double> slowdown;
  std::vector<double> rho, chance;
  for (const RunResult& r : runs) {
    rho.insert(rho.end(), r.rho.begin(), r.rho.end());
    chance.insert(chance.end(), r.rho_chance.begin(), r.rho_chance.end());
    s.rho_worst_project = std::max(s.rho_worst_project, r.rho_worst_project);
    completion.insert(completion.end(), r.completion_h.begin(), r.completion_h.end());
    slowdown.insert(slowdown.end(), r.slowdown.begin(), r.slowdown.end());
    s.makespan_h += r.makespan_h / n;
    s.planned_over_touched += r.planned_over_touched / n;
    s.reserved += r.reserved / n;
    s.unreserved_backlog += r.unreserved_backlog / n;
    s.busy += r.busy / n;
    // By hours: a run that had none says nothing.
    const auto hours = static_cast<double>(r.backlogged_hours);
    s.share_error_mean += r.share_error_mean * hours;
    s.share_error_p95 = std::max(s.share_error_p95, r.share_error_p95);
    s.backlogged_hours += r.backlogged_hours;
    s.preemptions += static_cast<double>(r.preemptions);
    s.over_capacity += r.over_capacity;
    s.bound_broken += r.bound_broken;
    s.worst_wait = std::max(s.worst_wait, r.worst_wait);
    s.pass_p99_ms = std::max(s.pass_p99_ms, r.pass_p99_ms);
  }
  s.share_error_mean /= static_cast<double>(std::max<int64_t>(1, s.backlogged_hours));
  s.jobs = static_cast<int64_t>(completion.size());
  for (const double h : completion) s.mean_h += h / static_cast<double>(s.jobs);
  for (const double x : slowdown) s.slowdown_mean += x / static_cast<double>(s.jobs);
  s.preemptions /= static_cast<double>(s.jobs);
  s.p50_h = Quantile(completion, 0.5);
  s.p99_h = Quantile(completion, 0.99);
  s.slowdown_p99 = Quantile(slowdown, 0.99);
  s.slowdown_steps = Steps(std::move(slowdown));
  s.rho_p50 = Quantile(rho, 0.5);
  s.rho_p95 = Quantile(rho, 0.95);
  s.rho_max = Quantile(rho, 1);
  s.rho_chance_p95 = Quantile(std::move(chance), 0.95);
  s.rho_steps = Steps(std::move(rho));
  return s;
}

}  // namespace nibble::fleet

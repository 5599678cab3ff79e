// Finish-time fairness: each project alone on its part of the fleet, by the same policy.
#include <algorithm>
#include <cmath>
#include <map>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/random.h"
#include "tests/fleet/run.h"

namespace nibble::fleet {
namespace {

// Of every kind of device the part that the project's weight is of all weights.
absl::StatusOr<std::vector<size_t>> DevicesOf(const Scenario& scenario, const Workload& workload,
                                              size_t tenant) {
  double weights = 0;
  for (const Tenant& t : scenario.tenants) weights += t.weight;
  const double part = scenario.tenants[tenant].weight / weights;
  std::map<std::pair<int64_t, double>, std::vector<size_t>> kinds;
  for (size_t d = 0; d < workload.capacity_bytes.size(); ++d)
    kinds[{workload.capacity_bytes[d], workload.speed.empty() ? 1 : workload.speed[d]}].push_back(d);
  std::vector<size_t> devices;
  for (const auto& [kind, all] : kinds) {
    const double wanted = part * static_cast<double>(all.size());
    const double whole = std::round(wanted);
    if (whole < 1 || std::abs(wanted - whole) > 1e-6) {
      return absl::FailedPreconditionError(
          absl::StrCat("project ", scenario.tenants[tenant].name, " has ", wanted, " of ", all.size(),
                       " devices of ", kind.first, " bytes as its part, which is no whole number: there is "
                       "no fleet it could have alone"));
    }
    devices.insert(devices.end(), all.begin(), all.begin() + static_cast<std::ptrdiff_t>(whole));
  }
  return devices;
}

// The same jobs in the same order, each about a minute later at most.
Workload SomewhatLater(Workload workload, uint64_t seed) {
  Random rng = RandomOf(seed);
  int64_t before_us = 0;
  for (FleetJob& job : workload.jobs) {
    job.arrive_us = before_us = std::max(before_us, job.arrive_us + rng.Between(0, kMinuteUs));
  }
  return workload;
}

double Sum(const std::vector<double>& values) {
  double sum = 0;
  for (const double v : values) sum += v;
  return sum;
}

}  // namespace

absl::Status AddFairness(const Scenario& scenario, const Workload& workload, RunResult& result) {
  result.rho.assign(workload.jobs.size(), 0);
  result.rho_chance.assign(workload.jobs.size(), 0);
  result.rho_worst_project = 0;
  for (size_t t = 0; t < scenario.tenants.size(); ++t) {
    absl::StatusOr<std::vector<size_t>> devices = DevicesOf(scenario, workload, t);
    if (!devices.ok()) return devices.status();
    Scenario alone = scenario;
    alone.tenants = {{scenario.tenants[t].name, 1}};
    Workload own;
    own.plans = workload.plans;
    for (const size_t d : *devices) {
      own.capacity_bytes.push_back(workload.capacity_bytes[d]);
      if (!workload.speed.empty()) own.speed.push_back(workload.speed[d]);
    }
    std::vector<size_t> jobs;
    std::vector<double> shared_h;
    for (size_t i = 0; i < workload.jobs.size(); ++i) {
      if (workload.jobs[i].tenant != static_cast<int32_t>(t)) continue;
      jobs.push_back(i);
      shared_h.push_back(result.completion_h[i]);
      own.jobs.push_back(workload.jobs[i]);
      own.jobs.back().tenant = 0;
    }
    if (jobs.empty()) continue;
    const RunResult run = RunPolicy(alone, own, result.policy, result.seed);
    const RunResult again = RunPolicy(alone, SomewhatLater(own, result.seed), result.policy, result.seed);
    for (size_t k = 0; k < jobs.size(); ++k) {
      const double alone_h = std::max(1e-9, run.completion_h[k]);
      result.rho[jobs[k]] = shared_h[k] / alone_h;
      result.rho_chance[jobs[k]] = again.completion_h[k] / alone_h;
    }
    result.rho_worst_project = std::max(result.rho_worst_project, Sum(shared_h) / Sum(run.completion_h));
  }
  return absl::OkStatus();
}

}  // namespace nibble::fleet

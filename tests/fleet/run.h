// One run of one policy over one workload until nothing is left, and what is told of it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "tests/fleet/policy.h"

namespace nibble::fleet {

struct RunResult {
  std::string policy;
  uint64_t seed = 0;
  std::vector<double> completion_h;  // of each job: from arrival to end
  std::vector<double> slowdown;  // completion over the larger of its own duration and 10 minutes
  double makespan_h = 0;
  double planned_over_touched = 0;  // bytes reserved over bytes touched, by time
  double reserved = 0;              // share of the fleet's bytes, by time
  double unreserved_backlog = 0;    // share not reserved while jobs waited
  double busy = 0;                  // share of device time
  // Over hours in which every project had a job waiting: the largest distance of a project's part
  // of the dominant shares from its weight, in points of a hundred.
  int64_t backlogged_hours = 0;
  double share_error_mean = 0;
  double share_error_p95 = 0;
  int64_t preemptions = 0;
  int64_t over_capacity = 0;  // times a device held more than it has
  int64_t bound_broken = 0;   // starts later than max(10 x predicted, 24 h) after the arrival
  double worst_wait = 0;      // as a part of that bound
  // By AddFairness, else empty: of each job its completion over that of the same job when its project is
  // alone on its part of the fleet; and of the project that fares worst, by the sums over its jobs.
  std::vector<double> rho;
  double rho_worst_project = 0;
  // What chance alone makes of rho: the job's completion alone on that part when all jobs there arrive up to
  // a minute later, over that when they do not. Nobody shares anything.
  std::vector<double> rho_chance;
  int64_t passes = 0;         // of the scheduler
  double pass_p99_ms = 0;
  double wall_s = 0;
};

RunResult RunPolicy(const Scenario& scenario, const Workload& workload, std::string_view policy,
                    uint64_t seed);

// Finish-time fairness (Themis, NSDI 2020: rho = T_shared / T_alone, T_alone with 1/N of the cluster): runs
// each project's jobs by the result's policy on the devices that its weight is due. Fails when a
// kind of device cannot be parted by weight into whole devices.
absl::Status AddFairness(const Scenario& scenario, const Workload& workload, RunResult& result);

// The value below which a share `q` of the values lies; 0 of none.
double Quantile(std::vector<double> values, double q);

// Over the seeds of one policy: means of means, quantiles over all jobs together.
struct Summary {
  std::string policy;
  int64_t runs = 0;
  int64_t jobs = 0;
  double mean_h = 0;
  double p50_h = 0;
  double p99_h = 0;
  double slowdown_mean = 0;
  double slowdown_p99 = 0;
  double makespan_h = 0;
  double planned_over_touched = 0;
  double reserved = 0;
  double unreserved_backlog = 0;
  double busy = 0;
  double share_error_mean = 0;
  double share_error_p95 = 0;  // of the worst run
  int64_t backlogged_hours = 0;
  double preemptions = 0;  // per job
  int64_t over_capacity = 0;
  int64_t bound_broken = 0;
  double worst_wait = 0;
  double rho_p50 = 0;  // 0 = not measured
  double rho_p95 = 0;
  double rho_max = 0;
  double rho_worst_project = 0;  // of the worst run
  double rho_chance_p95 = 0;
  double pass_p99_ms = 0;
  std::vector<double> slowdown_steps;  // its quantiles at 0, 1, ... 100 %
  std::vector<double> rho_steps;
};
Summary Summarize(const std::vector<RunResult>& runs);

std::string TableText(const Scenario& scenario, const std::vector<Summary>& summaries);
std::string TableMarkdown(const Scenario& scenario, const std::vector<Summary>& summaries);
// Completion, slowdown and bytes of the policies, side by side.
std::string PlotSvg(const Scenario& scenario, const std::vector<Summary>& summaries);

// nibble-sim fleet ...; the exit code.
int FleetMain(int argc, char** argv);

}  // namespace nibble::fleet

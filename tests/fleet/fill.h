// A fleet that is filled until it overflows: jobs come and never leave, so that what is left over is
// what the placements before made useless. The protocol of fragmentation gradient descent (FGD, USENIX
// ATC 2023): requests drawn from a trace with replacement until they sum to more than the cluster
// has; told is what is not given out by then. docs/simulation.md has the details.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/fleet/run.h"

namespace nibble::fleet {

// What was asked for so far, as a share of the fleet's bytes, when the rest is told.
inline constexpr double kFillLevels[] = {0.8, 0.9, 1.0, 1.1, 1.3};

struct FillLevel {
  double unallocated = 0;  // share of the fleet's bytes nobody has reserved
  double placed = 0;       // asked bytes of the jobs that run, over those of the fleet
  double placed_jobs = 0;  // of those that came
};
struct FillResult {
  std::vector<FillLevel> levels;  // as kFillLevels
  int64_t over_capacity = 0;
};

// "nibble" and the policies that put nobody aside; of those two are only here: "nibble-apart", where no
// two jobs share a base, and "tightest", the smallest rest first.
const std::vector<std::string>& FillPolicyNames();

// A scenario whose requests are stated instead of planned: one recipe per share of a device that the
// trace asks for.
Scenario WithStatedRequests(const Scenario& scenario, const std::vector<TraceJob>& trace);
Workload MakeFillWorkload(const Scenario& scenario, const std::vector<core::PlanBytes>& plans,
                          uint64_t seed);
FillResult RunFill(const Scenario& scenario, const Workload& workload, std::string_view policy);

// The mean over the runs of each policy, by level.
struct FillSummary {
  std::string policy;
  std::vector<FillLevel> levels;
};
FillSummary SummarizeFill(std::string_view policy, const std::vector<FillResult>& runs);
std::string FillText(const Scenario& scenario, int64_t runs, const std::vector<FillSummary>& summaries,
                     bool markdown);
// Unallocated bytes (y) as requests grow (x).
std::string FillSvg(const Scenario& scenario, int64_t runs, const std::vector<FillSummary>& summaries);

}  // namespace nibble::fleet

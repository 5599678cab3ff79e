// The jobs and devices of one run: drawn from the seed, or read from a trace of a real cluster.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/random.h"
#include "server/core/plan.h"
#include "tests/fleet/scenario.h"

namespace nibble::fleet {

struct FleetJob {
  int64_t arrive_us = 0;
  int32_t recipe = 0;
  int32_t tenant = 0;
  int64_t steps = 0;       // declared
  int64_t run_steps = 0;   // until it really ends
  double step_us = 0;      // real, alone, at speed 1
  double busy_share = 1;   // of that, the turn
  int64_t nominal_us = 0;  // declared steps at the recipe's nominal step time: what one can predict
  // On a device so many times as fast: the turns are shorter there, the host's work between them is not. The
  // share of the device's time it keeps busy alone, and its own time that passes in a time.
  double BusyAt(double speed) const {
    return speed == 1 ? busy_share : busy_share / speed / (busy_share / speed + 1 - busy_share);
  }
  double PaceAt(double speed) const {
    return speed == 1 ? 1 : 1 / (busy_share / speed + 1 - busy_share);
  }
  double OwnUs() const { return static_cast<double>(run_steps) * step_us; }
};

struct Workload {
  std::vector<int64_t> capacity_bytes;  // of each device
  std::vector<double> speed;            // of each device; empty = all are alike
  std::vector<FleetJob> jobs;           // by arrival
  std::vector<core::PlanBytes> plans;   // of each recipe
};

// Plans of the recipes on the simulated device; compiled by engine/spec.
absl::StatusOr<std::vector<core::PlanBytes>> PlanRecipes(const Scenario& scenario);
// What a seed draws from. The generator walks by a constant, so seeds that differed by it (or by multiples of
// it) would draw the same numbers, one or some later: hence a seed is mixed first.
Random RandomOf(uint64_t seed);
// By weight; 0 for what fits no device of that size.
std::vector<double> RecipeWeights(const Scenario& scenario, const std::vector<core::PlanBytes>& plans,
                                  int64_t largest_bytes);
int32_t DrawWeighted(const std::vector<double>& weights, Random& rng);
// What the simulated workers register.
spec::DeviceProfile SimProfile(int64_t capacity_bytes);

// One job of a trace, already one device wide.
struct TraceJob {
  double arrive_s = 0;
  double duration_s = 0;
  double busy_share = 0;  // 0 = not known
  std::string tenant;
};
// Formats: docs/simulation.md. Jobs on n devices become n jobs; rows without devices or without an
// end are left out. An error names the line.
absl::StatusOr<std::vector<TraceJob>> ParsePhilly(std::string_view csv);
absl::StatusOr<std::vector<TraceJob>> ParseAlibaba2023(std::string_view csv);

// `trace` is empty unless the scenario names one.
Workload MakeWorkload(const Scenario& scenario, const std::vector<core::PlanBytes>& plans,
                      const std::vector<TraceJob>& trace, uint64_t seed);

}  // namespace nibble::fleet

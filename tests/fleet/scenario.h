// What a fleet simulation is asked to do: a fleet, recipes, how jobs arrive and how long they take.
//
// A value read from a JSON file (tests/fleet/scenarios); docs/simulation.md explains the keys. The
// recipes' memory is worked out by the plan compiler, never stated.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/spec/model_config.h"
#include "engine/spec/train_spec.h"

namespace nibble::fleet {

inline constexpr int64_t kSecondUs = 1'000'000;
inline constexpr int64_t kMinuteUs = 60 * kSecondUs;
inline constexpr int64_t kHourUs = 60 * kMinuteUs;

struct Recipe {
  std::string name;
  double weight = 0;      // share of the jobs
  double busy_share = 1;  // of the time alone that its turns occupy the device
  double step_s = 1;      // nominal, alone: turn and host work
  std::string model_json;
  spec::ModelConfig model;
  spec::TrainSpec train;  // resolved
  int64_t stated_bytes = 0;  // needed by itself alone, instead of what a plan says; 0 = as planned
};

struct DeviceKind {
  int64_t count = 0;
  int64_t capacity_bytes = 0;
  double speed = 1;  // of its turns, against the device the recipes' step times are of
};

struct Tenant {
  std::string name;
  double weight = 1;
};

// With probability `share`: 10^U(low, high) minutes.
struct DurationLaw {
  double share = 0;
  double log10_low = 0;
  double log10_high = 0;
};

struct TraceSource {
  std::string kind;  // "" = none, "philly", "alibaba-2023"
  std::string file;  // under NIBBLE_TEST_DATA
  int64_t skip = 0;  // single-device jobs left out at the beginning
  double load = 0;   // arrivals are squeezed until whole devices are offered this much
};

// Fleets drawn from the seed; devices 0 = the fleet is stated.
struct RandomFleet {
  int64_t devices_low = 0;
  int64_t devices_high = 0;
  int64_t jobs_low = 0;
  int64_t jobs_high = 0;
  double load_low = 0;
  double load_high = 0;
};

// Jobs come until they ask for more than there is, and never leave (fill.h).
struct Fill {
  bool wanted = false;
  bool thousandths = false;  // requests are the trace's shares of a device; else plans of recipes
};

struct Costs {
  int64_t check_us = 0;         // reading the data of a job
  int64_t start_us = 0;         // from a placement to the first turn
  int64_t release_us = 0;       // checkpoint and let go
  double sharing_overhead = 0;  // of device time, per further job on the device
};

struct Scenario {
  std::string name;
  std::string about;
  std::vector<Recipe> recipes;
  std::vector<DeviceKind> fleet;
  std::vector<Tenant> tenants;
  std::vector<DurationLaw> durations;
  TraceSource trace;
  RandomFleet random_fleet;
  Fill fill;
  int64_t jobs = 0;
  double arrivals_per_minute = 0;  // Poisson; 0 = all at the beginning
  double busy_share_scale = 1;
  double step_time_noise = 0;  // sigma of the logarithm of real over nominal step time
  double early_end_share = 0;  // of the jobs that end before their last step
  Costs costs;
  std::map<std::string, int64_t> core;  // options of the server's core, by name
  int64_t first_seed = 1;
  int64_t last_seed = 1;
};

// Reads the file, and recipes.json in the folder above its own.
absl::StatusOr<Scenario> LoadScenario(const std::string& path);

}  // namespace nibble::fleet

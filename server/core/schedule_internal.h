// What the scheduler and its explanation (views) share.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "server/core/schedule.h"

namespace nibble::core {

// Jobs looked at in one pass, first in the queue first: bounds the time of a turn of the control loop.
inline constexpr size_t kMaxJobsPerPass = 1'000;
// An expected end nobody knows.
inline constexpr int64_t kNever = std::numeric_limits<int64_t>::max() / 4;
int64_t ExpectedEndUs(const Job& job, int64_t now_us);

struct HeldAttempt {
  const Attempt* attempt = nullptr;
  int64_t expected_end_us = 0;
};
// Placed in the pass that is running.
struct Admitted {
  std::string group;
  PlanBytes plan;
  bool alone = false;
};
// A device of a worker that is alive and takes work.
struct DeviceView {
  const Worker* worker = nullptr;
  const Device* device = nullptr;
  DeviceLoad load;  // held and admitted
  std::vector<HeldAttempt> held;
  std::vector<Admitted> admitted;
  DeviceLoad Rest(const std::set<const Attempt*>& gone) const;
};
std::vector<DeviceView> LiveDevices(const State& state, const CoreOptions& options, int64_t now_us);

bool NumericsAllow(const Job& job, const Device& device);

// Where and when the first waiting job will start.
struct Reservation {
  size_t device = 0;  // index into the views
  std::string group;
  PlanBytes plan;
  bool alone = false;
  DeviceLoad rest;       // what is there when it starts
  int64_t start_us = 0;  // 0 = now; kNever when nobody knows
  const Job* job = nullptr;
  std::set<const Attempt*> gone;  // those it waits for
};
// nullopt when no live device could ever hold it.
std::optional<Reservation> Reserve(const Job& job, const Model& model,
                                   const std::vector<DeviceView>& devices, Core& core);

}  // namespace nibble::core

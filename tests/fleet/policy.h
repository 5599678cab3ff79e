// Who decides in a fleet simulation: Nibble's own core, or one of the baselines.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tests/fleet/floor.h"

namespace nibble::fleet {

class Policy {
 public:
  virtual ~Policy() = default;
  virtual void Arrived(int32_t job) { static_cast<void>(job); }
  virtual void Ended(int32_t job) { static_cast<void>(job); }
  // After every change, and when NextUs is due.
  virtual void Act() = 0;
  virtual int64_t NextUs() const { return kNeverUs; }
  // Wall time of each decision pass, seconds.
  const std::vector<double>& pass_s() const { return pass_s_; }

 protected:
  std::vector<double> pass_s_;
};

// The names below, in the order reports list them; "nibble" is the first.
const std::vector<std::string>& PolicyNames();
bool IsPolicy(std::string_view name);
Reserving ReservingOf(std::string_view name);
// Known durations are given to no baseline but the clairvoyant; busy shares to all of them.
std::unique_ptr<Policy> MakePolicy(std::string_view name, Floor* floor);

// Whether the scheduler has a knob of that name (CoreOptions), to be set by a scenario or --set.
bool IsCoreOption(std::string_view name);

// Nibble: server/core (Decide, Apply, the scheduler) with simulated workers. `apart`: each job has a base
// of its own, so that none is shared.
std::unique_ptr<Policy> MakeNibblePolicy(Floor* floor, bool apart = false);

}  // namespace nibble::fleet

// Which waiting job starts where, and why the others wait. Pure but for the planner's memory.
//
// Order: priority, raised by waiting (CoreOptions.aging_us), then age. A job is admitted to a
// device when
//   sum over the bases on it of (fixed + base + sum(persistent) + sum(host) + max(step))  <=
//   capacity.
// The first job that must wait gets a reservation (EASY): nothing behind it may take bytes on that
// device that it would need once the attempts it waits for have ended.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "server/core/decide.h"
#include "server/core/state.h"

namespace nibble::core {

struct Placement {
  std::string job_id;
  std::string worker_id;
  std::string device_id;
  std::string group;
  PlanBytes plan;
  std::string why;  // "base resident; 1.20 GiB left"
};
struct Schedule {
  std::vector<Placement> placements;
  std::vector<std::string> wanting_checks;  // waiting TRAIN jobs whose data nobody has read yet
};
Schedule MakeSchedule(const State& state, int64_t now_us, Core& core);

// Bytes admitted on a device, per base counted once, and who holds them.
struct DeviceLoad {
  struct Group {
    int64_t fixed_bytes = 0;
    int64_t base_bytes = 0;
    int64_t persistent_bytes = 0;  // sum
    int64_t host_bytes = 0;        // sum
    int64_t step_bytes = 0;        // max
    int32_t attempts = 0;
    bool alone = false;
    int64_t TotalBytes() const {
      return fixed_bytes + base_bytes + persistent_bytes + host_bytes + step_bytes;
    }
  };
  std::map<std::string, Group> groups;  // by GroupKey
  int32_t attempts = 0;

  // Whether one more attempt may come in.
  bool Fits(int64_t capacity_bytes, const std::string& group, const PlanBytes& plan, bool alone,
            const CoreOptions& options) const;
  void Add(const std::string& group, const PlanBytes& plan, bool alone);
  int64_t TotalBytes() const;
  // Bytes this plan would add here.
  int64_t Added(const std::string& group, const PlanBytes& plan) const;
};
DeviceLoad LoadOf(const State& state, const Worker& worker, const std::string& device_id);

// Queued TRAIN jobs, next first.
std::vector<const Job*> QueueOrder(const State& state, const CoreOptions& options);

}  // namespace nibble::core

// Which waiting job starts where, who makes room, and why the others wait: the policy
// (schedule_pass.h) applied to the State. Pure but for the planner's memory.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "server/core/decide.h"
#include "server/core/schedule_load.h"
#include "server/core/schedule_pass.h"
#include "server/core/state.h"

namespace nibble::core {

struct Placement {
  const Job* job = nullptr;
  const Worker* worker = nullptr;
  std::string device_id;
  std::string group;
  PlanBytes plan;
  std::string why;  // "base resident, 1.20 GiB left"
};
// An attempt that is to save a checkpoint and let go.
struct Preemption {
  std::string job_id;
  int64_t epoch = 0;
  std::string why;
};
struct Schedule {
  std::vector<Placement> placements;
  std::vector<Preemption> preemptions;
  std::vector<std::string> wanting_checks;  // waiting TRAIN jobs whose data nobody has read yet
};
Schedule MakeSchedule(const State& state, int64_t now_us, Core& core);

// Bytes admitted on a device, counted from the rows.
DeviceLoad LoadOf(const State& state, const Worker& worker, const std::string& device_id);
// What a job needs on devices of that profile.
NeedFn NeedsOf(const State& state, Core& core);
// Why such a device (of the board) takes no job like this one, whatever its memory; "" when it takes it.
std::string RefusalOf(const State& state, Core& core, int64_t number, int32_t device);

// When a job of this spec, created now, would start, by worker and device: now_us when it fits there,
// absent where it never could or nothing starts at all.
std::map<std::pair<std::string, std::string>, int64_t> ExpectedStarts(const State& state,
                                                                      const Model& model,
                                                                      const spec::TrainSpec& spec,
                                                                      int64_t now_us, Core& core);

// An expected end nobody knows.
inline constexpr int64_t kNever = std::numeric_limits<int64_t>::max() / 4;
int64_t ExpectedEndUs(const Job& job, int64_t now_us);

}  // namespace nibble::core

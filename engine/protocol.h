// The lines between worker and engine (docs/engine-protocol.md) as values.
//
// Pure. Parsing trusts nothing; formatting keeps every line below 64 KiB.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/job.h"
#include "engine/spec/memory_plan.h"

namespace nibble::engine {

inline constexpr int64_t kProtocolVersion = 1;
inline constexpr size_t kMaxLineBytes = 64 << 10;

enum class CommandType { kAttach, kPause, kResume, kPriority, kCheckpoint, kDetach, kShutdown };

struct Command {
  CommandType type = CommandType::kShutdown;
  std::string attempt;  // of all but shutdown
  JobInput job;         // attach
  int64_t planned_base_bytes = 0;
  int64_t planned_persistent_bytes = 0;
  int64_t planned_step_bytes = 0;
  int64_t priority = 0;     // attach, priority
  bool checkpoint = false;  // detach
};

// An attach whose spec is bad still names its attempt: see `attempt` out parameter.
absl::StatusOr<Command> ParseCommand(std::string_view line, std::string& attempt);

std::string HelloLine(const spec::DeviceProfile& profile, const std::string& numerics_id);
std::string BaseLine(const BaseModel& base, double seconds);
std::string PhaseLine(const std::string& attempt, std::string_view phase);
std::string TurnLine(const std::string& attempt);
std::string PlanLine(const std::string& attempt, const Job& job);
// `jobs` did a step in the same turn, this one included.
std::string StepLine(const std::string& attempt, const MetricRow& row, int64_t time_us,
                     int64_t used_bytes, int64_t jobs);
std::string EvalLine(const std::string& attempt, const MetricRow& row, int64_t time_us);
std::string CheckpointLine(const std::string& attempt, const CheckpointDone& done);
std::string FinishedLine(const std::string& attempt, const FinishDone& done);
std::string NoRoomLine(const std::string& attempt, const NoRoom& no_room);
// "paused" or "detached".
std::string StateLine(std::string_view type, const std::string& attempt, int64_t step);
std::string FailedLine(const std::string& attempt, const absl::Status& status);

}  // namespace nibble::engine

// What a serving engine says of its jobs: to the worker in lines of docs/engine-protocol.md, to people in the
// log.
//
// One thread. It remembers whose turn the worker believes it is, so that the worker knows whom to blame for
// an engine that dies.
#pragma once

#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "base/clock.h"
#include "engine/device.h"
#include "engine/job.h"
#include "engine/output_ring.h"

namespace nibble::engine {

class ServeOutput {
 public:
  ServeOutput(OutputRing& out, const Clock& clock) : out_(out), clock_(clock) {}

  void Hello(const spec::DeviceProfile& profile, const std::string& numerics_id);
  void Base(const BaseModel& base, double seconds);

  // A worker takes a phase for a turn of that attempt.
  void Phase(const std::string& attempt, std::string_view phase);
  // The phase that this work is, where it is one.
  void Work(const std::string& attempt, JobWork work);
  // Who is at fault if this process dies now. A line of its own the first time in any case: from then on the
  // worker knows that it need not guess.
  void Turn(const std::string& attempt);
  // Says once that turns are fused; how often is in the metrics of steps.
  void Fused(size_t jobs);

  void Attached(const std::string& attempt, const Job& job);
  void Paused(const std::string& attempt, int64_t step);
  void Detached(const std::string& attempt, int64_t step);
  void Failed(const std::string& attempt, const absl::Status& status);
  // `attempt` may be empty: then nobody is told.
  void BadCommand(const std::string& attempt, const absl::Status& status);

  // Those of logging_steps, and the first and the last. `jobs` did a step in the same turn.
  void Step(const std::string& attempt, const Job& job, const MetricRow& row,
            absl::FunctionRef<int64_t()> used_bytes, int64_t jobs);
  void Eval(const std::string& attempt, const MetricRow& row);
  void Checkpoint(const std::string& attempt, const CheckpointDone& done);
  void Finished(const std::string& attempt, const FinishDone& done);
  void HasNoRoom(const std::string& attempt, const NoRoom& no_room);

 private:
  OutputRing& out_;
  const Clock& clock_;
  std::string told_turn_;     // who has it, as far as the worker was told
  bool tells_turns_ = false;  // it was told so
  bool fused_ = false;        // a turn was
};

}  // namespace nibble::engine

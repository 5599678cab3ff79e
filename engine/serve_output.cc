#include "engine/serve_output.h"

#include "base/log.h"
#include "engine/protocol.h"

namespace nibble::engine {

void ServeOutput::Hello(const spec::DeviceProfile& profile, const std::string& numerics_id) {
  out_.Push(HelloLine(profile, numerics_id));
}

void ServeOutput::Base(const BaseModel& base, double seconds) {
  LogInfo("base.mapped", {{"digest", base.digest()},
                          {"bytes", base.bytes()},
                          {"cached", base.cached()},
                          {"tiles", base.tiles()},
                          {"seconds", seconds}});
  out_.Push(BaseLine(base, seconds));
}

void ServeOutput::Phase(const std::string& attempt, std::string_view phase) {
  out_.Push(PhaseLine(attempt, phase));
  told_turn_ = attempt;
}

void ServeOutput::Work(const std::string& attempt, JobWork work) {
  if (work == JobWork::kStep) Phase(attempt, "TRAINING");
  if (work == JobWork::kEvaluate) Phase(attempt, "EVALUATING");
  if (work == JobWork::kCheckpoint) Phase(attempt, "CHECKPOINTING");
}

void ServeOutput::Turn(const std::string& attempt) {
  if (tells_turns_ && told_turn_ == attempt) return;
  tells_turns_ = true;
  told_turn_ = attempt;
  out_.Push(TurnLine(attempt), /*may_be_lost=*/true);
}

void ServeOutput::Fused(size_t jobs) {
  if (!fused_) LogInfo("turns.fused", {{"jobs", static_cast<int64_t>(jobs)}});
  fused_ = true;
}

void ServeOutput::Attached(const std::string& attempt, const Job& job) {
  LogInfo("job.attached",
          {{"attempt", attempt}, {"step", job.step()}, {"planned_steps", job.total_steps()}});
  out_.Push(PlanLine(attempt, job));
}

void ServeOutput::Paused(const std::string& attempt, int64_t step) {
  out_.Push(StateLine("paused", attempt, step));
}

void ServeOutput::Detached(const std::string& attempt, int64_t step) {
  LogInfo("job.detached", {{"attempt", attempt}, {"step", step}});
  out_.Push(StateLine("detached", attempt, step));
}

void ServeOutput::Failed(const std::string& attempt, const absl::Status& status) {
  LogError("job.failed", {{"attempt", attempt}, {"error", std::string(status.message())}});
  out_.Push(FailedLine(attempt, status));
}

void ServeOutput::BadCommand(const std::string& attempt, const absl::Status& status) {
  LogError("engine.bad_command", {{"error", std::string(status.message())}});
  if (!attempt.empty()) out_.Push(FailedLine(attempt, status));
}

void ServeOutput::Step(const std::string& attempt, const Job& job, const MetricRow& row,
                       absl::FunctionRef<int64_t()> used_bytes, int64_t jobs) {
  if (row.step % job.spec().logging_steps != 0 && row.step != 1 && row.step != job.total_steps()) return;
  out_.Push(StepLine(attempt, row, clock_.NowUnixUs(), used_bytes(), jobs), /*may_be_lost=*/true);
}

void ServeOutput::Eval(const std::string& attempt, const MetricRow& row) {
  out_.Push(EvalLine(attempt, row, clock_.NowUnixUs()));
}

void ServeOutput::Checkpoint(const std::string& attempt, const CheckpointDone& done) {
  LogInfo("checkpoint.saved", {{"attempt", attempt}, {"step", done.step}});
  out_.Push(CheckpointLine(attempt, done));
}

void ServeOutput::Finished(const std::string& attempt, const FinishDone& done) {
  LogInfo("job.finished", {{"attempt", attempt}, {"step", done.step}});
  out_.Push(FinishedLine(attempt, done));
}

void ServeOutput::HasNoRoom(const std::string& attempt, const NoRoom& no_room) {
  LogWarning("job.no_room", {{"attempt", attempt},
                             {"step", no_room.step},
                             {"why", std::string(no_room.why.message())}});
  out_.Push(NoRoomLine(attempt, no_room));
}

}  // namespace nibble::engine

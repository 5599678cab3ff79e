#include "engine/protocol.h"

#include <map>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "engine/checkpoint.h"
#include "engine/line.h"
#include "nlohmann/json.hpp"

namespace nibble::engine {
namespace {

using nlohmann::json;

absl::Status Bad(const std::string& what) {
  return Error(Reason::kInternal, absl::StrCat("a line of the worker ", what));
}

absl::Status TakeText(const json& object, const char* key, bool needed, std::string& value) {
  const auto it = object.find(key);
  if (it == object.end()) {
    return needed ? Bad(absl::StrCat("lacks ", key)) : absl::OkStatus();
  }
  if (!it->is_string()) return Bad(absl::StrCat("has a ", key, " that is no string"));
  value = it->get<std::string>();
  return absl::OkStatus();
}

absl::Status TakeBytes(const json& object, const char* key, int64_t& value) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_number_integer() || it->get<int64_t>() < 0) {
    return Bad(absl::StrCat("lacks planned.", key));
  }
  value = it->get<int64_t>();
  return absl::OkStatus();
}

absl::Status TakePriority(const json& object, bool needed, int64_t& value) {
  const auto it = object.find("priority");
  if (it == object.end()) return needed ? Bad("lacks priority") : absl::OkStatus();
  if (!it->is_number_integer()) return Bad("has a priority that is no whole number");
  value = it->get<int64_t>();
  return absl::OkStatus();
}

absl::Status ReadAttach(const json& object, Command& command) {
  JobInput& job = command.job;
  job.attempt = command.attempt;
  RETURN_IF_ERROR(TakeText(object, "dir", true, job.dir));
  RETURN_IF_ERROR(TakeText(object, "dataset", true, job.dataset));
  RETURN_IF_ERROR(TakeText(object, "eval_dataset", false, job.eval_dataset));
  RETURN_IF_ERROR(TakeText(object, "resume", false, job.resume));
  RETURN_IF_ERROR(TakeText(object, "numerics_id", false, job.numerics_id));
  RETURN_IF_ERROR(TakeText(object, "base_name", false, job.base_name));
  RETURN_IF_ERROR(TakeText(object, "display_name", false, job.display_name));
  const auto spec = object.find("spec");
  if (spec == object.end() || !spec->is_object()) return Bad("lacks a spec object");
  ASSIGN_OR_RETURN(job.spec, spec::TrainSpecFromJson(
                                 spec->dump(-1, ' ', false, json::error_handler_t::replace)));
  RETURN_IF_ERROR(TakePriority(object, /*needed=*/false, command.priority));
  const auto planned = object.find("planned");
  if (planned == object.end() || !planned->is_object()) return Bad("lacks planned");
  RETURN_IF_ERROR(TakeBytes(*planned, "base_bytes", command.planned_base_bytes));
  RETURN_IF_ERROR(TakeBytes(*planned, "persistent_bytes", command.planned_persistent_bytes));
  return TakeBytes(*planned, "step_bytes", command.planned_step_bytes);
}

constexpr size_t kMaxMessageBytes = 4096;

// Trouble with the machine or with us, not with the job: another try elsewhere may succeed.
bool IsInfrastructure(Reason reason) {
  switch (reason) {
    case Reason::kStorageFull:
    case Reason::kOutOfMemory:
    case Reason::kDeviceFault:
    case Reason::kEngineFailed:
    case Reason::kInternal:
    case Reason::kCheckpointInvalid:
    case Reason::kDigestMismatch:
    case Reason::kBlobNotFound:
    case Reason::kUnspecified:
      return true;
    default:
      return false;
  }
}

// {"linear":12,...}; empty when nothing was measured.
std::string PhaseTimes(const spec::StepPhaseTimes& times) {
  Line line;
  if (times != spec::StepPhaseTimes{})
    for (size_t i = 0; i < times.size(); ++i) line.Integer(spec::kStepPhaseNames[i], times[i]);
  return line.Take();
}

}  // namespace

absl::StatusOr<Command> ParseCommand(std::string_view line, std::string& attempt) {
  const json object = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return Bad("is no JSON object");
  std::string type;
  RETURN_IF_ERROR(TakeText(object, "type", true, type));
  static const std::map<std::string, CommandType> kTypes = {
      {"attach", CommandType::kAttach}, {"pause", CommandType::kPause},
      {"resume", CommandType::kResume}, {"priority", CommandType::kPriority},
      {"checkpoint", CommandType::kCheckpoint}, {"detach", CommandType::kDetach},
      {"shutdown", CommandType::kShutdown}};
  const auto known = kTypes.find(type);
  if (known == kTypes.end()) return Bad(absl::StrCat("has the unknown type ", type));
  Command command;
  command.type = known->second;
  if (command.type == CommandType::kShutdown) return command;
  RETURN_IF_ERROR(TakeText(object, "attempt", true, attempt));
  if (attempt.empty()) return Bad("names no attempt");
  command.attempt = attempt;
  if (command.type == CommandType::kAttach) RETURN_IF_ERROR(ReadAttach(object, command));
  if (command.type == CommandType::kPriority)
    RETURN_IF_ERROR(TakePriority(object, /*needed=*/true, command.priority));
  if (const auto it = object.find("checkpoint"); it != object.end() && it->is_boolean()) {
    command.checkpoint = it->get<bool>();
  }
  return command;
}

std::string HelloLine(const spec::DeviceProfile& profile, const std::string& numerics_id) {
  return Line("hello")
      .Integer("version", kProtocolVersion)
      .Text("build", profile.build)
      .Text("numerics_id", numerics_id)
      .Raw("profile", spec::DeviceProfileToJson(profile))
      .Take();
}

std::string BaseLine(const BaseModel& base, double seconds) {
  return Line("base")
      .Text("digest", base.digest())
      .Integer("bytes", base.bytes())
      .Number("seconds", seconds)
      .Flag("cached", base.cached())
      .Take();
}

std::string PhaseLine(const std::string& attempt, std::string_view phase) {
  return Line("phase").Text("attempt", attempt).Text("phase", phase).Take();
}

std::string TurnLine(const std::string& attempt) { return Line("turn").Text("attempt", attempt).Take(); }

std::string PlanLine(const std::string& attempt, const Job& job) {
  return Line("plan")
      .Text("attempt", attempt)
      .Raw("plan", spec::MemoryPlanToJson(job.plan()))
      .Integer("planned_steps", job.total_steps())
      .Raw("report", DataReportToShortJson(job.report()))
      .Text("numerics_id", job.numerics_id())
      .Take();
}

std::string StepLine(const std::string& attempt, const MetricRow& row, int64_t time_us,
                     int64_t used_bytes, int64_t jobs) {
  return Line("step")
      .Text("attempt", attempt)
      .Integer("step", row.step)
      .Number("loss", row.loss)
      .Number("grad_norm", row.grad_norm)
      .Number("learning_rate", row.learning_rate)
      .Integer("tokens", row.tokens)
      .Integer("target_tokens", row.target_tokens)
      .Integer("step_time_us", row.step_time_us)
      .Raw("phase_us", PhaseTimes(row.phase_us))
      .Integer("time_us", time_us)
      .Number("epoch", row.epoch)
      .Integer("used_bytes", used_bytes)
      .Integer("jobs", jobs)
      .Take();
}

std::string EvalLine(const std::string& attempt, const MetricRow& row, int64_t time_us) {
  return Line("eval")
      .Text("attempt", attempt)
      .Integer("step", row.step)
      .Number("loss", row.loss)
      .Integer("tokens", row.tokens)
      .Integer("time_us", time_us)
      .Take();
}

std::string CheckpointLine(const std::string& attempt, const CheckpointDone& done) {
  return Line("checkpoint")
      .Text("attempt", attempt)
      .Integer("step", done.step)
      .Text("dir", done.saved.directory)
      .Integer("bytes", done.saved.bytes)
      .Text("manifest_sha256", done.saved.manifest_sha256)
      .Number("loss", done.loss)
      .Take();
}

std::string FinishedLine(const std::string& attempt, const FinishDone& done) {
  std::string files;
  for (const ExportedFile& file : done.files) {
    absl::StrAppend(&files, files.empty() ? "[" : ",",
                    Line()
                        .Text("name", file.name)
                        .Integer("size", file.size_bytes)
                        .Text("sha256", file.sha256)
                        .Take());
  }
  return Line("finished")
      .Text("attempt", attempt)
      .Integer("step", done.step)
      .Text("dir", done.directory)
      .Raw("files", files.empty() ? "[]" : files + "]")
      .Text("stop_reason", "completed")
      .Take();
}

std::string NoRoomLine(const std::string& attempt, const NoRoom& no_room) {
  return Line("no_room")
      .Text("attempt", attempt)
      .Integer("step", no_room.step)
      .Text("message", std::string(no_room.why.message().substr(0, kMaxMessageBytes)))
      .Take();
}

std::string StateLine(std::string_view type, const std::string& attempt, int64_t step) {
  return Line(type).Text("attempt", attempt).Integer("step", step).Take();
}

std::string FailedLine(const std::string& attempt, const absl::Status& status) {
  const Reason found = StatusReason(status);
  const Reason reason = found == Reason::kUnspecified ? Reason::kInternal : found;
  Line line("failed");
  line.Text("attempt", attempt)
      .Text("reason", ReasonName(reason))
      .Text("message", std::string(status.message().substr(0, kMaxMessageBytes)))
      .Flag("infrastructure", IsInfrastructure(reason));
  if (StatusMetadata(status).contains(kAllCheckpoints)) line.Flag("all_checkpoints", true);
  return line.Take();
}

}  // namespace nibble::engine

#include "worker/engine_line.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"

namespace nibble::worker {
namespace {

using nlohmann::json;

absl::Status Bad(std::string_view line, const std::string& what) {
  return Error(Reason::kEngineFailed, absl::StrCat("the engine sent a line that ", what, ": ",
                                                   std::string(line.substr(0, 200))))
      .ToStatus();
}

std::string Text(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}

int64_t Integer(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_number_integer() ? it->get<int64_t>() : 0;
}

bool Flag(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_boolean() && it->get<bool>();
}

// Non-finite numbers travel as text.
double Number(const json& object, const char* key) {
  const auto it = object.find(key);
  if (it == object.end()) return 0;
  if (it->is_number()) return it->get<double>();
  const std::string text = it->is_string() ? it->get<std::string>() : "";
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (text == "inf") return kInfinity;
  if (text == "-inf") return -kInfinity;
  return std::numeric_limits<double>::quiet_NaN();
}

std::string Dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

Phase PhaseFromName(const std::string& name) {
  if (name == "LOADING_BASE") return Phase::kLoadingBase;
  if (name == "TOKENIZING") return Phase::kTokenizing;
  if (name == "TRAINING") return Phase::kTraining;
  if (name == "EVALUATING") return Phase::kEvaluating;
  if (name == "CHECKPOINTING") return Phase::kCheckpointing;
  if (name == "PAUSED_DISK") return Phase::kPausedDisk;
  return Phase::kUnspecified;
}

StepMetric StepFrom(const json& o) {
  StepMetric m;
  m.step = Integer(o, "step");
  m.loss = Number(o, "loss");
  m.gradient_norm = Number(o, "grad_norm");
  m.learning_rate = Number(o, "learning_rate");
  m.tokens = Integer(o, "tokens");
  m.target_tokens = Integer(o, "target_tokens");
  m.step_time_us = Integer(o, "step_time_us");
  m.time_us = Integer(o, "time_us");
  m.used_bytes = Integer(o, "used_bytes");
  m.epoch_fraction = Number(o, "epoch");
  if (o.contains("jobs")) m.jobs = Integer(o, "jobs");
  if (const auto phases = o.find("phase_us"); phases != o.end() && phases->is_object())
    for (size_t i = 0; i < m.phase_us.size(); ++i)
      m.phase_us[i] = Integer(*phases, spec::kStepPhaseNames[i].data());
  return m;
}

EnginePlan PlanFrom(int64_t engine, AttemptKey key, const json& o) {
  // The data report, as a CHECK would give it, and the plan under a key of its own.
  json both = json::object();
  if (const auto it = o.find("report"); it != o.end() && it->is_object()) both = *it;
  if (const auto it = o.find("plan"); it != o.end()) both["plan"] = *it;
  return EnginePlan{engine, std::move(key), Integer(o, "planned_steps"), Dump(both),
                    Text(o, "numerics_id")};
}

// Lines that speak of one attempt.
absl::StatusOr<std::optional<Input>> ParseAttemptLine(int64_t engine, const std::string& type,
                                                      const json& o, std::string_view line) {
  ASSIGN_OR_RETURN(AttemptKey key, ParseAttempt(Text(o, "attempt")));
  const int64_t step = Integer(o, "step");
  if (type == "turn") return Input(EngineTurn{engine, std::move(key)});
  if (type == "phase")
    return Input(EnginePhase{engine, std::move(key), PhaseFromName(Text(o, "phase"))});
  if (type == "plan") return Input(PlanFrom(engine, std::move(key), o));
  if (type == "step") return Input(EngineStep{engine, std::move(key), StepFrom(o)});
  if (type == "eval") {
    return Input(
        EngineEval{engine, std::move(key), step, Number(o, "loss"), Integer(o, "time_us")});
  }
  if (type == "checkpoint") {
    return Input(EngineCheckpoint{engine, std::move(key), step, Text(o, "dir"),
                                  Text(o, "manifest_sha256"), Number(o, "loss")});
  }
  if (type == "finished") {
    return Input(
        EngineFinished{engine, std::move(key), step, Text(o, "dir"), Text(o, "stop_reason")});
  }
  if (type == "detached") return Input(EngineDetached{engine, std::move(key), step});
  if (type == "failed") {
    return Input(EngineFailed{engine, std::move(key), Text(o, "reason"), Text(o, "message"),
                              Flag(o, "infrastructure"), Flag(o, "all_checkpoints")});
  }
  if (type == "no_room")
    return Input(EngineNoRoom{engine, std::move(key), step, Text(o, "message")});
  if (type == "paused" || type == "resumed") return std::optional<Input>();
  return Bad(line, "has a type we do not know");
}

json AttemptCommand(std::string_view type, const AttemptKey& key) {
  return {{"type", std::string(type)}, {"attempt", key.ToString()}};
}

}  // namespace

absl::StatusOr<AttemptKey> ParseAttempt(std::string_view text) {
  const size_t slash = text.rfind('/');
  AttemptKey key;
  if (slash == std::string_view::npos || slash == 0 ||
      !absl::SimpleAtoi(absl::string_view(text.data() + slash + 1, text.size() - slash - 1),
                        &key.epoch)) {
    return Bad(text, "names no attempt");
  }
  key.job_id = std::string(text.substr(0, slash));
  return key;
}

absl::StatusOr<std::optional<Input>> ParseEngineLine(int64_t engine, std::string_view line) {
  if (line.size() > kMaxLineBytes) return Bad(line, "is longer than 64 KiB");
  const json o = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!o.is_object()) return Bad(line, "is no JSON object");
  const std::string type = Text(o, "type");
  if (type == "hello") {
    if (Integer(o, "version") != kProtocolVersion)
      return Bad(line, "speaks another version of the protocol");
    return Input(EngineHello{engine, Text(o, "numerics_id")});
  }
  if (type == "base") return Input(EngineBase{engine, Integer(o, "bytes")});
  if (type == "dropped") return std::optional<Input>();
  return ParseAttemptLine(engine, type, o, line);
}

std::string AttachLine(const Assignment& a, const LocalFiles& files, const std::string& dir) {
  json o = AttemptCommand("attach", a.key);
  o["dir"] = dir;
  o["spec"] = json::parse(a.spec_json, nullptr, false);
  o["dataset"] = files.dataset_path;
  o["eval_dataset"] = files.eval_dataset_path;
  o["resume"] = files.resume_dir;
  o["numerics_id"] = a.numerics_id;
  o["base_name"] = a.base_display_name;
  o["display_name"] = a.display_name;
  o["priority"] = a.priority;
  o["planned"] = {{"base_bytes", a.planned_base_bytes},
                  {"persistent_bytes", a.planned_persistent_bytes},
                  {"step_bytes", a.planned_step_bytes}};
  return Dump(o) + "\n";
}

std::string CommandLine(std::string_view type, const AttemptKey& key) {
  return Dump(AttemptCommand(type, key)) + "\n";
}

std::string PriorityLine(const AttemptKey& key, int32_t priority) {
  json o = AttemptCommand("priority", key);
  o["priority"] = priority;
  return Dump(o) + "\n";
}

std::string DetachLine(const AttemptKey& key, bool checkpoint) {
  json o = AttemptCommand("detach", key);
  o["checkpoint"] = checkpoint;
  return Dump(o) + "\n";
}

std::string ShutdownLine() { return "{\"type\":\"shutdown\"}\n"; }

}  // namespace nibble::worker

// What the agent's loop does with engines: they are started, told, watched, looked into and ended.
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/log.h"
#include "base/log_file.h"
#include "engine/spec/words.h"
#include "worker/agent_loop.h"
#include "worker/awake_limit.h"
#include "worker/base_files.h"
#include "worker/devices.h"
#include "worker/engine_line.h"

namespace nibble::worker {
namespace {

constexpr size_t kTailBytes = 1'000;

// What an engine said last, if that was a complaint: its file goes on over many engines, and most
// of its lines only tell what went well.
std::string LastWords(const std::string& log_file) {
  const std::string tail = TailOfFile(log_file, kTailBytes);
  const size_t newline = tail.rfind('\n');
  const std::string line = newline == std::string::npos ? tail : tail.substr(newline + 1);
  return absl::StrContains(line, " I nibble-engine ") ? "" : line;
}

}  // namespace

void AgentLoop::Do(const StartEngine& a) {
  if (!options_.devices.contains(a.group.device_id)) {
    own_.push_back(EngineExited{a.engine, "this worker has no device " + a.group.device_id, false});
    return;
  }
  const std::string log_file = LogFileOf(a.group.device_id);
  const std::string bases = JoinPath(options_.work_dir, "cache/base");
  ShrinkBases(bases, options_.cache_max_bytes);
  const std::vector<std::string> arguments = {
      options_.engine_binary,
      "serve",
      "--fd",
      "3",
      "--model-dir",
      a.model_dir,
      "--cache-dir",
      bases,
      "--quant",
      std::string(WordOf(spec::kQuantWords, a.group.quant)),
      "--double-quant",
      a.group.double_quant ? "true" : "false",
      "--device",
      options_.devices.at(a.group.device_id),
      "--threads",
      absl::StrCat(options_.threads),
      "--lock",
      JoinPath(options_.work_dir, "lock/" + a.group.device_id)};
  const auto nonsense = std::make_shared<std::string>();
  EngineProcess::Callbacks callbacks;
  callbacks.on_line = [this, engine = a.engine, nonsense](std::string_view line) {
    auto input = ParseEngineLine(engine, line);
    if (!input.ok()) {
      *nonsense = std::string(input.status().message());
      return false;
    }
    if (*input) Deliver(std::move(**input));
    return true;
  };
  callbacks.on_exit = [this, engine = a.engine, log_file, nonsense](const ProcessExit& exit) {
    OnEngineExit(engine, exit, log_file, *nonsense);
  };
  auto process = EngineProcess::Start(arguments, log_file, std::move(callbacks));
  if (!process.ok()) {
    LogError("engine.not_started",
             {{"engine", a.engine}, {"why", std::string(process.status().message())}});
    own_.push_back(EngineExited{a.engine, std::string(process.status().message()), false});
    return;
  }
  ++counts_.engines_started;
  LogInfo("engine.started", {{"engine", a.engine},
                             {"pid", static_cast<int64_t>((*process)->pid())},
                             {"model", a.model_dir}});
  engines_[a.engine] = {std::move(*process), a.group.device_id};
}

void AgentLoop::OnEngineExit(int64_t engine, const ProcessExit& exit, const std::string& log_file,
                             const std::string& nonsense) {
  std::string message = absl::StrCat("the engine ", exit.message);
  const std::string last_words =
      nonsense.empty() && exit.code != 0 ? LastWords(log_file) : nonsense;
  if (!last_words.empty()) absl::StrAppend(&message, ": ", last_words);
  if (exit.code == 0) {
    LogInfo("engine.exited", {{"engine", engine}});
  } else {
    ++counts_.engines_lost;
    LogWarning("engine.lost", {{"engine", engine}, {"how", message}});
  }
  Deliver(EngineExited{engine, std::move(message), exit.out_of_memory});
}

void AgentLoop::Send(int64_t engine, const std::string& line) {
  const auto it = engines_.find(engine);
  if (it == engines_.end() || !it->second.process) return;
  const absl::Status sent = it->second.process->Send(line);
  if (sent.ok()) return;
  // Whatever the cause, an engine that cannot be told anything is of no use; its exit follows.
  LogWarning("engine.deaf", {{"engine", engine}, {"why", std::string(sent.message())}});
  it->second.process->Kill();
}

void AgentLoop::Do(const Attach& a) {
  LogInfo("attempt.attach", {{"attempt", a.assignment.key.ToString()}, {"engine", a.engine}});
  Send(a.engine, AttachLine(a.assignment, a.files, DirOf(a.assignment.key)));
}

void AgentLoop::Do(const PauseAttempt& a) { Send(a.engine, CommandLine("pause", a.key)); }
void AgentLoop::Do(const ResumeAttempt& a) { Send(a.engine, CommandLine("resume", a.key)); }
void AgentLoop::Do(const SetPriority& a) { Send(a.engine, PriorityLine(a.key, a.priority)); }
void AgentLoop::Do(const CheckpointAttempt& a) { Send(a.engine, CommandLine("checkpoint", a.key)); }
void AgentLoop::Do(const Detach& a) { Send(a.engine, DetachLine(a.key, a.checkpoint)); }
void AgentLoop::Do(const ShutdownEngine& a) { Send(a.engine, ShutdownLine()); }

void AgentLoop::Do(const KillEngine& a) {
  const auto it = engines_.find(a.engine);
  if (it != engines_.end() && it->second.process) it->second.process->Kill();
}

void AgentLoop::Do(const DoProbe& a) {
  const auto name = options_.devices.find(a.device_id);
  if (name == options_.devices.end()) {
    own_.push_back(ProbeEnded{a.device_id, false, "no such device"});
    return;
  }
  LogInfo("device.probe", {{"device", a.device_id}});
  probe_pool_.Post([this, id = a.device_id, name = name->second, ended = probes_ended_] {
    const std::string log_file = LogFileOf(id);
    AwakeLimit limit(options_.agent.probe_timeout_us, options_.agent.sleep_us, clock_.NowMonotonicUs());
    const absl::Status probed = ProbeDevice(options_.engine_binary, name, log_file, [this, &limit, ended] {
      return ended->load() || limit.Passed(clock_.NowMonotonicUs());
    });
    if (ended->load()) return;
    if (probed.ok()) {
      LogInfo("device.answers", {{"device", id}});
      return Deliver(ProbeEnded{id, true, ""});
    }
    std::string message(probed.message());
    if (const std::string last_words = LastWords(log_file); !last_words.empty())
      absl::StrAppend(&message, ": ", last_words);
    LogError("device.withdrawn", {{"device", id}, {"why", message}});
    Deliver(ProbeEnded{id, false, message});
  });
}

// Jobs of one engine share its base and its step region, so what each of them uses does not add up:
// the processes themselves are asked.
void AgentLoop::MeasureDevices(std::vector<DeviceStatus>& devices) const {
  for (DeviceStatus& device : devices) {
    // Of a GPU the engines' own account stands: what they hold there is no memory of their process.
    if (device.device_id.rfind("cuda", 0) == 0) continue;
    int64_t resident_bytes = 0;
    for (const auto& [id, engine] : engines_) {
      if (engine.process && engine.device_id == device.device_id) {
        resident_bytes += ResidentBytes(engine.process->pid());
      }
    }
    if (resident_bytes > 0) device.used_bytes = resident_bytes;
  }
}

// An engine may run for months and never start anew.
void AgentLoop::CutLogs() {
  const int64_t now_us = clock_.NowMonotonicUs();
  if (now_us < next_log_look_us_) return;
  next_log_look_us_ = now_us + options_.log_look_us;
  for (const auto& [id, unused] : options_.devices) CutLogFile(LogFileOf(id), options_.max_log_bytes);
}

std::string AgentLoop::LogFileOf(const std::string& device_id) const {
  return JoinPath(options_.work_dir, absl::StrCat("log/engine-", device_id, ".log"));
}

}  // namespace nibble::worker

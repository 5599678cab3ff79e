// The agent's engines: starting, attaching, ending, and who is at fault when one dies.
#include <algorithm>

#include "worker/core/agent.h"

namespace nibble::worker {
namespace {

EngineGroup GroupOf(const Assignment& assignment) {
  return {assignment.device_id, assignment.base_digest, assignment.spec.quant,
          assignment.spec.double_quant};
}

}  // namespace

Agent::Local* Agent::InEngine(const AttemptKey& key, int64_t engine) {
  if (engine == 0) return nullptr;
  const auto it = std::find_if(attempts_.begin(), attempts_.end(), [&](const auto& entry) {
    return entry.second.engine == engine && entry.second.local_key == key;
  });
  return it == attempts_.end() ? nullptr : &it->second;
}

bool Agent::IsWanted(const EngineGroup& group) const {
  return std::any_of(attempts_.begin(), attempts_.end(), [&](const auto& entry) {
    return entry.second.stage == Stage::kWaitingEngine && GroupOf(entry.second.assignment) == group;
  });
}

void Agent::LetGo(Local& local, bool checkpoint) {
  local.stage = Stage::kDetaching;
  local.detach_deadline_us = now_us_ + options_.detach_timeout_us;
  Do(Detach{local.engine, local.local_key, checkpoint});
}

void Agent::LeaveEngine(Local& local) {
  const auto it = engines_.find(local.engine);
  if (it != engines_.end()) {
    std::erase(it->second.order, local.local_key);
    if (it->second.turn == local.local_key) it->second.turn.reset();
  }
  local.engine = 0;
  local.used_bytes = 0;
}

void Agent::StopEngine(int64_t id, Engine& engine) {
  if (engine.stopping) return;
  engine.stopping = true;
  engine.stop_us = now_us_;
  Do(ShutdownEngine{id});
}

void Agent::AttachOrStart(Local& local) {
  const EngineGroup group = GroupOf(local.assignment);
  const auto care = cares_.find(group.device_id);
  if (care != cares_.end() && (care->second.due || care->second.in_flight)) return;
  // An attempt of the same job that is being let go still has the bytes that were given to this one.
  for (const auto& [key, other] : attempts_) {
    if (key.job_id == local.assignment.key.job_id && other.engine != 0) return;
  }
  bool in_the_way = false;
  for (auto& [id, engine] : engines_) {
    if (engine.group == group && !engine.stopping) {
      if (!engine.ready) return;
      engine.idle_since_us = 0;
      engine.order.push_back(local.local_key);
      local.engine = id;
      local.stage = Stage::kAttached;
      local.paused = false;
      Do(Attach{id, local.assignment, local.files});
      return;
    }
    if (engine.group.device_id != group.device_id) continue;
    // The bytes of an idle engine are not free until it has gone.
    const bool idle = engine.order.empty() && !IsWanted(engine.group);
    if (idle) StopEngine(id, engine);
    in_the_way = in_the_way || engine.stopping;
  }
  if (in_the_way) return;
  const int64_t id = next_id_++;
  Engine& engine = engines_[id];
  engine.group = group;
  engine.start_us = now_us_;
  Do(StartEngine{id, group, local.files.model_dir});
}

void Agent::AdvanceEngines() {
  if (!distrusted_) {
    for (auto& [key, local] : attempts_) {
      if (local.stage == Stage::kWaitingEngine) AttachOrStart(local);
    }
  }
  for (auto& [id, engine] : engines_) {
    if (engine.stopping || !engine.order.empty() || IsWanted(engine.group)) {
      engine.idle_since_us = 0;
      continue;
    }
    if (engine.idle_since_us == 0) engine.idle_since_us = now_us_;
    if (draining_ || now_us_ >= engine.idle_since_us + options_.engine_idle_us)
      StopEngine(id, engine);
  }
}

// What was to end meanwhile had as little time for it as we to wait.
void Agent::PutOff(int64_t slept_us) {
  for (auto& [id, engine] : engines_) {
    engine.start_us += slept_us;
    engine.stop_us += slept_us;
    if (engine.idle_since_us > 0) engine.idle_since_us += slept_us;
  }
  for (auto& [key, local] : attempts_) local.detach_deadline_us += slept_us;
  for (auto& [id, care] : cares_) care.sent_us += slept_us;
  silence_until_us_ += slept_us;
}

void Agent::CheckTimeouts() {
  const auto kill = [this](int64_t id, Engine& engine) {
    if (engine.killed) return;
    engine.killed = true;
    engine.stopping = true;
    Do(KillEngine{id});
  };
  for (auto& [id, engine] : engines_) {
    if (!engine.ready && now_us_ >= engine.start_us + options_.engine_start_timeout_us)
      kill(id, engine);
    const int64_t limit_us = engine.device_failed ? options_.failed_exit_us : options_.detach_timeout_us;
    if (engine.stopping && now_us_ >= engine.stop_us + limit_us) kill(id, engine);
  }
  for (auto& [key, local] : attempts_) {
    if (local.stage != Stage::kDetaching) continue;
    if (now_us_ < local.detach_deadline_us) continue;
    const auto it = engines_.find(local.engine);
    if (it == engines_.end() || it->second.killed) continue;
    if (!it->second.tells_turns) it->second.turn = local.local_key;  // it does not end its turn
    it->second.stop_us = now_us_;
    kill(it->first, it->second);
  }
}

// The one whose turn it was: as the engine said, else the one after that which was heard of last, as if
// turns went round in order of attachment.
std::optional<AttemptKey> Agent::FaultyOf(const Engine& engine) const {
  // Of a device that failed it was told already in whose turn.
  if (engine.order.empty() || engine.device_failed) return std::nullopt;
  if (engine.turn &&
      std::find(engine.order.begin(), engine.order.end(), *engine.turn) != engine.order.end()) {
    return engine.turn;
  }
  return engine.order.front();
}

void Agent::On(const EngineHello& in) {
  const auto it = engines_.find(in.engine);
  if (it == engines_.end()) return;
  it->second.ready = true;
  const auto registered = options_.numerics.find(it->second.group.device_id);
  if (registered == options_.numerics.end() || registered->second == in.numerics_id) return;
  NoteReplaced(in.numerics_id, registered->second);
  StopEngine(it->first, it->second);
}

void Agent::On(const EngineBase& in) {
  const auto it = engines_.find(in.engine);
  if (it != engines_.end()) it->second.base_bytes = in.bytes;
}

void Agent::On(const EngineExited& in) {
  const auto it = engines_.find(in.engine);
  if (it == engines_.end()) return;
  const Engine engine = std::move(it->second);
  engines_.erase(it);
  const std::optional<AttemptKey> faulty = FaultyOf(engine);
  const std::string reason = in.out_of_memory ? "OUT_OF_MEMORY" : "ENGINE_FAILED";
  for (const AttemptKey& key : engine.order) {
    Local* local = InEngine(key, in.engine);
    if (local == nullptr) continue;
    local->engine = 0;
    local->used_bytes = 0;
    const bool own = faulty == key;
    const std::string whose = faulty ? "in the turn of " + faulty->ToString() : "when its device failed";
    Fail(*local, {reason, own ? in.message : "the engine died " + whose, true, !own});
  }
  if (engine.stopping && !engine.killed && !engine.device_failed) return;
  // While another engine works there, so does the device; and there need not be room for a probe.
  const std::string& device_id = engine.group.device_id;
  const bool last = std::none_of(engines_.begin(), engines_.end(), [&](const auto& entry) {
    return entry.second.group.device_id == device_id;
  });
  const bool probe = last && options_.probed_devices.contains(device_id);
  if (probe) cares_[device_id].due = true;
  if (engine.ready) return;
  // It never came up: whoever waited for it would wait for the next in vain.
  const FailedReport report{reason, "the engine did not start: " + in.message, true, false};
  if (probe) {
    cares_[device_id].failed_starts.emplace_back(engine.group, report);
  } else {
    FailWaiting(engine.group, report);
  }
}

void Agent::FailWaiting(const EngineGroup& group, const FailedReport& report) {
  for (auto& [key, local] : attempts_) {
    if (local.stage == Stage::kWaitingEngine && GroupOf(local.assignment) == group)
      Fail(local, report);
  }
}

void Agent::On(const EngineTurn& in) {
  const auto it = engines_.find(in.engine);
  if (it == engines_.end()) return;
  it->second.turn = in.key;
  it->second.tells_turns = true;
}

void Agent::On(const EnginePhase& in) {
  Local* local = InEngine(in.key, in.engine);
  if (local == nullptr) return;
  local->phase = in.phase;
  engines_[in.engine].turn = in.key;
}

void Agent::On(const EnginePlan& in) {
  Local* local = InEngine(in.key, in.engine);
  if (local == nullptr) return;
  if (local->phase == Phase::kTokenizing) local->phase = Phase::kTraining;  // its data have been read
  if (local->abandoned) return;
  local->outbox.push_back(PlanReport{in.planned_steps, in.plan_json, in.numerics_id});
}

void Agent::On(const EngineStep& in) {
  Local* local = InEngine(in.key, in.engine);
  if (local == nullptr) return;
  local->step = in.metric.step;
  local->used_bytes = in.metric.used_bytes;
  local->phase = Phase::kTraining;
  Engine& engine = engines_[in.engine];
  const auto at = std::find(engine.order.begin(), engine.order.end(), in.key);
  if (at != engine.order.end() && !engine.tells_turns) {
    const auto next = std::next(at) == engine.order.end() ? engine.order.begin() : std::next(at);
    engine.turn = *next;
  }
  if (local->abandoned) return;
  if (local->metrics.empty()) local->metrics_since_us = now_us_;
  local->metrics.push_back(in.metric);
  if (local->metrics.size() > options_.max_pending_metrics) local->metrics.pop_front();
}

void Agent::On(const EngineEval& in) {
  Local* local = InEngine(in.key, in.engine);
  if (local == nullptr || local->abandoned) return;
  if (!local->metrics.empty() && local->metrics.back().step == in.step) {
    local->metrics.back().eval_loss = in.loss;
    return;
  }
  StepMetric metric;  // the step itself has gone up before
  metric.step = in.step;
  metric.time_us = in.time_us;
  metric.eval_loss = in.loss;
  if (local->metrics.empty()) local->metrics_since_us = now_us_;
  local->metrics.push_back(metric);
}

void Agent::On(const EngineCheckpoint& in) {
  Local* local = InEngine(in.key, in.engine);
  if (local == nullptr || local->abandoned) return;
  NoteRoom();
  // Of those that wait, only the newest is worth sending.
  while (!local->uploads.empty() && local->uploads.back().id == 0) local->uploads.pop_back();
  PendingUpload upload;
  upload.dir = in.dir;
  upload.report = CheckpointReport{in.step, {}, in.manifest_sha256, in.loss};
  local->uploads.push_back(std::move(upload));
}

void Agent::On(const EngineNoRoom& in) {
  Local* local = InEngine(in.key, in.engine);
  if (local == nullptr) return;
  NoteFull(in.message);
  // Until one has been written and gone up.
  local->transfer_trouble =
      "the checkpoint of step " + std::to_string(in.step) + " finds no room here: " + in.message;
}

void Agent::On(const EngineFinished& in) {
  Local* local = InEngine(in.key, in.engine);
  if (local == nullptr) return;
  LeaveEngine(*local);
  local->step = in.step;
  local->last_body.reset();  // of a release that came too late
  NoteRoom();
  if (!local->abandoned) {
    while (!local->uploads.empty() && local->uploads.back().id == 0) local->uploads.pop_back();
    PendingUpload upload;
    upload.dir = in.dir;
    upload.report = FinishedReport{{}, in.step, in.stop_reason};
    local->uploads.push_back(std::move(upload));
  }
  Finish(*local);
}

void Agent::On(const EngineDetached& in) {
  Local* local = InEngine(in.key, in.engine);
  if (local == nullptr) return;
  LeaveEngine(*local);
  // While its data was read it was at no step yet, but what it is to go on from is saved.
  local->step = std::max(in.step, local->assignment.checkpoint_step);
  if (local->last_body && std::holds_alternative<ReleasedReport>(*local->last_body)) {
    local->last_body = ReleasedReport{local->step};
  }
  Finish(*local);
}

void Agent::On(const EngineFailed& in) {
  Local* local = InEngine(in.key, in.engine);
  if (local == nullptr) return;
  LeaveEngine(*local);
  if (in.reason == "STORAGE_FULL") NoteFull(in.message);
  // A driver may hang at its exit, too.
  Engine& engine = engines_[in.engine];
  if (in.reason == "DEVICE_FAULT" && !engine.stopping) {
    engine.stopping = engine.device_failed = true;
    engine.stop_us = now_us_;
  }
  Fail(*local, {in.reason, in.message, in.infrastructure, false, in.all_checkpoints});
}

}  // namespace nibble::worker

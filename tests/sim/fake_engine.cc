// The engines of a WorkerProc.
#include <algorithm>
#include <utility>

#include "base/digest.h"
#include "tests/sim/worker_proc.h"

namespace nibble::sim {

void WorkerProc::CheckDevice() {
  int64_t bytes = 0;
  for (const auto& [id, engine] : engines_) {
    int64_t step_bytes = 0;
    bytes += kFixedBytes + engine.base_bytes;
    for (const Attached& a : engine.attempts) {
      bytes += a.assignment.planned_persistent_bytes;
      step_bytes = std::max(step_bytes, a.assignment.planned_step_bytes);
    }
    bytes += step_bytes;
  }
  server_.checker().DeviceUsed(host_.name, bytes, host_.capacity_bytes);
}

void WorkerProc::CheckPriorities(const worker::SynchronizeReply& adopted) {
  if (!alive_ || adopted.code != worker::SynchronizeReply::Code::kOk) return;
  if (world_.now_us() < frozen_until_us_ || agent_.revision() != adopted.revision) return;
  for (const worker::Assignment& wanted : adopted.assignments) {
    for (const auto& [id, engine] : engines_) {
      for (const Attached& a : engine.attempts) {
        if (a.assignment.key.job_id != wanted.key.job_id || a.detaching || engine.shutdown) continue;
        if (a.assignment.priority == wanted.priority) continue;
        server_.checker().Fail("jobs/" + wanted.key.job_id + " has turns of priority " +
                               std::to_string(a.assignment.priority) + ", not " +
                               std::to_string(wanted.priority));
      }
    }
  }
}

void WorkerProc::Perform(const worker::SetPriority& action) {
  if (Attached* attached = FindAttached(action.engine, action.key)) {
    attached->assignment.priority = action.priority;
  }
}

void WorkerProc::Perform(const worker::StartEngine& action) {
  FakeEngine& engine = engines_[action.engine];
  engine.group = action.group;
  spec::ModelConfig model;
  model.layers = action.group.base_digest == Sha256Hex("base-2") ? 2 : 1;
  engine.base_bytes = SimBaseBytes(model);
  CheckDevice();
  Later(world_.rng().Between(100, 1'000) * kMs, [this, id = action.engine] {
    if (engines_.count(id) == 0) return;
    if (world_.now_us() < device_dead_until_us_) return EndEngine(id, "the device does not open");
    Feed(worker::EngineHello{id, host_.build});
    Later(kStepTimeUs, [this, id] { Turn(id); });
  });
}

void WorkerProc::Perform(const worker::Attach& action) {
  const auto it = engines_.find(action.engine);
  if (it == engines_.end()) return;
  Attached attached;
  attached.assignment = action.assignment;
  const std::string& resume = action.files.resume_dir;
  if (!resume.empty()) {
    attached.step = std::stoll(resume.substr(resume.rfind(' ') + 1));
    if (resume !=
        CheckpointContent(action.assignment.key.job_id, action.assignment.checkpoint_step)) {
      server_.checker().Fail("an attempt resumes from the wrong bytes: " + resume);
    }
  }
  it->second.attempts.push_back(attached);
  CheckDevice();
  const worker::AttemptKey key = action.assignment.key;
  const spec::TrainSpec spec = action.assignment.spec;
  Later(world_.rng().Between(50, 500) * kMs, [this, id = action.engine, key, spec] {
    Attached* a = FindAttached(id, key);
    if (a == nullptr) return;
    const bool moved =
        !a->assignment.numerics_id.empty() && a->assignment.numerics_id != host_.build;
    if (spec.format == kEmptyFormat || (moved && !spec.allow_numerics_change)) {
      std::erase_if(engines_[id].attempts,
                    [&](const Attached& x) { return x.assignment.key == key; });
      Feed(worker::EngineFailed{id, key, moved ? "NUMERICS_CHANGED" : "NO_SUPERVISED_TOKENS",
                                "refused", false});
      return;
    }
    Feed(worker::EnginePlan{id, key, spec.max_steps, "{\"rows\":1}", host_.build});
  });
}

WorkerProc::Attached* WorkerProc::FindAttached(int64_t engine, const worker::AttemptKey& key) {
  const auto it = engines_.find(engine);
  if (it == engines_.end()) return nullptr;
  for (Attached& a : it->second.attempts) {
    if (a.assignment.key == key) return &a;
  }
  return nullptr;
}

void WorkerProc::SetPaused(int64_t engine, const worker::AttemptKey& key, bool paused) {
  if (Attached* a = FindAttached(engine, key)) a->paused = paused;
}

void WorkerProc::SendCheckpoint(int64_t engine, const Attached& attached) {
  const worker::AttemptKey& key = attached.assignment.key;
  const std::string content = CheckpointContent(key.job_id, attached.step);
  Feed(worker::EngineCheckpoint{engine, key, attached.step, content, Sha256Hex(content), 1.0});
}

void WorkerProc::Perform(const worker::CheckpointAttempt& action) {
  const Attached* a = FindAttached(action.engine, action.key);
  if (a == nullptr || a->step == 0) return;
  Later(100 * kMs, [this, engine = action.engine, key = action.key] {
    if (const Attached* attached = FindAttached(engine, key)) SendCheckpoint(engine, *attached);
  });
}

void WorkerProc::Perform(const worker::Detach& action) {
  Attached* a = FindAttached(action.engine, action.key);
  if (a == nullptr) return;  // it has finished in the meantime; the agent hears of that
  a->detaching = true;
  a->detach_checkpoint = action.checkpoint;
  // The turn that runs may be a long one.
  a->detach_at_us = world_.now_us() + world_.rng().Between(0, 3'000) * kMs;
  a->hangs = world_.rng().Chance(faults_.engine_hang);
}

void WorkerProc::Perform(const worker::ShutdownEngine& action) {
  const auto it = engines_.find(action.engine);
  if (it == engines_.end()) return;
  it->second.shutdown = true;
  Later(world_.rng().Between(10, 1'000) * kMs,
        [this, id = action.engine] { EndEngine(id, "shut down"); });
}

void WorkerProc::Perform(const worker::KillEngine& action) {
  Later(10 * kMs, [this, id = action.engine] { EndEngine(id, "killed"); });
}

void WorkerProc::EndEngine(int64_t id, const std::string& message) {
  if (engines_.erase(id) == 0) return;
  world_.Trace("engine ends: " + message);
  Feed(worker::EngineExited{id, message, false});
}

void WorkerProc::CrashEngine() {
  if (engines_.empty()) return;
  auto it = engines_.begin();
  std::advance(it, static_cast<int64_t>(world_.rng().Below(engines_.size())));
  EndEngine(it->first, "crashed");
}

void WorkerProc::DieDevice(int64_t duration_us) {
  world_.Trace("device dies on " + incarnation_);
  device_dead_until_us_ = world_.now_us() + duration_us;
  while (alive_ && !engines_.empty()) EndEngine(engines_.begin()->first, "the device is gone");
}

// A dead device says so, or says nothing for longer than anybody waits.
void WorkerProc::Perform(const worker::DoProbe& action) {
  const bool silent = world_.now_us() < device_dead_until_us_ && world_.rng().Chance(0.3);
  const int64_t delay_us = silent ? 12 * kSecond : world_.rng().Between(100, 2'000) * kMs;
  Later(delay_us, [this, id = action.device_id] {
    const bool ok = world_.now_us() >= device_dead_until_us_;
    Feed(worker::ProbeEnded{id, ok, ok ? "" : "the device does not open"});
  });
}

void WorkerProc::Perform(const worker::MeasureRoom&) {
  Later(10 * kMs, [this] {
    Feed(worker::RoomMeasured{world_.now_us() < disk_full_until_us_ ? 0 : int64_t{1} << 30});
  });
}

void WorkerProc::FinishDetach(int64_t id, FakeEngine& engine, size_t index) {
  const Attached a = engine.attempts[index];
  // Its regions are free before anybody hears of it.
  engine.attempts.erase(engine.attempts.begin() + static_cast<int64_t>(index));
  if (a.detach_checkpoint && a.step > a.assignment.checkpoint_step) SendCheckpoint(id, a);
  Feed(worker::EngineDetached{id, a.assignment.key, a.step});
}

// One turn: one whole step of one attempt, then the next one's.
void WorkerProc::Turn(int64_t id) {
  const auto it = engines_.find(id);
  if (it == engines_.end()) return;
  FakeEngine& engine = it->second;
  for (size_t i = 0; i < engine.attempts.size(); ++i) {
    const Attached& a = engine.attempts[i];
    if (!a.detaching || a.hangs || world_.now_us() < a.detach_at_us) continue;
    FinishDetach(id, engine, i);
    break;
  }
  if (engines_.count(id) == 0) return;
  const size_t count = engine.attempts.size();
  for (size_t tried = 0; tried < count; ++tried) {
    const size_t index = engine.next++ % count;
    const Attached& a = engine.attempts[index];
    if (a.paused || a.detaching) continue;
    Step(id, engine, index);
    break;
  }
  Later(kStepTimeUs, [this, id] { Turn(id); });
}

void WorkerProc::Step(int64_t id, FakeEngine& engine, size_t index) {
  Attached& a = engine.attempts[index];
  const worker::AttemptKey key = a.assignment.key;
  const spec::TrainSpec spec = a.assignment.spec;  // outlives the attempt below
  if (spec.lora_dropout == kPoisonDropout) {
    Feed(worker::EngineTurn{id, key});
    return EndEngine(id, "poisoned");
  }
  ++a.step;
  if (spec.lora_dropout == kBadDropout && a.step >= spec.max_steps / 2) {
    engine.attempts.erase(engine.attempts.begin() + static_cast<int64_t>(index));
    return Feed(worker::EngineFailed{id, key, "LOSS_NOT_FINITE", "loss is nan", false});
  }
  worker::StepMetric metric;
  metric.step = a.step;
  metric.loss = 1.0 / static_cast<double>(a.step);
  metric.tokens = 100;
  metric.step_time_us = kStepTimeUs;
  const int64_t step = a.step;
  const bool saves = spec.save_steps > 0 && a.step % spec.save_steps == 0;
  const Attached copy = a;
  if (step >= spec.max_steps)
    engine.attempts.erase(engine.attempts.begin() + static_cast<int64_t>(index));
  Feed(worker::EngineStep{id, key, metric});
  if (step >= spec.max_steps) {
    Feed(worker::EngineFinished{id, key, step, ResultContent(key.job_id, step), "completed"});
  } else if (saves) {
    SendCheckpoint(id, copy);
  }
}

}  // namespace nibble::sim

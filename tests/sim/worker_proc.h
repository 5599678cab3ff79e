// One process of a worker in a run: the real agent, fake engines, and calls over the faulty
// network.
//
// Engines take turns of whole steps among their attempts, write checkpoints and results whose
// content names the job and the step, and can crash or hang. The bytes they really hold are checked
// against the device at every change.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/sim/network.h"
#include "tests/sim/server.h"
#include "tests/sim/world.h"
#include "worker/core/agent.h"

namespace nibble::sim {

inline constexpr int64_t kStepTimeUs = 300 * kMs;

// A machine with one device.
struct Host {
  std::string name;
  std::string worker_id;
  std::string build;  // decides its numerics
  int64_t capacity_bytes = 0;
};

class WorkerProc : public std::enable_shared_from_this<WorkerProc> {
 public:
  WorkerProc(World* world, Network* network, Server* server, const Faults* faults, Host host,
             std::string incarnation);

  void Start();
  void Kill();  // the process and, by end of file, its engines
  void Freeze(int64_t duration_us) { frozen_until_us_ = world_.now_us() + duration_us; }
  void Terminate();    // SIGTERM
  void CrashEngine();  // one of them
  void DieDevice(int64_t duration_us);
  void FillDisk(int64_t duration_us) { disk_full_until_us_ = world_.now_us() + duration_us; }
  bool alive() const { return alive_; }
  bool superseded() const { return superseded_; }
  const Host& host() const { return host_; }
  const worker::Agent& agent() const { return agent_; }

 private:
  struct Attached {
    worker::Assignment assignment;
    int64_t step = 0;
    bool paused = false;
    bool detaching = false;
    bool detach_checkpoint = false;
    int64_t detach_at_us = 0;
    bool hangs = false;
  };
  struct FakeEngine {
    worker::EngineGroup group;
    int64_t base_bytes = 0;
    std::vector<Attached> attempts;
    size_t next = 0;
    bool shutdown = false;
  };

  void Feed(worker::Input input);
  void Later(int64_t delay_us, std::function<void()> what);  // unless the process has died
  void ScheduleTick();

  void Perform(const worker::DoRegister& action);
  void Perform(const worker::DoSynchronize& action);
  void Perform(const worker::DoReport& action);
  void Perform(const worker::DoFetch& action);
  void Perform(const worker::StopFetch&) {}
  void Perform(const worker::StartEngine& action);
  void Perform(const worker::Attach& action);
  void Perform(const worker::PauseAttempt& action) { SetPaused(action.engine, action.key, true); }
  void Perform(const worker::ResumeAttempt& action) { SetPaused(action.engine, action.key, false); }
  void Perform(const worker::SetPriority& action);
  void Perform(const worker::CheckpointAttempt& action);
  void Perform(const worker::Detach& action);
  void Perform(const worker::ShutdownEngine& action);
  void Perform(const worker::KillEngine& action);
  void Perform(const worker::StartCheck& action);
  void Perform(const worker::StopCheck&) {}
  void Perform(const worker::DoProbe& action);
  void Perform(const worker::MeasureRoom& action);
  void Perform(const worker::DoUpload& action);
  void Perform(const worker::StopUpload&) {}
  void Perform(const worker::Forget&) {}
  void Perform(const worker::Exit& action);

  void Turn(int64_t engine);
  void Step(int64_t id, FakeEngine& engine, size_t index);
  void FinishDetach(int64_t id, FakeEngine& engine, size_t index);
  void EndEngine(int64_t id, const std::string& message);
  void SetPaused(int64_t engine, const worker::AttemptKey& key, bool paused);
  Attached* FindAttached(int64_t engine, const worker::AttemptKey& key);
  void SendCheckpoint(int64_t engine, const Attached& attached);
  void CheckDevice();
  // Turns are weighed by the priorities of the set that was adopted last.
  void CheckPriorities(const worker::SynchronizeReply& adopted);
  core::Fence FenceOf(const worker::Report& report) const;
  void PostReport(const worker::Report& report, std::function<void(const Server::Answer&)> done);

  World& world_;
  Network& network_;
  Server& server_;
  const Faults& faults_;
  const Host host_;
  const std::string incarnation_;
  worker::Agent agent_;
  bool alive_ = false;
  bool superseded_ = false;
  int64_t frozen_until_us_ = 0;
  int64_t device_dead_until_us_ = 0;
  int64_t disk_full_until_us_ = 0;
  int64_t tick_at_us_ = 0;
  std::map<int64_t, FakeEngine> engines_;
};

// What files of a job contain; the step is the last part.
std::string CheckpointContent(const std::string& job_id, int64_t step);
std::string ResultContent(const std::string& job_id, int64_t step);
// Marks in a spec by which fake engines know what kind of job it is.
inline constexpr double kPoisonDropout = 0.25;       // kills every engine
inline constexpr double kBadDropout = 0.5;           // its loss is not finite
inline constexpr const char* kEmptyFormat = "text";  // its data has nothing to learn

}  // namespace nibble::sim

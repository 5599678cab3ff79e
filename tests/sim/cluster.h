// A whole run: server, workers, users, watchers, faults; warm-up, chaos, heal, check.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "tests/sim/faults.h"
#include "tests/sim/mutants.h"
#include "tests/sim/network.h"
#include "tests/sim/server.h"
#include "tests/sim/worker_proc.h"
#include "tests/sim/world.h"

namespace nibble::sim {

struct RunResult {
  enum class Verdict { kOk, kSafety, kLiveness } verdict = Verdict::kOk;
  std::string message;
  uint64_t hash = 0;
  int64_t steps = 0;
  int64_t jobs = 0;
  std::set<std::string> marks;  // what was reached
};

class Cluster {
 public:
  Cluster(uint64_t seed, Mutant mutant, bool verbose);
  RunResult Run();

 private:
  // A user's request, sent again until it is answered.
  struct UserCall {
    std::string peer;
    core::CommandBody body;
    std::function<void(const Server::Answer&)> done;
    bool answered = false;
  };

  bool Failed() { return server_.checker().failed(); }
  void SetUp();
  void StartWorker(size_t index);
  void CallUntilAnswered(core::CommandBody body, std::function<void(const Server::Answer&)> done);
  void Attempt(std::shared_ptr<UserCall> call);
  void CreateJob();
  core::CreateJob DrawJob(int64_t number);
  void UserAction();
  void CancelAtTheEnd();
  void CollectGarbage();
  std::string AnyJob();
  void FaultTick();
  void Watch(const std::string& job_id);
  void PollWatcher(const std::string& job_id);
  void Heal();
  void PollHeal();
  bool AllDone() const;
  std::string WhatHangs() const;
  void CollectMarks(RunResult& result);

  World world_;
  Faults faults_;
  Network network_;
  // Every process there was: what one has sent may be handled, or answered, after its end.
  std::vector<std::shared_ptr<WorkerProc>> processes_;
  Server server_;
  std::vector<Host> hosts_;
  std::vector<std::shared_ptr<WorkerProc>> workers_;    // by host
  std::vector<std::shared_ptr<WorkerProc>> strangers_;  // second processes
  std::vector<std::string> jobs_;
  struct Watcher {
    WatchHub* hub = nullptr;  // of the life it subscribed in
    std::unique_ptr<WatchHub::Subscription> subscription;
  };
  std::map<std::string, Watcher> watchers_;  // by job
  std::map<std::string, int64_t> seen_;      // by watcher: last sequence
  std::set<std::string> marks_;
  int64_t incarnations_ = 0;
  int64_t to_create_ = 0;
  bool set_up_ = false;
  bool healing_ = false;
};

}  // namespace nibble::sim

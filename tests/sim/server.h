// The server of a run: the real control loop over a store that survives it.
//
// A crash drops the loop with everything not committed and every reply on its way; a start makes a
// new one over the same store. Requests that arrive while it is down are lost.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "server/control_loop.h"
#include "server/store/memory_store.h"
#include "server/watch_hub.h"
#include "tests/sim/checker.h"
#include "tests/sim/faults.h"
#include "tests/sim/mutants.h"
#include "tests/sim/network.h"
#include "tests/sim/world.h"

namespace nibble::sim {

// A store that, for one mutant, says it has committed when it has not.
class SimStore : public store::MemoryStore {
 public:
  SimStore(World* world, Mutant mutant)
      : world_(*world), forgets_(mutant == Mutant::kCommitForgotten) {}
  absl::Status Commit(const core::State& state,
                      const std::vector<core::EventRecord>& records) override {
    if (forgets_ && world_.rng().Chance(0.02)) return absl::OkStatus();
    return MemoryStore::Commit(state, records);
  }

 private:
  World& world_;
  const bool forgets_;
};

class Server {
 public:
  // A reply as the caller gets it; nothing refers into the server.
  struct Answer {
    absl::Status status;
    std::string id;
  };

  Server(World* world, Network* network, const Faults* faults, const core::CoreOptions& options,
         Mutant mutant);
  ~Server();

  void Start();
  void Crash();
  bool up() const { return loop_ != nullptr; }
  Checker& checker() { return checker_; }
  const core::State& state() const { return loop_->state(); }
  WatchHub* hub() { return hubs_.back().get(); }
  store::MemoryStore& disk() { return disk_; }
  const core::CoreOptions& options() const { return options_; }

  // Runs `handle` at the server when and if the message arrives.
  void Request(const std::string& peer, std::function<void()> handle);
  // The same after `delay_us`, while the peer is cut off.
  void RequestStuck(const std::string& peer, int64_t delay_us, std::function<void()> handle);
  // Posts to the loop; the answer travels back to `peer`. `at_server` hears it when it is given.
  void Call(const std::string& peer, core::CommandBody body,
            std::function<void(const Answer&)> done,
            std::function<void(const absl::Status&)> at_server = nullptr);
  void Synchronize(const std::string& peer, core::Synchronize request,
                   std::function<void(const absl::Status&, const ControlLoop::Outcome&)> at_server);
  // Sends something back, unless the server crashes first.
  void Reply(const std::string& peer, std::function<void()> deliver);

  std::map<std::string, std::string>& blobs() { return blobs_; }  // durable bytes by digest

 private:
  void Arrived(const std::function<void()>& handle);
  void ScheduleTurn(int64_t delay_us);
  void Turn();

  World& world_;
  Network& network_;
  const Faults& faults_;
  const core::CoreOptions options_;
  const Mutant mutant_;
  SimStore disk_;
  Checker checker_;
  std::map<std::string, std::string> blobs_;
  std::vector<std::unique_ptr<WatchHub>> hubs_;  // of every life; watchers may hold on to old ones
  std::unique_ptr<ControlLoop> loop_;
  bool dying_ = false;
  int64_t life_ = 0;        // of the process; late events of an earlier one are dropped
  int64_t turn_at_us_ = 0;  // the next turn asked for; 0 = none
};

// The cheap stand-ins for engine/spec.
core::SpecFunctions SimSpecFunctions();
inline constexpr int64_t kMB = 1'000'000;
inline constexpr int64_t kFixedBytes = 50 * kMB;
int64_t SimBaseBytes(const spec::ModelConfig& model);

}  // namespace nibble::sim

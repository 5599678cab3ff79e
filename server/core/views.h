// Read-only answers about the state, for the RPC layer. Pure but for the planner's memory.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "server/core/decide.h"
#include "server/core/queue_look.h"
#include "server/core/schedule.h"
#include "server/core/state.h"

namespace nibble::core {

// Why the job is in its state, in words and bytes: "needs 5.10 GiB (5476083302 bytes); largest free
// 3.00 GiB on w1/cpu0, held by job-a; ...". Empty when there is nothing to say.
std::string StateReason(const Job& job, QueueLook& look);

// Expected end of a RUNNING job on the wall clock, 0 when unknown.
int64_t EstimatedEndUnixUs(const Job& job, int64_t now_unix_us);

// One attempt a worker should have.
struct Assignment {
  const Job* job = nullptr;
  const Attempt* attempt = nullptr;
  const Model* model = nullptr;
  const Dataset* dataset = nullptr;
  const Dataset* eval_dataset = nullptr;  // nullptr = split
  const Checkpoint* resume = nullptr;     // nullptr = from the start
  Want want = Want::kRun;
  std::string token;
};
// The complete set, valid as long as the state is not changed.
struct DesiredSet {
  int64_t revision = 0;
  std::vector<Assignment> assignments;
};
DesiredSet DesiredFor(const State& state, const Worker& worker, const CoreOptions& options);

// IDLE, BUSY, DRAINING, SUSPECT, LOST: numbered as WorkerState of fleet.proto.
int32_t WorkerStateNumber(const State& state, const Worker& worker, const CoreOptions& options,
                          int64_t now_us);

// Each kind of registered device once, with what it offers.
std::vector<spec::DeviceProfile> KnownDevices(const State& state);

}  // namespace nibble::core

// The agent's devices: what is on them, and whether one that an engine died on still answers.
#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "worker/core/agent.h"

namespace nibble::worker {

std::vector<DeviceStatus> Agent::Devices() const {
  std::map<std::string, DeviceStatus> devices;
  for (const auto& [id, engine] : engines_) {
    DeviceStatus& status = devices[engine.group.device_id];
    status.device_id = engine.group.device_id;
    if (!engine.stopping) status.resident_bases.insert(engine.group.base_digest);
    status.used_bytes += engine.base_bytes;
  }
  for (const auto& [key, local] : attempts_) {
    const auto it = devices.find(local.assignment.device_id);
    if (it != devices.end() && local.engine != 0) it->second.used_bytes += local.used_bytes;
  }
  for (const auto& [id, care] : cares_) {
    if (care.fault.empty()) continue;
    devices[id].device_id = id;
    devices[id].fault = care.fault;
  }
  std::vector<DeviceStatus> list;
  for (auto& [id, status] : devices) list.push_back(std::move(status));
  return list;
}

void Agent::AdvanceProbes() {
  for (auto& [id, care] : cares_) {
    if (care.replaced) continue;
    if (care.in_flight) {
      if (care.fault.empty() && now_us_ >= care.sent_us + options_.probe_timeout_us)
        care.fault = "the device has not answered for " +
                     std::to_string(options_.probe_timeout_us / 1'000'000) + " s";
      continue;
    }
    if (care.due || (!care.fault.empty() && now_us_ >= care.not_before_us)) {
      care.due = false;
      care.in_flight = true;
      care.sent_us = now_us_;
      Do(DoProbe{id});
    }
  }
}

void Agent::On(const ProbeEnded& in) {
  const auto it = cares_.find(in.device_id);
  if (it == cares_.end()) return;
  Care& care = it->second;
  care.in_flight = false;
  if (care.replaced) return;
  if (in.ok) {
    for (const auto& [group, report] : care.failed_starts) FailWaiting(group, report);
    cares_.erase(it);
    return;
  }
  care.fault = in.message;
  care.failed_starts.clear();
  care.backoff_us = care.backoff_us == 0
                        ? options_.probe_min_us
                        : std::min(care.backoff_us * 2, options_.probe_max_us);
  care.not_before_us = now_us_ + care.backoff_us;
}

// One file is every device's engine. Its numerics would fail the jobs that began with the registered ones,
// and a server that does not know of them could not keep those jobs for a device that has theirs.
void Agent::NoteReplaced(const std::string& numerics_id, const std::string& registered) {
  if (!replaced_.empty()) return;
  replaced_ = "nibble-engine was replaced: it has numerics " + numerics_id + ", this worker registered " +
              registered + "; the worker starts again when what it trains has ended";
  for (const auto& [id, unused] : options_.numerics) {
    Care& care = cares_[id];
    care.replaced = true;
    care.due = false;
    care.fault = replaced_;
    care.failed_starts.clear();
  }
}

void Agent::LeaveWhenReplaced() {
  if (replaced_.empty() || draining_) return;
  draining_ = std::none_of(attempts_.begin(), attempts_.end(), [](const auto& entry) {
    return entry.second.assignment.kind == Kind::kTrain;
  });
}

// The jobs did nothing wrong, so it costs them no retry.
void Agent::FailWithdrawn() {
  for (auto& [key, local] : attempts_) {
    const auto care = cares_.find(local.assignment.device_id);
    if (care == cares_.end() || care->second.fault.empty()) continue;
    if (local.assignment.kind != Kind::kTrain || local.abandoned) continue;
    if (local.stage != Stage::kFetching && local.stage != Stage::kWaitingEngine) continue;
    if (local.fetching) Do(StopFetch{local.assignment.key});
    local.fetching = false;
    Fail(local, {"DEVICE_FAULT",
                 local.assignment.device_id + " is withdrawn: " + care->second.fault, true, true});
  }
}

std::set<std::string> Agent::WithdrawnDevices() const {
  std::set<std::string> withdrawn;
  for (const auto& [id, care] : cares_) {
    if (!care.fault.empty()) withdrawn.insert(id);
  }
  return withdrawn;
}

// ---- The disk ----------------------------------------------------------------------------------

void Agent::NoteFull(const std::string& why) {
  if (no_room_.empty()) least_free_bytes_ = -1;
  no_room_ = why.empty() ? "no room on the disk" : why;
  full_since_us_ = now_us_;
}

void Agent::WatchRoom() {
  if (no_room_.empty()) return;
  if (now_us_ >= full_since_us_ + options_.room_us) return NoteRoom();
  if (least_free_bytes_ >= 0 && now_us_ < room_measured_us_ + options_.retry_disk_us) return;
  if (least_free_bytes_ < 0) least_free_bytes_ = std::numeric_limits<int64_t>::max();
  room_measured_us_ = now_us_;
  Do(MeasureRoom{});
}

void Agent::On(const RoomMeasured& in) {
  if (no_room_.empty()) return;
  least_free_bytes_ = std::min(least_free_bytes_, in.free_bytes);
  if (in.free_bytes - least_free_bytes_ >= options_.room_bytes) NoteRoom();
}

}  // namespace nibble::worker

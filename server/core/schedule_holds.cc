// What the board knows of what is held: attempts on their devices, when they end, and what each project
// has had of the fleet.
#include <algorithm>

#include "base/status.h"
#include "server/core/schedule_board.h"

namespace nibble::core {
namespace {

constexpr int64_t kMiB = 1 << 20;
// Usage decays by an eighth eight times a window.
constexpr int64_t kDecaySteps = 8;
constexpr int64_t kForgottenSteps = 128;

}  // namespace

const Board::Hold* Board::FindHold(const HoldKey& key) const {
  const auto it = hold_ids_.find(key);
  return it == hold_ids_.end() ? nullptr : &HoldAt(it->second);
}

Board::Hold* Board::HoldOf(const HoldKey& key) {
  const auto it = hold_ids_.find(key);
  return it == hold_ids_.end() ? nullptr : &holds_[static_cast<size_t>(it->second)];
}

// Neighbours came or went, so that all on it get slower or faster; or one of them changed.
void Board::Untime(int32_t device) {
  if (device < 0) return;
  const Device& d = devices_[static_cast<size_t>(device)];
  if (d.timed) untimed_.push_back(device);
  d.timed = false;
}

void Board::Retime(const Device& d) const {
  d.timed = true;
  const int64_t slowed = std::max(1'000, d.load_milli);
  d.ends.clear();
  d.victims.clear();
  for (const int32_t index : d.held) {
    const Hold& hold = HoldAt(index);
    hold.end_us = hold.releasing ? hold.as_of_us : hold.as_of_us + hold.work_us / 1'000 * slowed;
    d.ends.emplace_back(hold.end_us, hold.key);
    if (!hold.releasing) d.victims.emplace_back(hold.priority, -hold.end_us, hold.key);
  }
  std::sort(d.ends.begin(), d.ends.end());
  std::sort(d.victims.begin(), d.victims.end());
}

const std::vector<Board::Device>& Board::TimedDevices() const {
  for (const int32_t device : untimed_) {
    const Device& d = devices_[static_cast<size_t>(device)];
    if (!d.timed) Retime(d);
  }
  untimed_.clear();
  return devices_;
}

const std::vector<Board::EndKey>& Board::EndsOf(int32_t device) const {
  return TimedDevices()[static_cast<size_t>(device)].ends;
}

// What was seen of the others' times holds no longer.
void Board::NoteChange(int32_t device, int64_t now_us) {
  if (device < 0) return;
  Device& d = devices_[static_cast<size_t>(device)];
  d.changed_us = now_us;
  ++d.changes;
}

void Board::AddHold(const BoardHold& h, int64_t now_us) {
  now_us_ = std::max(now_us_, now_us);
  const int32_t device = FindDevice(h.worker_id, h.device_id);
  const Hold* before = FindHold(h.key);
  const bool stays = before != nullptr && before->device == device;
  const int32_t seen_milli = stays ? before->seen_milli : 0;
  const int32_t seen_change = stays ? before->seen_change : 0;
  const bool brief = stays ? before->brief : h.work_us <= policy_.brief_work_us;
  TakeOff(h.key, now_us);
  if (!stays) NoteChange(device, now_us);
  int32_t index = static_cast<int32_t>(holds_.size());
  if (free_holds_.empty()) {
    holds_.emplace_back();
  } else {
    index = free_holds_.back();
    free_holds_.pop_back();
  }
  hold_ids_[h.key] = index;
  Hold& hold = holds_[static_cast<size_t>(index)];
  hold = {};
  hold.key = h.key;
  hold.device = device;
  hold.seen_milli = seen_milli;
  hold.seen_change = seen_change;
  hold.brief = brief;
  hold.job_id = h.job_id;
  hold.project = ProjectId(h.project);
  hold.group = Intern(group_ids_, h.group);
  if (static_cast<size_t>(hold.group) == group_names_.size()) group_names_.push_back(h.group);
  hold.need = h.need;
  hold.alone = h.alone;
  hold.releasing = h.releasing;
  hold.priority = h.priority;
  hold.load_milli = h.load_milli;
  hold.start_us = h.start_us;
  hold.work_us = h.work_us;
  hold.as_of_us = now_us;
  hold.end_us = hold.releasing ? now_us : now_us + hold.work_us;
  Project& project = projects_[static_cast<size_t>(hold.project)];
  Settle(project, now_us);
  // The base is paid for by all who share it; a project pays what only it needs.
  hold.added_bytes = h.need.TotalBytes();
  if (hold.device >= 0) {
    Device& d = devices_[static_cast<size_t>(hold.device)];
    hold.added_bytes = d.load.Added(hold.group, h.need);
    d.held.insert(std::partition_point(d.held.begin(), d.held.end(),
                                       [&](int32_t i) { return HoldAt(i).key < h.key; }),
                  index);
    d.load.Add(hold.group, h.need, h.alone);
    d.load_milli += h.load_milli;
    FillSlot(hold.device);
    Untime(hold.device);
  }
  CountIn(held_sizes_, hold.need.TotalBytes());
  project.held_bytes += hold.added_bytes;
  project.held_load_milli += hold.load_milli;
  if (hold.brief) held_brief_milli_ += hold.load_milli;
  ++project.held_jobs;
  CountLeaving(hold, 1);
}

void Board::RemoveHold(const HoldKey& key, int64_t now_us) {
  const Hold* hold = FindHold(key);
  if (hold == nullptr) return;
  const int32_t device = hold->device;
  TakeOff(key, now_us);
  NoteChange(device, now_us);
}

void Board::TakeOff(const HoldKey& key, int64_t now_us) {
  const auto it = hold_ids_.find(key);
  if (it == hold_ids_.end()) return;
  const int32_t index = it->second;
  Hold& hold = holds_[static_cast<size_t>(index)];
  Project& project = projects_[static_cast<size_t>(hold.project)];
  Settle(project, now_us);
  CountOut(held_sizes_, hold.need.TotalBytes());
  CountLeaving(hold, -1);
  project.held_bytes -= hold.added_bytes;
  project.held_load_milli -= hold.load_milli;
  if (hold.brief) held_brief_milli_ -= hold.load_milli;
  --project.held_jobs;
  const int32_t device = hold.device;
  if (device >= 0) std::erase(devices_[static_cast<size_t>(device)].held, index);
  hold = {};
  free_holds_.push_back(index);
  hold_ids_.erase(it);
  Recount(device);
  Untime(device);
}

void Board::SetHoldWork(const HoldKey& key, int64_t work_us, int32_t load_milli, int64_t now_us) {
  Hold* hold = HoldOf(key);
  if (hold == nullptr) return;
  hold->work_us = work_us;
  hold->as_of_us = now_us;
  if (load_milli != hold->load_milli) {
    Project& project = projects_[static_cast<size_t>(hold->project)];
    Settle(project, now_us);
    project.held_load_milli += load_milli - hold->load_milli;
    if (hold->brief) held_brief_milli_ += load_milli - hold->load_milli;
    CountLeaving(*hold, -1);
    hold->load_milli = load_milli;
    CountLeaving(*hold, 1);
    Recount(hold->device);
  }
  Untime(hold->device);
}

void Board::SetHoldSeen(const HoldKey& key, int32_t seen_milli) {
  Hold* hold = HoldOf(key);
  if (hold == nullptr || hold->device < 0) return;
  hold->seen_milli = seen_milli;
  hold->seen_change = devices_[static_cast<size_t>(hold->device)].changes;
}

int32_t Board::SeenLoadOf(int32_t device) const {
  int32_t milli = 0;
  const Device& d = devices_[static_cast<size_t>(device)];
  for (const int32_t index : d.held) {
    const Hold& hold = HoldAt(index);
    if (hold.seen_milli == 0 || hold.seen_change != d.changes) return 1'000;
    milli += hold.seen_milli;
  }
  return milli;
}

void Board::SetReleasing(const HoldKey& key, int64_t now_us) {
  Hold* hold = HoldOf(key);
  if (hold == nullptr || hold->releasing) return;
  hold->releasing = true;
  CountLeaving(*hold, 1);
  hold->as_of_us = now_us;
  Untime(hold->device);
}

void Board::SetHoldPriority(const HoldKey& key, int32_t priority) {
  Hold* hold = HoldOf(key);
  if (hold == nullptr) return;
  hold->priority = priority;
  Untime(hold->device);
}

// ---- Shares ------------------------------------------------------------------------------------

void Board::Settle(Usage& usage, int64_t now_us) const {
  const int64_t step_us = std::max<int64_t>(1, policy_.share_window_us / kDecaySteps);
  const int64_t memory = usage.held_bytes / kMiB;
  const int64_t load = usage.held_load_milli;
  int64_t& at_us = usage.as_of_us;
  if (at_us == 0) at_us = now_us;
  if (now_us - at_us > kForgottenSteps * step_us) {
    usage.memory_time = memory * policy_.share_window_us;
    usage.device_time = load * policy_.share_window_us;
    at_us = now_us;
  }
  while (at_us < now_us) {
    const int64_t boundary_us = (at_us / step_us + 1) * step_us;
    const int64_t until_us = std::min(now_us, boundary_us);
    usage.memory_time += memory * (until_us - at_us);
    usage.device_time += load * (until_us - at_us);
    at_us = until_us;
    if (at_us != boundary_us) break;
    usage.memory_time -= usage.memory_time / kDecaySteps;
    usage.device_time -= usage.device_time / kDecaySteps;
  }
}

int64_t Board::DominantShare(const Project& project, int64_t memory_mib,
                             int64_t load_milli) const {
  constexpr int64_t kMillion = 1'000'000;
  const int64_t memory = memory_mib * kMillion / std::max<int64_t>(1, fleet_mib_);
  const int64_t load = load_milli * kMillion / (std::max(1, fleet_devices_) * int64_t{1'000});
  const auto named = policy_.projects.find(project.name);
  const int32_t weight = named == policy_.projects.end() ? 1 : std::max(1, named->second.weight);
  return std::max(memory, load) / weight;
}

int64_t Board::ShareOf(int32_t id, int64_t now_us, int64_t extra_bytes, int64_t extra_load) const {
  const Project& project = projects_[static_cast<size_t>(id)];
  Usage usage = project;
  Settle(usage, now_us);
  const int64_t window_us = std::max<int64_t>(1, policy_.share_window_us);
  const int64_t memory = usage.memory_time / window_us + (usage.held_bytes + extra_bytes) / kMiB;
  const int64_t load = usage.device_time / window_us + usage.held_load_milli + extra_load;
  return DominantShare(project, memory, load) / 2;
}

int64_t Board::HeldShareOf(int32_t id, int64_t extra_bytes, int64_t extra_load) const {
  const Project& project = projects_[static_cast<size_t>(id)];
  return DominantShare(project, (project.held_bytes + extra_bytes) / kMiB,
                       project.held_load_milli + extra_load);
}

}  // namespace nibble::core

#include "server/core/schedule_board.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace nibble::core {
namespace {

constexpr int64_t kMiB = 1 << 20;

// Up to a twentieth of a device: few buckets for jobs that each were measured.
int32_t RoundedLoad(int32_t load_milli) {
  constexpr int32_t kStepMilli = 50;
  return std::max(kStepMilli, (load_milli + kStepMilli - 1) / kStepMilli * kStepMilli);
}

// Where a slot of that name belongs.
template <typename Slots, typename Less>
auto LowerBound(Slots& slots, const Less& less) {
  return std::partition_point(slots.begin(), slots.end(), less);
}

}  // namespace

int32_t Board::Find(const std::map<std::string, int32_t>& ids, const std::string& name) {
  const auto it = ids.find(name);
  return it == ids.end() ? -1 : it->second;
}

int32_t Board::Intern(std::map<std::string, int32_t>& ids, const std::string& name) {
  const auto it = ids.find(name);
  if (it != ids.end()) return it->second;
  return ids.emplace(name, static_cast<int32_t>(ids.size())).first->second;
}

int32_t Board::ProjectId(const std::string& name) {
  const int32_t id = Intern(project_ids_, name);
  if (static_cast<size_t>(id) == projects_.size()) projects_.emplace_back().name = name;
  return id;
}

int32_t Board::WorkerId(const std::string& name) {
  const int32_t id = Intern(worker_ids_, name);
  if (static_cast<size_t>(id) == workers_.size()) workers_.emplace_back().id = name;
  return id;
}

int32_t Board::BlockId(const std::string& profile, const std::string& numerics) {
  const int32_t id = Intern(block_ids_, profile);
  if (static_cast<size_t>(id) == blocks_.size()) {
    blocks_.push_back({profile, numerics, {}});
  }
  return id;
}

// ---- Fleet -------------------------------------------------------------------------------------

void Board::PutWorker(const WorkerFacts& facts) {
  workers_[static_cast<size_t>(WorkerId(facts.id))] = facts;
}

void Board::SetRenewed(const std::string& worker_id, int64_t renewed_us) {
  workers_[static_cast<size_t>(WorkerId(worker_id))].renewed_us = renewed_us;
  now_us_ = std::max(now_us_, renewed_us);
}

int32_t Board::FindDevice(const std::string& worker_id, const std::string& device_id) const {
  const auto it = device_ids_.find({worker_id, device_id});
  return it == device_ids_.end() ? -1 : it->second;
}

std::vector<std::string> Board::DevicesOf(const std::string& worker_id) const {
  std::vector<std::string> ids;
  for (auto it = device_ids_.lower_bound({worker_id, ""});
       it != device_ids_.end() && it->first.first == worker_id; ++it) {
    ids.push_back(it->first.second);
  }
  return ids;
}

void Board::NumberSlots(std::vector<Slot>& slots, size_t first) {
  for (size_t i = first; i < slots.size(); ++i)
    devices_[static_cast<size_t>(slots[i].device)].slot = static_cast<int32_t>(i);
}

void Board::Recount(int32_t device) {
  if (device < 0) return;
  Device& d = devices_[static_cast<size_t>(device)];
  d.load.groups.clear();
  d.load.attempts = 0;
  d.load.total_bytes = 0;
  d.load.beside = {};
  d.load_milli = 0;
  for (const int32_t index : d.held) {
    const Hold& hold = HoldAt(index);
    d.load.Add(hold.group, hold.need, hold.alone);
    d.load_milli += hold.load_milli;
  }
  FillSlot(device);
}

void Board::FillSlot(int32_t device) {
  const Device& d = devices_[static_cast<size_t>(device)];
  Slot& slot = blocks_[static_cast<size_t>(d.block)].slots[static_cast<size_t>(d.slot)];
  slot.worker = d.worker;
  slot.device = device;
  slot.capacity_bytes = d.capacity_bytes;
  slot.speed_mflops = d.speed_mflops;
  slot.free_bytes = d.capacity_bytes - d.load.total_bytes;
  slot.load_milli = d.load_milli;
  slot.attempts = d.load.attempts;
  slot.group = d.load.groups.empty() ? -1 : d.load.groups.front().key;
}

void Board::PutDevice(const std::string& worker_id, const std::string& device_id,
                      const std::string& profile, const std::string& numerics,
                      int64_t capacity_bytes, const HostPart& beside, int64_t speed_mflops) {
  RemoveDevice(worker_id, device_id);
  int32_t device = static_cast<int32_t>(devices_.size());
  if (free_devices_.empty()) {
    devices_.emplace_back();
  } else {
    device = free_devices_.back();
    free_devices_.pop_back();
  }
  Device& d = devices_[static_cast<size_t>(device)];
  d = {};
  d.worker = WorkerId(worker_id);
  d.id = device_id;
  d.block = BlockId(profile, numerics);
  d.capacity_bytes = capacity_bytes;
  d.beside = beside;
  d.speed_mflops = speed_mflops;
  if (speed_mflops > 0) CountIn(speeds_, speed_mflops);
  CountIn(capacities_, capacity_bytes);
  device_ids_[{worker_id, device_id}] = device;
  fleet_mib_ += capacity_bytes / kMiB;
  ++fleet_devices_;
  auto& slots = blocks_[static_cast<size_t>(d.block)].slots;
  const auto at = LowerBound(slots, [&](const Slot& slot) {
    const int order = workers_[static_cast<size_t>(slot.worker)].id.compare(worker_id);
    return order != 0 ? order < 0 : devices_[static_cast<size_t>(slot.device)].id < d.id;
  });
  Slot slot;
  slot.worker = d.worker;
  slot.device = device;
  const auto put = slots.insert(at, slot);
  NumberSlots(slots, static_cast<size_t>(put - slots.begin()));
  Recount(device);
}

void Board::RemoveDevice(const std::string& worker_id, const std::string& device_id) {
  const auto it = device_ids_.find({worker_id, device_id});
  if (it == device_ids_.end()) return;
  const int32_t device = it->second;
  Device& d = devices_[static_cast<size_t>(device)];
  for (const int32_t index : d.held) holds_[static_cast<size_t>(index)].device = -1;
  auto& slots = blocks_[static_cast<size_t>(d.block)].slots;
  const auto at = static_cast<size_t>(d.slot);
  slots.erase(slots.begin() + d.slot);
  NumberSlots(slots, at);
  fleet_mib_ -= d.capacity_bytes / kMiB;
  --fleet_devices_;
  CountOut(speeds_, d.speed_mflops);
  CountOut(capacities_, d.capacity_bytes);
  d = {};
  free_devices_.push_back(device);
  device_ids_.erase(it);
}

void Board::SetWarm(const std::string& worker_id, const std::string& device_id,
                    const std::set<std::string>& bases) {
  const int32_t device = FindDevice(worker_id, device_id);
  if (device < 0) return;
  Device& d = devices_[static_cast<size_t>(device)];
  d.warm.clear();
  for (const std::string& base : bases) d.warm.push_back(Intern(base_ids_, base));
}

int64_t Board::MeanMflops() const {
  int64_t sum = 0, devices = 0;
  for (const auto& [mflops, count] : speeds_) {
    sum += mflops * count;
    devices += count;
  }
  return devices == 0 ? 0 : sum / devices;
}

// ---- Queue -------------------------------------------------------------------------------------

int32_t Board::BucketOf(const BoardJob& job) {
  const int32_t own_milli = job.own_load ? RoundedLoad(job.load_milli) : 0;
  const BucketKey key{job.shape, job.project, job.group, job.numerics, job.alone, own_milli};
  const auto it = bucket_ids_.find(key);
  if (it != bucket_ids_.end()) return it->second;
  int32_t id = static_cast<int32_t>(buckets_.size());
  if (free_buckets_.empty()) {
    buckets_.emplace_back();
  } else {
    id = free_buckets_.back();
    free_buckets_.pop_back();
  }
  Bucket& bucket = buckets_[static_cast<size_t>(id)];
  bucket = {};
  bucket.shape = job.shape;
  bucket.numerics = job.numerics;
  bucket.project = ProjectId(job.project);
  bucket.group = Intern(group_ids_, job.group);
  if (static_cast<size_t>(bucket.group) == group_names_.size()) group_names_.push_back(job.group);
  bucket.base = Intern(base_ids_, job.base);
  bucket.alone = job.alone;
  bucket.own_load_milli = own_milli;
  bucket_ids_[key] = id;
  return id;
}

void Board::UnlistHeads(int32_t id) {
  const Bucket& bucket = buckets_[static_cast<size_t>(id)];
  Project& project = projects_[static_cast<size_t>(bucket.project)];
  if (!bucket.order.empty()) project.heads.erase({*bucket.order.begin(), id});
  if (!bucket.urgent.empty()) project.urgent_heads.erase({*bucket.urgent.begin(), id});
}

void Board::ListHeads(int32_t id) {
  const Bucket& bucket = buckets_[static_cast<size_t>(id)];
  Project& project = projects_[static_cast<size_t>(bucket.project)];
  if (!bucket.order.empty()) project.heads.insert({*bucket.order.begin(), id});
  if (!bucket.urgent.empty()) project.urgent_heads.insert({*bucket.urgent.begin(), id});
}

void Board::Enqueue(const BoardJob& job) {
  Dequeue(job.number);
  Waiting w;
  w.job_id = job.job_id;
  w.bucket = BucketOf(job);
  w.priority = job.priority;
  w.queued_us = job.queued_us;
  w.not_before_us = job.not_before_us;
  w.work_us = job.work_us;
  w.total_us = job.total_us;
  w.avoid = job.avoid;
  // All age at the same speed, so the order of two jobs does not change with time.
  w.rank_us = job.work_us + job.queued_us / 1'000 * policy_.aging_milli;
  const int64_t bound_us = std::max(policy_.wait_floor_us, policy_.wait_factor * job.total_us);
  w.urgent_us = job.queued_us + bound_us / 2;
  w.critical_us = job.queued_us + bound_us / 3 * 2;
  w.started = job.started;
  Bucket& bucket = buckets_[static_cast<size_t>(w.bucket)];
  bucket.load_milli = bucket.own_load_milli > 0 ? bucket.own_load_milli : job.load_milli;
  UnlistHeads(w.bucket);
  bucket.order.insert({-w.priority, w.rank_us, job.number});
  if (!w.started) bucket.urgent.insert({w.urgent_us, job.number});
  ListHeads(w.bucket);
  ++projects_[static_cast<size_t>(bucket.project)].waiting;
  waiting_[job.number] = std::move(w);
}

void Board::Dequeue(int64_t number) {
  const auto it = waiting_.find(number);
  if (it == waiting_.end()) return;
  const Waiting& w = it->second;
  Bucket& bucket = buckets_[static_cast<size_t>(w.bucket)];
  const OrderKey order{-w.priority, w.rank_us, number};
  const UrgentKey urgent{w.urgent_us, number};
  const bool heads = *bucket.order.begin() == order ||
                     (!bucket.urgent.empty() && *bucket.urgent.begin() == urgent);
  if (heads) UnlistHeads(w.bucket);
  bucket.order.erase(order);
  bucket.urgent.erase(urgent);
  if (heads) ListHeads(w.bucket);
  --projects_[static_cast<size_t>(bucket.project)].waiting;
  if (bucket.order.empty()) {
    const std::string& group = group_names_[static_cast<size_t>(bucket.group)];
    bucket_ids_.erase({bucket.shape, projects_[static_cast<size_t>(bucket.project)].name, group,
                       bucket.numerics, bucket.alone, bucket.own_load_milli});
    bucket = {};
    free_buckets_.push_back(w.bucket);
  }
  waiting_.erase(it);
}

void Board::SetShapeLoad(const std::string& shape, int32_t load_milli) {
  for (auto it = bucket_ids_.lower_bound({shape, "", "", "", false, 0});
       it != bucket_ids_.end() && std::get<0>(it->first) == shape; ++it) {
    Bucket& bucket = buckets_[static_cast<size_t>(it->second)];
    if (bucket.own_load_milli == 0) bucket.load_milli = load_milli;
  }
}

std::vector<int64_t> Board::WaitingOfShape(const std::string& shape, size_t limit) const {
  std::vector<int64_t> numbers;
  for (auto it = bucket_ids_.lower_bound({shape, "", "", "", false, 0});
       it != bucket_ids_.end() && std::get<0>(it->first) == shape; ++it) {
    for (const OrderKey& key : buckets_[static_cast<size_t>(it->second)].order) {
      if (numbers.size() >= limit) return numbers;
      numbers.push_back(std::get<2>(key));
    }
  }
  return numbers;
}

// Estimates are left out: they are learned, not stored.
std::string Board::Dump() const {
  std::string text;
  for (const auto& [number, w] : waiting_) {
    const Bucket& bucket = buckets_[static_cast<size_t>(w.bucket)];
    absl::StrAppend(&text, "waiting ", number, " ", w.job_id, " ",
                    projects_[static_cast<size_t>(bucket.project)].name, " ", bucket.shape, " ",
                    bucket.numerics, " ", bucket.alone);
    absl::StrAppend(&text, " p", w.priority, " q", w.queued_us, " b", w.not_before_us, " a",
                    w.avoid.size(), "\n");
  }
  for (const auto& [key, index] : std::map<HoldKey, int32_t>(hold_ids_.begin(), hold_ids_.end())) {
    const Hold& hold = HoldAt(index);
    const Device* d = hold.device < 0 ? nullptr : &devices_[static_cast<size_t>(hold.device)];
    absl::StrAppend(&text, "holds ", key.first, "/", key.second, " ",
                    projects_[static_cast<size_t>(hold.project)].name, " ",
                    d == nullptr ? "-" : workers_[static_cast<size_t>(d->worker)].id, " ",
                    d == nullptr ? "-" : d->id, " ", hold.need.TotalBytes());
    absl::StrAppend(&text, " p", hold.priority, " r", hold.releasing, "\n");
  }
  for (const auto& [name, device] : device_ids_) {
    const Device& d = devices_[static_cast<size_t>(device)];
    const WorkerFacts& worker = workers_[static_cast<size_t>(d.worker)];
    absl::StrAppend(&text, "device ", name.first, "/", name.second, " ",
                    blocks_[static_cast<size_t>(d.block)].profile, " ", d.capacity_bytes, " ",
                    d.beside.pinned_bytes, " ", d.beside.host_bytes, " ",
                    d.load.total_bytes, " n", d.load.attempts, " ", worker.takes_work, "\n");
  }
  for (const auto& [bytes, holds] : held_sizes_) absl::StrAppend(&text, "size ", bytes, " n", holds, "\n");
  for (const auto& [bytes, devices] : capacities_)
    absl::StrAppend(&text, "capacity ", bytes, " n", devices, "\n");
  return text;
}

}  // namespace nibble::core

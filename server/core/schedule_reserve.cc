// What a pass keeps free: when a job can start at the earliest, as attempts are expected to end, and who else
// would be in its way.
#include <algorithm>
#include <utility>

#include "server/core/schedule_fleet.h"

namespace nibble::core {

PassFleet::Rest PassFleet::RestOf(int32_t device, const std::set<HoldKey>& gone) const {
  Rest rest;
  for (const int32_t index : board_.devices()[static_cast<size_t>(device)].held) {
    const Board::Hold& hold = board_.HoldAt(index);
    if (gone.count(hold.key) > 0) continue;
    rest.load.Add(hold.group, hold.need, hold.alone);
    rest.load_milli += hold.load_milli;
  }
  const auto changed = changed_.find(device);
  if (changed == changed_.end()) return rest;
  for (const Added& added : changed->second.added) {
    rest.load.Add(added.group, added.need, added.alone);
    rest.load_milli += added.load_milli;
  }
  return rest;
}

bool PassFleet::FitsWithout(int32_t device, const std::set<HoldKey>& gone,
                            const Board::Bucket& bucket, const Need& need) const {
  const Rest rest = RestOf(device, gone);
  const Capacity capacity = board_.devices()[static_cast<size_t>(device)].capacity();
  return RoomForLoad(rest.load_milli, rest.load.attempts, LoadOnDevice(bucket, device)) &&
         rest.load.Fits(capacity, bucket.group, need, bucket.alone, policy_);
}

bool PassFleet::Delays(const BoardReservation& r, const Board::Bucket& bucket, int64_t work_us,
                       const Spot& spot) const {
  if (r.device != spot.device) return false;
  // It may be gone by then, with all of those that are there taking turns with it.
  const int32_t shared_milli = RestOf(r.device, {}).load_milli + LoadOnDevice(bucket, r.device);
  const int64_t end_us = now_us_ + work_us / 1'000 * std::max(1'000, shared_milli);
  if (end_us + policy_.preempt_patience_us <= r.start_us) return false;
  const Board::Bucket& holder = board_.buckets()[static_cast<size_t>(r.bucket)];
  Rest then = RestOf(r.device, r.gone);
  then.load.Add(bucket.group, spot.need, bucket.alone);
  then.load_milli += LoadOnDevice(bucket, r.device);
  const Capacity capacity = board_.devices()[static_cast<size_t>(r.device)].capacity();
  return !RoomForLoad(then.load_milli, then.load.attempts, LoadOnDevice(holder, r.device)) ||
         !then.load.Fits(capacity, holder.group, r.need, holder.alone, policy_);
}

std::optional<BoardReservation> PassFleet::Reserve(int64_t number, int32_t bucket_id,
                                                   const std::vector<int32_t>& reserved) const {
  const Board::Bucket& bucket = board_.buckets()[static_cast<size_t>(bucket_id)];
  struct Chance {
    std::optional<Need> need;
    std::set<HoldKey> gone;
  };
  std::map<int32_t, Chance> chances;
  if (!ends_) ends_.emplace(board_.TimedDevices(), &Board::Device::ends);
  for (size_t i = 0; const auto end = ends_->At(i); ++i) {
    const int32_t device = end->device;
    const auto [it, fresh] = chances.try_emplace(device);
    Chance& chance = it->second;
    if (fresh && std::count(reserved.begin(), reserved.end(), device) == 0)
      chance.need = NeedOn(bucket, device, number);
    if (!chance.need) continue;
    const auto& [end_us, key] = *end->key;
    chance.gone.insert(key);
    if (!FitsWithout(device, chance.gone, bucket, *chance.need)) continue;
    return BoardReservation{number, bucket_id, device, *chance.need, std::max(end_us, now_us_),
                            std::move(chance.gone)};
  }
  return std::nullopt;
}

}  // namespace nibble::core

// Why a job waits, from what the pass looks at.
#include <algorithm>

#include "server/core/schedule_fleet.h"

namespace nibble::core {

DeviceVerdict PassFleet::VerdictOf(int32_t device, const Board::Bucket& bucket,
                                   int64_t number) const {
  using Kind = DeviceVerdict::Kind;
  const Board::Device& d = board_.devices()[static_cast<size_t>(device)];
  const Board::Block& block = board_.blocks()[static_cast<size_t>(d.block)];
  DeviceVerdict v;
  v.device = device;
  v.speed_percent = SpeedPercent(device);
  v.capacity_bytes = d.capacity_bytes;
  v.free_bytes = d.capacity_bytes - d.load.total_bytes;
  v.load_milli = d.load_milli;
  v.attempts = d.load.attempts;
  const std::optional<Need>& need =
      NeedIn(bucket, static_cast<size_t>(d.block), device, number);
  if (need) v.needed_bytes = d.load.Added(bucket.group, *need);
  if (!bucket.numerics.empty() && bucket.numerics != block.numerics) {
    v.kind = Kind::kNumerics;
  } else if (!need) {
    v.kind = Kind::kNoPlan;
  } else if (!need->FitsAlone(d.capacity())) {
    v.kind = Kind::kNever;
    v.lacks_host_memory = need->TotalBytes() <= d.capacity_bytes;
  } else if (!IsLive(d.worker)) {
    v.kind = Kind::kNotLive;
  } else if (v.needed_bytes > v.free_bytes || !d.capacity().Holds(d.load.Beside(*need))) {
    v.kind = Kind::kBytes;
    v.lacks_host_memory = v.needed_bytes <= v.free_bytes;
  } else if (!d.load.Fits(d.capacity(), bucket.group, *need, bucket.alone, policy_)) {
    v.kind = Kind::kAttempts;
  } else if (!RoomForLoad(d.load_milli, d.load.attempts, LoadThere(bucket, d.speed_mflops))) {
    v.kind = Kind::kLoad;
  }
  return v;
}

BoardExplanation Explain(const Board& board, const SchedulePolicy& policy, const NeedFn& need_of,
                         int64_t now_us, int64_t suspect_us, int64_t number,
                         const std::vector<BoardReservation>& reservations) {
  BoardExplanation out;
  const auto found = board.waiting().find(number);
  if (found == board.waiting().end()) return out;
  const Board::Waiting& w = found->second;
  const Board::Bucket& bucket = board.buckets()[static_cast<size_t>(w.bucket)];
  out.overdue = !w.started && w.urgent_us <= now_us;
  out.backing_off = w.not_before_us > now_us;
  PassFleet fleet(board, policy, need_of, now_us, suspect_us);
  out.over_quota = !fleet.InQuota(bucket);
  out.reservation = fleet.Reserve(number, w.bucket, {});
  for (const BoardReservation& r : reservations) {
    if (r.number == number) {
      out.reservation = r;
    } else if (!out.before) {
      out.before = r;
    }
  }
  for (const Board::Block& block : board.blocks()) {
    for (const Board::Slot& slot : block.slots) {
      DeviceVerdict v = fleet.VerdictOf(slot.device, bucket, number);
      if (v.kind == DeviceVerdict::Kind::kFits) {
        const Spot spot{slot.device, 0, *fleet.NeedOn(bucket, slot.device, number), 0, 0, 0, false};
        const bool reserved = std::any_of(reservations.begin(), reservations.end(), [&](const auto& r) {
          return r.number != number && fleet.Delays(r, bucket, w.work_us, spot);
        });
        if (reserved) v.kind = DeviceVerdict::Kind::kReserved;
      }
      out.devices.push_back(v);
    }
  }
  return out;
}

}  // namespace nibble::core

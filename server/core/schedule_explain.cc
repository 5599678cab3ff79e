// Why a job waits, from what the pass looks at.
#include <algorithm>

#include "server/core/schedule_fleet.h"

namespace nibble::core {
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

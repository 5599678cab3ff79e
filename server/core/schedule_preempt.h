// Whom a pass asks to let go so that a job can start that could not, and what projects hold once they have.
//
// Made for one pass and thrown away. docs/scheduling.md.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "server/core/schedule_fleet.h"
#include "server/core/schedule_offer.h"
#include "server/core/schedule_pass.h"

namespace nibble::core {

class PassPreemption {
 public:
  // All must outlive it.
  PassPreemption(const Board& board, const SchedulePolicy& policy, const PassFleet& fleet, int64_t now_us)
      : board_(board), policy_(policy), fleet_(fleet), now_us_(now_us) {}

  // `r`: where and when the job starts otherwise. When that is late, or nowhere, and attempts on a device
  // that is not of `reserved` are to make room, the fewest such are added to `stops`; `r` is then the place
  // they leave.
  void MakeRoom(const Candidate& c, const std::vector<int32_t>& reserved, std::optional<BoardReservation>& r,
                std::vector<BoardSchedule::Stop>& stops);
  // The place is kept for its job: it counts for the project's share when nobody there stays.
  void Keep(const BoardReservation& r);

 private:
  struct Plan {
    int32_t device = -1;
    std::vector<HoldKey> victims;
    std::set<HoldKey> gone;
    const char* why = nullptr;
  };

  // Whether `victim` is to make room for the job; why, in words. `going`: of the victim's project, who goes
  // with it.
  const char* Outranks(const Candidate& c, const Board::Waiting& w, const Board::Bucket& bucket,
                       const Need& need, const Board::Hold& victim, const PassFleet::Extra& going = {}) const;
  // The fewest on one device whose end would let the job in.
  std::optional<Plan> PlanOn(int32_t device, const Candidate& c, const Board::Waiting& w,
                             const Board::Bucket& bucket, const Need& need) const;
  // Someone it waits for should have ended by now: the prediction is no good.
  bool IsLate(const BoardReservation& r) const;
  // Nobody it waits for stays: it starts as soon as they have let go.
  bool IsPromised(const BoardReservation& r) const;
  void Promise(int32_t project, int64_t bytes, int64_t load_milli);
  // What it will hold on top of what it holds now, once all who were asked to let go have done so and those
  // they let go for have started.
  PassFleet::Extra Coming(int32_t project) const;

  const Board& board_;
  const SchedulePolicy& policy_;
  const PassFleet& fleet_;
  const int64_t now_us_;
  std::optional<Merged<Board::VictimKey>> victims_;
  std::set<HoldKey> stopped_;
  // By project, of this pass: of those who have a place promised, less of those asked to let go.
  std::map<int32_t, PassFleet::Extra> promised_;
};

}  // namespace nibble::core

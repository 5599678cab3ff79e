// One pass of the policy over a Board: which waiting job starts where, who is asked to let go for
// whom, and what is kept free. Pure; the same board, policy and time give the same answer.
//
// Order: the project with the smallest dominant share first; inside it the overdue, then priority,
// then the least predicted work with aging. Each job goes to the device with the best score. The
// first that cannot start hold reservations (EASY): what comes after them may only take bytes there
// that they will not need once the attempts they wait for have ended, or be over by then. docs/scheduling.md.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "server/core/schedule_board.h"

namespace nibble::core {

// What a job of this shape needs on a device of this profile; nullopt when it cannot be planned
// there. `number` is some job of the shape.
using NeedFn = std::function<std::optional<Need>(int64_t number, const Board::Device& device)>;

struct BoardReservation {
  int64_t number = 0;  // for whom
  int32_t bucket = 0;
  int32_t device = 0;
  Need need;
  int64_t start_us = 0;     // expected
  std::set<HoldKey> gone;   // those it waits for
};
struct BoardSchedule {
  struct Start {
    int64_t number = 0;
    int32_t bucket = 0;
    int32_t device = 0;
    int64_t left_bytes = 0;
    bool warm = false;  // the base is there already
    int32_t speed_percent = 0;  // of the fastest; 0 = not known, or all are alike
  };
  struct Stop {
    HoldKey key;
    int64_t for_number = 0;
    std::string why;
  };
  std::vector<Start> starts;
  std::vector<Stop> stops;
  std::vector<BoardReservation> reservations;
};

// At most max_starts placements; call again for more.
BoardSchedule RunPass(const Board& board, const SchedulePolicy& policy, const NeedFn& need_of,
                      int64_t now_us, int64_t suspect_us, size_t max_starts);

// Why a waiting job is not on a device.
struct DeviceVerdict {
  int32_t device = 0;
  enum class Kind {
    kFits,         // would start here now
    kNotLive,      // its worker is silent, drains or has not been heard of
    kNumerics,     // the job began with others
    kNoPlan,       // cannot be planned for such a device
    kNever,        // more than its capacity
    kBytes,        // not enough free now
    kAttempts,     // full: attempts or bases
    kLoad,         // full: measured load
    kReserved,     // free, but kept for a job before it
  } kind = Kind::kFits;
  int64_t needed_bytes = 0;  // added if it came here
  int64_t free_bytes = 0;
  int64_t capacity_bytes = 0;
  bool lacks_host_memory = false;  // the device has room; the host beside it has not
  int32_t load_milli = 0;
  int32_t attempts = 0;
  int32_t speed_percent = 0;  // of the fastest device's; 0 = not known, or all are alike
};
struct BoardExplanation {
  bool overdue = false;
  bool backing_off = false;
  bool over_quota = false;
  std::vector<DeviceVerdict> devices;
  std::optional<BoardReservation> reservation;  // its own, were it first
  std::optional<BoardReservation> before;       // the first reservation of those before it
};
// `reservations` are those of a pass over the same board at the same time.
BoardExplanation Explain(const Board& board, const SchedulePolicy& policy, const NeedFn& need_of,
                         int64_t now_us, int64_t suspect_us, int64_t number,
                         const std::vector<BoardReservation>& reservations);

// The first `limit` of those that wait, next first, as if each started in its turn.
std::vector<int64_t> OrderOf(const Board& board, int64_t now_us, size_t limit);
// How many come before a waiting job in that order, without going through them: right when no other project
// has a job waiting before it or those of each other project are alike, an estimate otherwise.
int64_t JobsBefore(const Board& board, int64_t now_us, int64_t number);

}  // namespace nibble::core

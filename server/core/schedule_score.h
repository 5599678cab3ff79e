// What it is worth to put a job on a slot: smaller is better.
//
// Four parts, each in thousandths and weighed by the policy: turns that would have to be shared; how much
// longer they take than on the fastest device; how many more free bytes than before are of no use to typical
// jobs, those that wait and run, of the largest device's; and a base that has to be loaded first. The
// tightest fit breaks ties.
//
// Made for one pass over a board that does not change meanwhile.
#pragma once

#include <cstdint>
#include <vector>

#include "server/core/schedule_board.h"

namespace nibble::core {

class SlotScore {
 public:
  SlotScore(const Board& board, const SchedulePolicy& policy);
  // Of a job that would add so much load and so many bytes there. `warm`: its base is there already.
  int64_t Of(const Board::Slot& slot, int32_t load_milli, int64_t added_bytes, bool warm);

 private:
  // What jobs that wait or run ask for, each on some device that it was planned for; by free bytes in
  // thousandths of the largest device.
  struct Typical {
    std::vector<int64_t> larger;  // how many of them would not fit, in millionths
    // Bytes that are left in the end, in millionths of the largest device, when of those that fit one after
    // the other comes, each as likely as it is frequent, until none fits:
    //   lost(free) = sum over sizes <= free of frequency * lost(free - size) / sum of those frequencies.
    std::vector<int64_t> lost;
  };
  const Typical& TypicalJobs();

  const Board& board_;
  const SchedulePolicy& policy_;
  const int64_t fastest_mflops_;  // 0 = all devices are alike
  const int64_t largest_bytes_;   // of a device
  const int64_t step_bytes_;      // of sizes in Typical
  Typical typical_;               // as the first call found it
};

}  // namespace nibble::core

#include "server/core/schedule_score.h"

#include <algorithm>
#include <utility>

namespace nibble::core {
namespace {

constexpr int64_t kMillion = 1'000'000;
// Of the largest device's bytes. What is larger than all devices is in the last.
constexpr int64_t kSizeSteps = 1'001;
// Thousandths by which turns take longer: beyond this a device is slow, and how slow does not matter.
constexpr int64_t kSlowest = 64'000;

}  // namespace

SlotScore::SlotScore(const Board& board, const SchedulePolicy& policy)
    : board_(board),
      policy_(policy),
      fastest_mflops_(board.SpeedsDiffer() ? board.FastestMflops() : 0),
      largest_bytes_(board.LargestBytes()),
      step_bytes_(std::max<int64_t>(1, largest_bytes_ / (kSizeSteps - 1))) {}

const SlotScore::Typical& SlotScore::TypicalJobs() {
  Typical& typical = typical_;
  if (!typical.lost.empty()) return typical;
  std::vector<int64_t> count(kSizeSteps + 1, 0);
  int64_t total = 0;
  const auto add = [&](int64_t bytes, int64_t jobs) {
    const int64_t step = (bytes + step_bytes_ - 1) / step_bytes_;
    count[static_cast<size_t>(std::clamp<int64_t>(step, 1, kSizeSteps))] += jobs;
    total += jobs;
  };
  for (const Board::Bucket& bucket : board_.buckets()) {
    const int64_t bytes = bucket.KnownBytes();
    if (bytes > 0) add(bytes, static_cast<int64_t>(bucket.order.size()));
  }
  // What runs tells what will come, also when little waits.
  for (const auto& [bytes, holds] : board_.held_sizes()) add(bytes, holds);
  std::vector<std::pair<size_t, int64_t>> sizes;
  for (size_t step = 0; step < count.size(); ++step) {
    if (count[step] > 0) sizes.emplace_back(step, count[step]);
  }
  typical.larger.assign(kSizeSteps + 1, 0);
  typical.lost.assign(kSizeSteps + 1, 0);
  int64_t fit = 0;
  for (size_t free = 0; free < typical.lost.size(); ++free) {
    // Free bytes in a step hold what needs that step or less.
    fit += count[free];
    typical.larger[free] = total == 0 ? 0 : (total - fit) * kMillion / total;
    int64_t lost = 0;
    for (const auto& [step, jobs] : sizes) {
      if (step > free) break;
      lost += jobs * typical.lost[free - step];
    }
    const int64_t all = static_cast<int64_t>(free) * (kMillion / (kSizeSteps - 1));
    typical.lost[free] = fit == 0 ? all : lost / fit;
  }
  return typical;
}

int64_t SlotScore::Of(const Board::Slot& slot, int32_t load_milli, int64_t added_bytes, bool warm) {
  const Typical& typical = TypicalJobs();
  // In millionths of the largest device, so that no product overflows.
  const int64_t unit_bytes = std::max<int64_t>(1, largest_bytes_ / kMillion);
  const auto useless = [&](int64_t free_bytes) {
    const auto step = static_cast<size_t>(std::min(free_bytes / step_bytes_, kSizeSteps));
    return free_bytes / unit_bytes * typical.larger[step] +
           typical.lost[step] * policy_.rest_milli * (kMillion / 1'000);
  };
  const int64_t fragment =
      (useless(slot.free_bytes - added_bytes) - useless(slot.free_bytes)) / kMillion;
  const int64_t overload = std::max(0, slot.load_milli + load_milli - 1'000);
  int64_t slow = 0;
  if (slot.speed_mflops > 0 && slot.speed_mflops < fastest_mflops_) {
    const int64_t longer = fastest_mflops_ * 1'000 / slot.speed_mflops - 1'000;
    slow = std::min(longer, kSlowest) * load_milli / 1'000;
  }
  // The tightest fit breaks ties.
  const int64_t left_milli = (slot.free_bytes - added_bytes) / (slot.capacity_bytes / 1'000 + 1);
  return kMillion * (policy_.overload_weight * overload + policy_.slow_weight * slow +
                     (warm ? 0 : policy_.cold_base_weight * 1'000)) +
         1'000 * policy_.fragment_weight * fragment + left_milli;
}

}  // namespace nibble::core

#include "engine/spec/offset_planner.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <utility>

#include "engine/spec/placed_buffers.h"
#include "engine/spec/round.h"

namespace nibble::spec {
namespace {

struct Ranked {
  uint64_t key;
  int32_t buffer;
};

// By key, ascending; equal ones stay as they are. By digits, lowest first, of which most are all alike.
class StableSorter {
 public:
  void Sort(std::vector<Ranked>& ranked) {
    uint64_t differ = 0;
    for (const Ranked& r : ranked) differ |= r.key ^ ranked.front().key;
    other_.resize(ranked.size());
    for (int shift = 0; shift < 64; shift += kBits) {
      if ((differ >> shift & kMask) == 0) continue;
      std::array<uint32_t, size_t{1} << kBits> place{};
      for (const Ranked& r : ranked) ++place[r.key >> shift & kMask];
      uint32_t next = 0;
      for (uint32_t& p : place) next += std::exchange(p, next);
      for (const Ranked& r : ranked) other_[place[r.key >> shift & kMask]++] = r;
      ranked.swap(other_);
    }
  }

 private:
  static constexpr int kBits = 8;
  static constexpr uint64_t kMask = (uint64_t{1} << kBits) - 1;
  std::vector<Ranked> other_;
};

enum class Order { kLargest, kLongest, kMostBytesTimesLife, kFirst };

// Ascending: who is placed first has the least.
uint64_t KeyOf(const LiveBuffer& b, Order order) {
  const int64_t life = int64_t{b.last_use} - b.first_use + 1;
  switch (order) {
    case Order::kLargest:
      return ~static_cast<uint64_t>(b.size_bytes);
    case Order::kLongest:
      return ~static_cast<uint64_t>(life);
    case Order::kMostBytesTimesLife:
      // Of doubles that are not negative the bits have the order of the values.
      return ~std::bit_cast<uint64_t>(static_cast<double>(b.size_bytes) * static_cast<double>(life));
    case Order::kFirst:
      return static_cast<uint64_t>(b.first_use);
  }
  return 0;
}

// Lowest-offset-first in the given order. Gives up, and says so by `limit`, once the total is no less than
// that.
int64_t PlaceInOrder(const std::vector<LiveBuffer>& buffers, const std::vector<int64_t>& sizes,
                     const std::vector<Ranked>& order, int32_t last_use, int64_t limit,
                     std::vector<int64_t>& offsets) {
  thread_local PlacedBuffers placed;
  placed.Begin(buffers, last_use);
  int64_t total = 0;
  for (const Ranked& next : order) {
    const auto i = static_cast<size_t>(next.buffer);
    const LiveBuffer& buffer = buffers[i];
    const int64_t size = sizes[i];
    const int64_t begin = placed.LowestGap(buffer, size);
    offsets[i] = begin;
    total = std::max(total, begin + size);
    if (total >= limit) return limit;
    placed.Add(buffer, begin, size);
  }
  return total;
}

void FindPeak(const std::vector<LiveBuffer>& buffers, const std::vector<int64_t>& sizes, int32_t last_use,
              OffsetPlan& plan) {
  std::vector<int64_t> change(static_cast<size_t>(last_use) + 2, 0);
  for (size_t i = 0; i < buffers.size(); ++i) {
    change[buffers[i].first_use] += sizes[i];
    change[buffers[i].last_use + 1] -= sizes[i];
  }
  int64_t live = 0;
  for (int32_t use = 0; use <= last_use; ++use) {
    live += change[use];
    if (live > plan.lower_bound_bytes) {
      plan.lower_bound_bytes = live;
      plan.peak_use = use;
    }
  }
}

// The first of equally good ones gives the offsets. Who wants the total alone begins with the quickest.
std::array<Order, 4> OrdersFor(int64_t enough) {
  if (enough > 1) return {Order::kLongest, Order::kLargest, Order::kMostBytesTimesLife, Order::kFirst};
  return {Order::kLargest, Order::kLongest, Order::kMostBytesTimesLife, Order::kFirst};
}

}  // namespace

OffsetPlan PlanOffsets(const std::vector<LiveBuffer>& buffers, int64_t alignment, int64_t enough) {
  OffsetPlan plan;
  plan.offsets.resize(buffers.size());
  if (buffers.empty()) return plan;
  int32_t last_use = 0;
  std::vector<int64_t> sizes;
  sizes.reserve(buffers.size());
  for (const LiveBuffer& buffer : buffers) {
    last_use = std::max(last_use, buffer.last_use);
    sizes.push_back(RoundUp(buffer.size_bytes, alignment));
  }
  FindPeak(buffers, sizes, last_use, plan);

  StableSorter sorter;
  std::vector<Ranked> ranked(buffers.size());
  std::vector<int64_t> offsets(buffers.size());
  plan.total_bytes = std::numeric_limits<int64_t>::max();
  for (const Order order : OrdersFor(enough)) {
    for (size_t i = 0; i < buffers.size(); ++i)
      ranked[i] = {KeyOf(buffers[i], order), static_cast<int32_t>(i)};
    sorter.Sort(ranked);
    const int64_t total = PlaceInOrder(buffers, sizes, ranked, last_use, plan.total_bytes, offsets);
    if (total < plan.total_bytes) {
      plan.total_bytes = total;
      plan.offsets.swap(offsets);
    }
    if (plan.total_bytes <= RoundUp(plan.lower_bound_bytes, enough)) break;
  }
  return plan;
}

}  // namespace nibble::spec

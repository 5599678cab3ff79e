#include "engine/spec/offset_planner.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

#include "base/status.h"

namespace nibble::spec {
namespace {

constexpr int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

struct Placed {
  int64_t begin;
  int64_t end;
  int32_t first_use;
  int32_t last_use;
};

// Lowest-offset-first in the given order.
int64_t PlaceInOrder(const std::vector<LiveBuffer>& buffers, const std::vector<int32_t>& order,
                     int64_t alignment, std::vector<int64_t>& offsets) {
  std::vector<Placed> placed;  // by begin
  placed.reserve(buffers.size());
  int64_t total = 0;
  for (const int32_t i : order) {
    const LiveBuffer& buffer = buffers[i];
    const int64_t size = RoundUp(buffer.size_bytes, alignment);
    int64_t begin = 0;
    for (const Placed& other : placed) {
      if (other.last_use < buffer.first_use || other.first_use > buffer.last_use) continue;
      if (other.begin - begin >= size) break;
      begin = std::max(begin, other.end);
    }
    offsets[i] = begin;
    total = std::max(total, begin + size);
    const Placed mine{begin, begin + size, buffer.first_use, buffer.last_use};
    placed.insert(
        std::upper_bound(placed.begin(), placed.end(), mine,
                         [](const Placed& a, const Placed& b) { return a.begin < b.begin; }),
        mine);
  }
  return total;
}

void FindPeak(const std::vector<LiveBuffer>& buffers, int64_t alignment, OffsetPlan& plan) {
  int32_t last = 0;
  for (const LiveBuffer& b : buffers) last = std::max(last, b.last_use);
  std::vector<int64_t> change(static_cast<size_t>(last) + 2, 0);
  for (const LiveBuffer& b : buffers) {
    change[b.first_use] += RoundUp(b.size_bytes, alignment);
    change[b.last_use + 1] -= RoundUp(b.size_bytes, alignment);
  }
  int64_t live = 0;
  for (int32_t use = 0; use <= last; ++use) {
    live += change[use];
    if (live > plan.lower_bound_bytes) {
      plan.lower_bound_bytes = live;
      plan.peak_use = use;
    }
  }
}

}  // namespace

OffsetPlan PlanOffsets(const std::vector<LiveBuffer>& buffers, int64_t alignment) {
  OffsetPlan plan;
  plan.offsets.resize(buffers.size());
  if (buffers.empty()) return plan;
  FindPeak(buffers, alignment, plan);

  const auto life = [](const LiveBuffer& b) { return int64_t{b.last_use} - b.first_use + 1; };
  using Less = std::function<bool(const LiveBuffer&, const LiveBuffer&)>;
  const Less orders[] = {
      [](const LiveBuffer& a, const LiveBuffer& b) { return a.size_bytes > b.size_bytes; },
      [&](const LiveBuffer& a, const LiveBuffer& b) { return life(a) > life(b); },
      [&](const LiveBuffer& a, const LiveBuffer& b) {
        return static_cast<double>(a.size_bytes) * static_cast<double>(life(a)) >
               static_cast<double>(b.size_bytes) * static_cast<double>(life(b));
      },
      [](const LiveBuffer& a, const LiveBuffer& b) { return a.first_use < b.first_use; },
  };
  std::vector<int32_t> order(buffers.size());
  std::vector<int64_t> offsets(buffers.size());
  plan.total_bytes = std::numeric_limits<int64_t>::max();
  for (const Less& less : orders) {
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return less(buffers[a], buffers[b]); });
    const int64_t total = PlaceInOrder(buffers, order, alignment, offsets);
    if (total < plan.total_bytes) {
      plan.total_bytes = total;
      plan.offsets = offsets;
    }
    if (plan.total_bytes == plan.lower_bound_bytes) break;
  }
  return plan;
}

}  // namespace nibble::spec

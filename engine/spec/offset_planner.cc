#include "engine/spec/offset_planner.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

#include "base/status.h"
#include "engine/spec/round.h"

namespace nibble::spec {
namespace {

struct Placed {
  int64_t begin;
  int64_t end;
  int32_t first_use;
  int32_t last_use;

  bool Meets(const LiveBuffer& other) const {
    return last_use >= other.first_use && first_use <= other.last_use;
  }
};

bool LowerBegin(const Placed& a, const Placed& b) { return a.begin < b.begin; }

// What has been placed, found by time. A plan has thousands of buffers, but most live for a few
// operations: those stand in slots of time, and a short life is compared with the few of its own slots
// and with the long-lived ones only.
class PlacedBuffers {
 public:
  explicit PlacedBuffers(int32_t last_use) : slots_(static_cast<size_t>(Slot(last_use)) + 1) {}

  // The lowest offset where `size` bytes meet nobody.
  int64_t LowestGap(const LiveBuffer& buffer, int64_t size) {
    const std::vector<Placed>* others = &long_;
    near_.clear();
    if (IsLong(buffer)) {
      SortAll();
      others = &all_;
    } else {
      CollectNear(buffer);
    }
    int64_t begin = 0;
    auto near = near_.begin();
    for (const Placed& other : *others) {
      if (!other.Meets(buffer)) continue;
      for (; near != near_.end() && near->begin <= other.begin; ++near) {
        if (near->begin - begin >= size) return begin;
        begin = std::max(begin, near->end);
      }
      if (other.begin - begin >= size) return begin;
      begin = std::max(begin, other.end);
    }
    for (; near != near_.end(); ++near) {
      if (near->begin - begin >= size) return begin;
      begin = std::max(begin, near->end);
    }
    return begin;
  }

  void Add(const LiveBuffer& buffer, int64_t begin, int64_t size) {
    const Placed placed{begin, begin + size, buffer.first_use, buffer.last_use};
    all_.push_back(placed);
    if (IsLong(buffer)) {
      long_.insert(std::upper_bound(long_.begin(), long_.end(), placed, LowerBegin), placed);
      return;
    }
    for (int32_t slot = Slot(buffer.first_use); slot <= Slot(buffer.last_use); ++slot) {
      slots_[static_cast<size_t>(slot)].push_back(placed);
    }
  }

 private:
  static constexpr int32_t kSlotUses = 16;
  static constexpr int32_t kLongSlots = 4;  // a life that touches more is long
  static int32_t Slot(int32_t use) { return use / kSlotUses; }
  static bool IsLong(const LiveBuffer& buffer) {
    return Slot(buffer.last_use) - Slot(buffer.first_use) >= kLongSlots;
  }

  // Short-lived neighbours of a short life, by begin.
  void CollectNear(const LiveBuffer& buffer) {
    const int32_t first = Slot(buffer.first_use);
    for (int32_t slot = first; slot <= Slot(buffer.last_use); ++slot) {
      for (const Placed& other : slots_[static_cast<size_t>(slot)]) {
        // Who stands in several slots is taken in the first that both touch.
        if (other.Meets(buffer) && std::max(first, Slot(other.first_use)) == slot) near_.push_back(other);
      }
    }
    std::sort(near_.begin(), near_.end(), LowerBegin);
  }

  // A long life meets nearly everybody; what came since the last time is sorted in.
  void SortAll() {
    const auto middle = all_.begin() + static_cast<ptrdiff_t>(sorted_);
    std::sort(middle, all_.end(), LowerBegin);
    std::inplace_merge(all_.begin(), middle, all_.end(), LowerBegin);
    sorted_ = all_.size();
  }

  std::vector<Placed> all_;
  size_t sorted_ = 0;         // of all_, by begin
  std::vector<Placed> long_;  // by begin
  std::vector<std::vector<Placed>> slots_;
  std::vector<Placed> near_;  // of the buffer being placed
};

// Lowest-offset-first in the given order.
int64_t PlaceInOrder(const std::vector<LiveBuffer>& buffers, const std::vector<int32_t>& order,
                     int64_t alignment, std::vector<int64_t>& offsets) {
  int32_t last_use = 0;
  for (const LiveBuffer& buffer : buffers) last_use = std::max(last_use, buffer.last_use);
  PlacedBuffers placed(last_use);
  int64_t total = 0;
  for (const int32_t i : order) {
    const LiveBuffer& buffer = buffers[i];
    const int64_t size = RoundUp(buffer.size_bytes, alignment);
    const int64_t begin = placed.LowestGap(buffer, size);
    offsets[i] = begin;
    total = std::max(total, begin + size);
    placed.Add(buffer, begin, size);
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

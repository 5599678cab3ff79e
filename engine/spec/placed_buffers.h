// Buffers that stand in a region, found by time: where is the lowest room for one more?
//
// A plan has thousands of buffers. Most live for a few operations; some, what backward needs of a block, for
// thousands. Time is cut into slots of 8 operations, and 16 slots are a span. Who is there for a part of a
// slot is noted in it with its operations; who is there for all of it is merged into what is busy all along.
// So a question about a short life looks at the few of its own slots. A question about a long life looks at
// merged bytes: whoever touches a slot that lies in it as a whole is in the way.
//
// A value; used by one thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/spec/offset_planner.h"

namespace nibble::spec {

struct Bytes {
  int64_t begin = 0;
  int64_t end = 0;
};

// A set of bytes, as few disjoint pieces as it has, ascending.
class MergedBytes {
 public:
  void Add(int64_t begin, int64_t end) {
    size_t first = 0;
    while (first < pieces_.size() && pieces_[first].end < begin) ++first;
    if (first == pieces_.size() || pieces_[first].begin > end) {
      pieces_.insert(pieces_.begin() + static_cast<std::ptrdiff_t>(first), {begin, end});
      return;
    }
    size_t last = first;  // of those it touches
    while (last + 1 < pieces_.size() && pieces_[last + 1].begin <= end) ++last;
    pieces_[first] = {std::min(begin, pieces_[first].begin), std::max(end, pieces_[last].end)};
    pieces_.erase(pieces_.begin() + static_cast<std::ptrdiff_t>(first) + 1,
                  pieces_.begin() + static_cast<std::ptrdiff_t>(last) + 1);
  }
  void AppendTo(std::vector<Bytes>& out) const {
    for (const Bytes& piece : pieces_) out.push_back(piece);  // few: quicker than a range
  }

 private:
  std::vector<Bytes> pieces_;
};

class PlacedBuffers {
 public:
  // No buffer lives longer than to operation `last_use`.
  explicit PlacedBuffers(int32_t last_use)
      : slots_(static_cast<size_t>(last_use / kSlotUses) + 1),
        spans_(static_cast<size_t>(last_use / kSlotUses / kSpanSlots) + 1) {
    busy_.reserve(256);
    for (Slot& slot : slots_) slot.parts.reserve(2 * kSlotUses);
  }

  // The lowest offset where `size` bytes meet nobody.
  int64_t LowestGap(const LiveBuffer& buffer, int64_t size) {
    busy_.clear();
    const Cut cut(buffer);
    for (int32_t slot = cut.first; slot <= cut.last; ++slot) {
      const int32_t span = slot / kSpanSlots;
      if (cut.HasSpan(span)) {
        spans_[static_cast<size_t>(span)].any.AppendTo(busy_);
        slot = span * kSpanSlots + kSpanSlots - 1;
        continue;
      }
      if (slot == cut.first || slot % kSpanSlots == 0) spans_[static_cast<size_t>(span)].all.AppendTo(busy_);
      const Slot& here = slots_[static_cast<size_t>(slot)];
      if (cut.HasSlot(slot)) {
        here.any.AppendTo(busy_);
        continue;
      }
      here.all.AppendTo(busy_);
      for (const Part& part : here.parts) {
        if (part.last_use >= buffer.first_use && part.first_use <= buffer.last_use)
          busy_.push_back(part.bytes);
      }
    }
    return LowestAmongBusy(size);
  }

  void Add(const LiveBuffer& buffer, int64_t begin, int64_t size) {
    const int64_t end = begin + size;
    const Cut cut(buffer);
    for (int32_t slot = cut.first; slot <= cut.last; ++slot) {
      const int32_t span = slot / kSpanSlots;
      Span& around = spans_[static_cast<size_t>(span)];
      if (cut.HasSpan(span)) {
        around.all.Add(begin, end);
        around.any.Add(begin, end);
        slot = span * kSpanSlots + kSpanSlots - 1;
        continue;
      }
      if (slot == cut.first || slot % kSpanSlots == 0) around.any.Add(begin, end);
      Slot& here = slots_[static_cast<size_t>(slot)];
      here.any.Add(begin, end);
      if (cut.HasSlot(slot)) {
        here.all.Add(begin, end);
      } else {
        here.parts.push_back({{begin, end}, buffer.first_use, buffer.last_use});
      }
    }
  }

 private:
  static constexpr int32_t kSlotUses = 8;
  static constexpr int32_t kSpanSlots = 16;
  static constexpr int kPasses = 4;

  struct Part {
    Bytes bytes;
    int32_t first_use;
    int32_t last_use;
  };
  struct Slot {
    std::vector<Part> parts;  // of those who are there for a part of it
    MergedBytes all;          // of those who are there for all of it, but not for all of its span
    MergedBytes any;          // of both
  };
  struct Span {
    MergedBytes all;  // of those who are there for all of it
    MergedBytes any;  // of those who touch it
  };

  // Which slots a life touches, and which slots and spans lie in it as a whole.
  struct Cut {
    explicit Cut(const LiveBuffer& b)
        : first(b.first_use / kSlotUses),
          last(b.last_use / kSlotUses),
          whole_first((b.first_use + kSlotUses - 1) / kSlotUses),
          whole_last((b.last_use + 1) / kSlotUses - 1),
          span_first((whole_first + kSpanSlots - 1) / kSpanSlots),
          span_last((whole_last + 1) / kSpanSlots - 1) {}
    bool HasSlot(int32_t slot) const { return whole_first <= slot && slot <= whole_last; }
    bool HasSpan(int32_t span) const { return span_first <= span && span <= span_last; }

    int32_t first, last;
    int32_t whole_first, whole_last;
    int32_t span_first, span_last;
  };

  // Whoever is in the way of the lowest place not yet ruled out rules out all below its end. So in any order
  // a pass without such a one has found the place; mostly that is the second or third. After that, in order.
  int64_t LowestAmongBusy(int64_t size) {
    int64_t begin = 0;
    for (int pass = 0; pass < kPasses; ++pass) {
      const int64_t before = begin;
      for (const Bytes& busy : busy_) {
        if (busy.begin < begin + size && busy.end > begin) begin = busy.end;
      }
      if (begin == before) return begin;
    }
    std::erase_if(busy_, [&](const Bytes& busy) { return busy.end <= begin; });
    std::sort(busy_.begin(), busy_.end(), [](const Bytes& a, const Bytes& b) { return a.begin < b.begin; });
    for (const Bytes& busy : busy_) {
      if (busy.begin - begin >= size) break;
      begin = std::max(begin, busy.end);
    }
    return begin;
  }

  std::vector<Slot> slots_;
  std::vector<Span> spans_;
  std::vector<Bytes> busy_;  // in the way of the buffer that is asked for
};

}  // namespace nibble::spec

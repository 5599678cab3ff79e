// Buffers that stand in a region, found by time: where is the lowest room for one more?
//
// A plan has thousands of buffers. Most live for a few operations; some, what backward needs of a block, for
// thousands. Time is cut into slots of 8 operations, and 16 slots are a span. Who is there for a part of a
// slot is noted in it with its operations; who is there for all of it is merged into what is busy all along.
// So a question about a short life looks at the few of its own slots. A question about a long life looks at
// merged bytes: whoever touches a slot that lies in it as a whole is in the way.
//
// Used by one thread.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "engine/spec/offset_planner.h"

namespace nibble::spec {

struct Bytes {
  int64_t begin = 0;
  int64_t end = 0;
};

// A set of bytes, as few disjoint pieces as it has, ascending. Mostly that is one or two, which need no
// memory of their own.
class MergedBytes {
 public:
  void Add(int64_t begin, int64_t end) {
    Bytes* const pieces = Pieces();
    size_t first = 0;
    while (first < count_ && pieces[first].end < begin) ++first;
    if (first == count_ || pieces[first].begin > end) return Insert(first, {begin, end});
    size_t last = first;  // of those it touches
    while (last + 1 < count_ && pieces[last + 1].begin <= end) ++last;
    pieces[first] = {std::min(begin, pieces[first].begin), std::max(end, pieces[last].end)};
    if (last == first) return;
    std::copy(pieces + last + 1, pieces + count_, pieces + first + 1);
    count_ -= last - first;
  }
  void Clear() {
    count_ = 0;
    more_.clear();
  }
  std::span<const Bytes> pieces() const { return {more_.empty() ? few_.data() : more_.data(), count_}; }

 private:
  Bytes* Pieces() { return more_.empty() ? few_.data() : more_.data(); }
  void Insert(size_t at, Bytes piece) {
    if (more_.empty() && count_ == few_.size()) more_.assign(few_.begin(), few_.end());
    if (!more_.empty() && count_ == more_.size()) more_.resize(2 * count_);
    Bytes* const pieces = Pieces();
    std::copy_backward(pieces + at, pieces + count_, pieces + count_ + 1);
    pieces[at] = piece;
    ++count_;
  }

  size_t count_ = 0;
  std::array<Bytes, 2> few_;
  std::vector<Bytes> more_;  // all of them, once there were more than few_ holds
};

class PlacedBuffers {
 public:
  // Nobody is there; for `buffers`, none of which lives longer than to operation `last_use`. What memory it
  // has it keeps: an order is placed in little more time than the system takes to give that much.
  void Begin(const std::vector<LiveBuffer>& buffers, int32_t last_use) {
    slots_.resize(static_cast<size_t>(last_use / kSlotUses) + 1);
    spans_.resize(static_cast<size_t>(last_use / kSlotUses / kSpanSlots) + 1);
    for (Slot& slot : slots_) slot.Clear();
    for (Span& span : spans_) span.Clear();
    for (const LiveBuffer& buffer : buffers) {
      const Cut cut(buffer);
      if (!cut.HasSlot(cut.first)) ++At(cut.first).room;
      if (cut.last != cut.first && !cut.HasSlot(cut.last)) ++At(cut.last).room;
    }
    size_t next = 0;
    for (Slot& slot : slots_) {
      slot.parts = next;
      next += static_cast<size_t>(slot.room);
    }
    parts_.resize(std::max(next, parts_.size()));
  }

  // The lowest offset where `size` bytes meet nobody.
  int64_t LowestGap(const LiveBuffer& buffer, int64_t size) {
    Question question{above_, size};
    const Cut cut(buffer);
    for (int32_t slot = cut.first; slot <= cut.last; ++slot) {
      const int32_t span = slot / kSpanSlots;
      if (cut.HasSpan(span)) {
        question.Meet(spans_[static_cast<size_t>(span)].any);
        slot = span * kSpanSlots + kSpanSlots - 1;
        continue;
      }
      if (slot == cut.first || slot % kSpanSlots == 0) question.Meet(spans_[static_cast<size_t>(span)].all);
      const Slot& here = At(slot);
      if (cut.HasSlot(slot)) {
        question.Meet(here.any);
        continue;
      }
      question.Meet(here.all);
      question.Meet(std::span(parts_).subspan(here.parts, static_cast<size_t>(here.filled)), buffer);
    }
    return question.Answer();
  }

  // Of one of the buffers, each once.
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
      Slot& here = At(slot);
      here.any.Add(begin, end);
      if (cut.HasSlot(slot)) {
        here.all.Add(begin, end);
      } else {
        CHECK(here.filled < here.room);
        parts_[here.parts + static_cast<size_t>(here.filled++)] = {{begin, end}, buffer.first_use,
                                                                   buffer.last_use};
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
    size_t parts = 0;                // of those who are there for a part of it: from here on in parts_
    int32_t room = 0, filled = 0;    // how many there will be, how many there are
    MergedBytes all;                 // of those who are there for all of it, but not for all of its span
    MergedBytes any;                 // of both

    void Clear() {
      room = filled = 0;
      all.Clear();
      any.Clear();
    }
  };
  struct Span {
    MergedBytes all;  // of those who are there for all of it
    MergedBytes any;  // of those who touch it

    void Clear() {
      all.Clear();
      any.Clear();
    }
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

  // Whoever does not lie above the lowest place not yet ruled out rules out all below its end, and need not
  // be asked again. Those above are, as that place has grown: mostly there are none left after a pass or two.
  // After a few, in order.
  struct Question {
    std::vector<Bytes>& above;
    const int64_t size;
    int64_t begin = 0;
    size_t count = 0;

    // Whether it lies above; without a branch, as parts are there as often as not.
    bool Meet(const Bytes& bytes, bool there = true) {
      const bool is_above = bytes.begin >= begin + size;
      begin = std::max(begin, !there || is_above ? 0 : bytes.end);
      return there && is_above;
    }
    Bytes* Room(size_t more) {
      if (count + more > above.size()) above.resize(2 * (count + more));
      return above.data() + count;
    }
    void Meet(const MergedBytes& all) {
      const std::span<const Bytes> pieces = all.pieces();
      Bytes* to = Room(pieces.size());
      for (const Bytes& bytes : pieces) {
        if (bytes.end <= begin) continue;  // mostly: no need to wait for what begin becomes
        *to = bytes;
        to += Meet(bytes);
      }
      count = static_cast<size_t>(to - above.data());
    }
    void Meet(std::span<const Part> parts, const LiveBuffer& buffer) {
      Bytes* to = Room(parts.size());
      for (const Part& part : parts) {
        *to = part.bytes;
        to += Meet(part.bytes, (part.last_use >= buffer.first_use) & (part.first_use <= buffer.last_use));
      }
      count = static_cast<size_t>(to - above.data());
    }
    int64_t Answer() {
      for (int pass = 0; pass < kPasses; ++pass) {
        const std::span<const Bytes> before(above.data(), count);
        Bytes* to = above.data();
        for (const Bytes& bytes : before) {
          const Bytes moved = bytes;
          *to = moved;
          to += Meet(moved);
        }
        count = static_cast<size_t>(to - above.data());
        if (count == before.size()) return begin;
      }
      const std::span<Bytes> left(above.data(), count);
      std::sort(left.begin(), left.end(), [](const Bytes& a, const Bytes& b) { return a.begin < b.begin; });
      for (const Bytes& bytes : left) {
        if (bytes.begin - begin >= size) break;
        begin = std::max(begin, bytes.end);
      }
      return begin;
    }
  };

  Slot& At(int32_t slot) { return slots_[static_cast<size_t>(slot)]; }

  std::vector<Slot> slots_;
  std::vector<Span> spans_;
  std::vector<Part> parts_;
  std::vector<Bytes> above_ = std::vector<Bytes>(256);  // of the question that is asked
};

}  // namespace nibble::spec

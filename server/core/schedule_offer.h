// In which order the waiting jobs of a project come to a pass over the board.
//
// Made for one pass and thrown away; the board must not change meanwhile.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "server/core/schedule_board.h"

namespace nibble::core {

struct Candidate {
  int64_t number = 0;
  int32_t bucket = 0;
  bool overdue = false;
  bool brief = false;  // goes before the shares of projects
};

// Heads of the buckets of a project in one of its two orders, as the pass uses them up.
template <typename Key>
class Lane {
 public:
  using Entry = std::pair<Key, int32_t>;
  explicit Lane(const std::set<Entry>* heads) : it_(heads->begin()), end_(heads->end()) {}

  bool Empty() const { return it_ == end_ && again_.empty(); }
  const Entry& Front() const { return UsesAgain() ? *again_.begin() : *it_; }
  Entry Pop() {
    const Entry entry = Front();
    if (UsesAgain()) {
      again_.erase(again_.begin());
    } else {
      ++it_;
    }
    return entry;
  }
  // The next of the bucket after `key`.
  void Push(const RankedSet<Key>& keys, const Key& key, int32_t bucket) {
    const auto next = keys.upper_bound(key);
    if (next != keys.end()) again_.insert({*next, bucket});
  }

 private:
  bool UsesAgain() const { return !again_.empty() && (it_ == end_ || *again_.begin() < *it_); }
  typename std::set<Entry>::const_iterator it_, end_;
  std::set<Entry> again_;
};

// What one project has to offer, next first. Of a bucket one job is out at a time: Next gives the
// one after it only when More was called.
class Offer {
 public:
  Offer(const Board* board, int32_t project, int64_t now_us)
      : project(project),
        board_(board),
        now_us_(now_us),
        urgent_(&board->projects()[static_cast<size_t>(project)].urgent_heads),
        order_(&board->projects()[static_cast<size_t>(project)].heads) {}

  // nullopt when all it has was given out or is of a kind that failed.
  std::optional<Candidate> Next(const std::vector<char>& failed, const std::set<int64_t>& taken);
  // What Next would give unless it was taken.
  std::optional<Candidate> Peek(const std::vector<char>& failed);
  // The next of the bucket of the candidate given out last.
  void More(const Candidate& last);

  int32_t project = 0;
  int64_t share = 0;
  bool brief = false;  // what comes next of it goes before the shares

 private:
  const Board* board_;
  int64_t now_us_;
  Lane<Board::UrgentKey> urgent_;
  Lane<Board::OrderKey> order_;
  Board::UrgentKey last_urgent_;
  Board::OrderKey last_order_;
};

}  // namespace nibble::core

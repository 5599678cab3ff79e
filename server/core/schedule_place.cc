// Where a waiting job stands, by counting in the sorted sets instead of going through them.
#include <algorithm>
#include <limits>

#include "server/core/schedule_pass.h"

namespace nibble::core {
namespace {

using Bucket = Board::Bucket;
using Waiting = Board::Waiting;

// Overdue jobs of a bucket looked at one by one.
constexpr int64_t kMaxLooked = 256;

struct Ahead {
  int64_t jobs = 0;
  int64_t bytes = 0;
  int64_t load_milli = 0;
  void Add(const Bucket& bucket, int64_t count) {
    jobs += count;
    bytes += count * bucket.KnownBytes();
    load_milli += count * bucket.load_milli;
  }
};

// Of one bucket: the overdue, and then those before `key` in the order that are not overdue as well.
int64_t BeforeInOrder(const Board& board, const Bucket& bucket, const Board::OrderKey& key, int64_t now_us) {
  const Board::UrgentKey later{now_us + 1, std::numeric_limits<int64_t>::min()};
  const auto overdue = static_cast<int64_t>(bucket.urgent.order_of_key(later));
  const auto rank = static_cast<int64_t>(bucket.order.order_of_key(key));
  int64_t both = 0;
  if (overdue <= kMaxLooked) {
    for (auto it = bucket.urgent.begin(); it != bucket.urgent.end() && it->first <= now_us; ++it) {
      const Waiting& w = board.waiting().at(it->second);
      if (Board::OrderKey{-w.priority, w.rank_us, it->second} < key) ++both;
    }
  } else {
    both = overdue * rank / std::max<int64_t>(1, static_cast<int64_t>(bucket.order.size()));
  }
  return overdue + rank - both;
}

// Those of its own project that come before it.
Ahead AheadInProject(const Board& board, const Board::Project& project, const Waiting& w, int64_t number,
                     int64_t now_us) {
  Ahead ahead;
  const bool is_overdue = !w.started && w.urgent_us <= now_us;
  for (const auto& [head, id] : project.heads) {
    const Bucket& bucket = board.buckets()[static_cast<size_t>(id)];
    ahead.Add(bucket, is_overdue
                          ? static_cast<int64_t>(bucket.urgent.order_of_key({w.urgent_us, number}))
                          : BeforeInOrder(board, bucket, {-w.priority, w.rank_us, number}, now_us));
  }
  return ahead;
}

}  // namespace

int64_t JobsBefore(const Board& board, int64_t now_us, int64_t number) {
  const Waiting& w = board.waiting().at(number);
  const int32_t own = board.buckets()[static_cast<size_t>(w.bucket)].project;
  const Ahead mine =
      AheadInProject(board, board.projects()[static_cast<size_t>(own)], w, number, now_us);
  // Each project's share only grows with every job it starts, so the jobs of another one that come first
  // are those that begin at a smaller share.
  const int64_t share = board.ShareOf(own, now_us, mine.bytes, mine.load_milli);
  int64_t before = mine.jobs;
  for (size_t i = 0; i < board.projects().size(); ++i) {
    const Board::Project& project = board.projects()[i];
    const auto other = static_cast<int32_t>(i);
    if (other == own || project.waiting == 0) continue;
    Ahead all;
    for (const auto& [head, id] : project.heads) {
      const Bucket& bucket = board.buckets()[static_cast<size_t>(id)];
      all.Add(bucket, static_cast<int64_t>(bucket.order.size()));
    }
    const auto is_first = [&](int64_t started) {  // the next one, when so many have started
      const int64_t theirs = board.ShareOf(other, now_us, all.bytes / all.jobs * started,
                                           all.load_milli / all.jobs * started);
      return theirs < share || (theirs == share && other < own);
    };
    int64_t low = 0, high = all.jobs;  // so many begin before it at least, at most
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (is_first(middle)) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    before += low;
  }
  return before;
}

}  // namespace nibble::core

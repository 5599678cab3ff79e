#include "server/core/schedule_offer.h"

#include "server/core/schedule_pass.h"

namespace nibble::core {

std::optional<Candidate> Offer::Next(const std::vector<char>& failed, const std::set<int64_t>& taken) {
  while (!urgent_.Empty() && urgent_.Front().first.first <= now_us_) {
    const auto [key, bucket] = urgent_.Pop();
    if (failed[static_cast<size_t>(bucket)] != 0) continue;
    last_urgent_ = key;
    const Candidate candidate{key.second, bucket, true};
    if (taken.empty() || taken.count(key.second) == 0) return candidate;
    More(candidate);
  }
  while (!order_.Empty()) {
    const auto [key, bucket] = order_.Pop();
    if (failed[static_cast<size_t>(bucket)] != 0) continue;
    last_order_ = key;
    const Candidate candidate{std::get<2>(key), bucket, false};
    if (taken.empty() || taken.count(candidate.number) == 0) return candidate;
    More(candidate);
  }
  return std::nullopt;
}

std::optional<Candidate> Offer::Peek(const std::vector<char>& failed) {
  while (!urgent_.Empty() && urgent_.Front().first.first <= now_us_) {
    const auto& [key, bucket] = urgent_.Front();
    if (failed[static_cast<size_t>(bucket)] == 0) return Candidate{key.second, bucket, true};
    urgent_.Pop();
  }
  while (!order_.Empty()) {
    const auto& [key, bucket] = order_.Front();
    if (failed[static_cast<size_t>(bucket)] == 0)
      return Candidate{std::get<2>(key), bucket, false};
    order_.Pop();
  }
  return std::nullopt;
}

void Offer::More(const Candidate& last) {
  const Board::Bucket& bucket = board_->buckets()[static_cast<size_t>(last.bucket)];
  if (last.overdue) {
    urgent_.Push(bucket.urgent, last_urgent_, last.bucket);
  } else {
    order_.Push(bucket.order, last_order_, last.bucket);
  }
}

std::vector<int64_t> OrderOf(const Board& board, int64_t now_us, size_t limit) {
  const std::vector<char> failed(board.buckets().size(), 0);
  std::set<int64_t> taken;
  struct Source {
    Offer offer;
    std::optional<Candidate> next;
    int64_t bytes = 0;
    int64_t load_milli = 0;
  };
  std::vector<Source> sources;
  for (size_t i = 0; i < board.projects().size(); ++i) {
    if (board.projects()[i].waiting == 0) continue;
    Source source{Offer(&board, static_cast<int32_t>(i), now_us), std::nullopt};
    source.offer.share = board.ShareOf(source.offer.project, now_us, 0, 0);
    source.next = source.offer.Next(failed, taken);
    sources.push_back(std::move(source));
  }
  std::vector<int64_t> order;
  while (order.size() < limit) {
    Source* first = nullptr;
    for (Source& source : sources) {
      if (source.next && (first == nullptr || source.offer.share < first->offer.share))
        first = &source;
    }
    if (first == nullptr) break;
    order.push_back(first->next->number);
    taken.insert(first->next->number);
    const Board::Bucket& bucket = board.buckets()[static_cast<size_t>(first->next->bucket)];
    // As if it had started: the next of its project comes after those of others.
    first->bytes += bucket.KnownBytes();
    first->load_milli += bucket.load_milli;
    first->offer.share =
        board.ShareOf(first->offer.project, now_us, first->bytes, first->load_milli);
    first->offer.More(*first->next);
    first->next = first->offer.Next(failed, taken);
  }
  return order;
}

}  // namespace nibble::core

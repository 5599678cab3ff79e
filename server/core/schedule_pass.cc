#include "server/core/schedule_pass.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "server/core/schedule_fleet.h"
#include "server/core/schedule_offer.h"
#include "server/core/schedule_preempt.h"

namespace nibble::core {
namespace {

using Bucket = Board::Bucket;
using Waiting = Board::Waiting;

// Jobs near their bound on waiting for which one pass makes room.
constexpr int32_t kMaxCritical = 8;

class Pass {
 public:
  Pass(const Board& board, const SchedulePolicy& policy, const NeedFn& need_of, int64_t now_us,
       int64_t suspect_us)
      : board_(board),
        policy_(policy),
        now_us_(now_us),
        fleet_(board, policy, need_of, now_us, suspect_us),
        preemption_(board, policy, fleet_, now_us),
        failed_(board.buckets().size(), 0) {}

  BoardSchedule Run(size_t max_starts) {
    std::vector<Offer> offers;
    for (size_t i = 0; i < board_.projects().size(); ++i) {
      if (board_.projects()[i].waiting == 0) continue;
      offers.emplace_back(&board_, static_cast<int32_t>(i), now_us_);
      offers.back().share = Share(offers.back().project);
    }
    if (offers.empty()) return std::move(result_);
    PlaceCritical(max_starts);
    while (!offers.empty() && result_.starts.size() < max_starts &&
           passed_over_ < policy_.max_passed_over) {
      if (offers.size() > 1) {  // alone it comes first anyway
        for (Offer& offer : offers) offer.brief = IsBrief(offer);
      }
      const auto next = std::min_element(offers.begin(), offers.end(), [&](auto& a, auto& b) {
        if (a.brief != b.brief) return a.brief;
        return a.share != b.share ? a.share < b.share : Name(a.project) < Name(b.project);
      });
      std::optional<Candidate> candidate = next->Next(failed_, taken_);
      if (candidate) candidate->brief = offers.size() > 1 ? next->brief : IsBrief(*candidate);
      if (!candidate) {
        std::swap(*next, offers.back());
        offers.pop_back();
        continue;
      }
      switch (Try(*candidate, policy_.max_reservations)) {
        case Outcome::kStarted:
          next->share = Share(next->project);
          next->More(*candidate);
          break;
        case Outcome::kNotYet:
          next->More(*candidate);
          break;
        case Outcome::kPassedOver:
          break;
      }
    }
    return std::move(result_);
  }

 private:
  const std::string& Name(int32_t project) const {
    return board_.projects()[static_cast<size_t>(project)].name;
  }
  int64_t Share(int32_t project) const {
    const auto extra = fleet_.ExtraOf(project);
    return board_.ShareOf(project, now_us_, extra.bytes, extra.load_milli);
  }

  bool IsBrief(Offer& offer) const {
    const std::optional<Candidate> c = offer.Peek(failed_);
    return c && IsBrief(*c);
  }
  bool IsBrief(const Candidate& c) const {
    if (board_.waiting().at(c.number).work_us > policy_.brief_work_us) return false;
    const int32_t load_milli = board_.buckets()[static_cast<size_t>(c.bucket)].load_milli;
    return board_.BriefFits(load_milli, brief_milli_);
  }

  // The bound on waiting goes before the shares of projects, most overdue first.
  void PlaceCritical(size_t max_starts) {
    std::set<int64_t> tried;
    while (result_.starts.size() < max_starts &&
           static_cast<int32_t>(tried.size()) < kMaxCritical) {
      std::optional<Candidate> first;
      int64_t first_us = std::numeric_limits<int64_t>::max();
      for (const Board::Project& project : board_.projects()) {
        for (const auto& [key, bucket] : project.urgent_heads) {
          if (key.first > now_us_ || key.first >= first_us) break;
          const Bucket& b = board_.buckets()[static_cast<size_t>(bucket)];
          const auto untaken = std::find_if(b.urgent.begin(), b.urgent.end(), [&](auto& k) {
            return taken_.count(k.second) == 0 && tried.count(k.second) == 0;
          });
          if (untaken == b.urgent.end()) continue;
          const Waiting& w = board_.waiting().at(untaken->second);
          if (w.critical_us > now_us_ || w.not_before_us > now_us_ || untaken->first >= first_us)
            continue;
          first = Candidate{untaken->second, bucket, true};
          first_us = untaken->first;
        }
      }
      if (!first) return;
      if (Try(*first, kMaxCritical) != Outcome::kStarted) tried.insert(first->number);
    }
  }

  enum class Outcome { kStarted, kNotYet, kPassedOver };

  // Starts it, or makes room for it, or passes it over. A job that waits before another try
  // stands in nobody's way.
  Outcome Try(const Candidate& c, int32_t max_reservations) {
    const bool reserves = static_cast<int32_t>(result_.reservations.size()) < max_reservations;
    if (!reserves && !fleet_.HasRoom()) return PassOver(c);
    const Waiting& w = board_.waiting().at(c.number);
    if (w.not_before_us > now_us_) return Outcome::kNotYet;
    const Bucket& bucket = board_.buckets()[static_cast<size_t>(c.bucket)];
    if (!fleet_.InQuota(bucket)) return PassOver(c);
    const std::optional<Spot> spot = FindSpot(bucket, w, c);
    if (spot) {
      fleet_.Place(bucket, *spot);
      if (w.work_us <= policy_.brief_work_us) brief_milli_ += bucket.load_milli;
      taken_.insert(c.number);
      result_.starts.push_back({c.number, c.bucket, spot->device, spot->left_bytes, spot->warm,
                                fleet_.SpeedPercent(spot->device)});
      return Outcome::kStarted;
    }
    if (reserves) {
      std::optional<BoardReservation> r = fleet_.Reserve(c.number, c.bucket, Reserved());
      if (r || !board_.HoldsNothing()) preemption_.MakeRoom(c, Reserved(), r, result_.stops);
      if (r) {
        preemption_.Keep(*r);
        result_.reservations.push_back(*std::move(r));
      }
    }
    return PassOver(c);
  }

  Outcome PassOver(const Candidate& c) {
    failed_[static_cast<size_t>(c.bucket)] = 1;
    ++passed_over_;
    return Outcome::kPassedOver;
  }

  std::vector<int32_t> Reserved() const {
    std::vector<int32_t> devices;
    for (const BoardReservation& r : result_.reservations) devices.push_back(r.device);
    return devices;
  }

  std::optional<Spot> FindSpot(const Bucket& bucket, const Waiting& w, const Candidate& c) {
    std::vector<int32_t> excluded;
    while (true) {
      std::optional<Spot> spot = fleet_.Best(bucket, w, c.number, excluded);
      if (!spot) return spot;
      const bool delays = std::any_of(
          result_.reservations.begin(), result_.reservations.end(),
          [&](const BoardReservation& r) { return fleet_.Delays(r, bucket, w.work_us, *spot); });
      if (!delays) return spot;
      excluded.push_back(spot->device);
    }
  }

  const Board& board_;
  const SchedulePolicy& policy_;
  const int64_t now_us_;
  PassFleet fleet_;
  PassPreemption preemption_;
  std::vector<char> failed_;  // by bucket: nothing of this kind can start now
  std::set<int64_t> taken_;
  int32_t passed_over_ = 0;
  int64_t brief_milli_ = 0;  // of brief jobs placed
  BoardSchedule result_;
};

}  // namespace

BoardSchedule RunPass(const Board& board, const SchedulePolicy& policy, const NeedFn& need_of,
                      int64_t now_us, int64_t suspect_us, size_t max_starts) {
  return Pass(board, policy, need_of, now_us, suspect_us).Run(max_starts);
}

}  // namespace nibble::core

#include "server/core/schedule_pass.h"

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <utility>

#include "server/core/schedule_fleet.h"

namespace nibble::core {
namespace {

using Bucket = Board::Bucket;
using Waiting = Board::Waiting;

// Attempts looked at, weakest first, for one that could be asked to let go.
constexpr int kMaxVictimsSeen = 64;
// Jobs near their bound on waiting for which one pass makes room.
constexpr int32_t kMaxCritical = 8;

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

struct Candidate {
  int64_t number = 0;
  int32_t bucket = 0;
  bool overdue = false;
  bool brief = false;  // goes before the shares of projects
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
  std::optional<Candidate> Next(const std::vector<char>& failed, const std::set<int64_t>& taken) {
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
  // What Next would give unless it was taken.
  std::optional<Candidate> Peek(const std::vector<char>& failed) {
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
  // The next of the bucket of the candidate given out last.
  void More(const Candidate& last) {
    const Bucket& bucket = board_->buckets()[static_cast<size_t>(last.bucket)];
    if (last.overdue) {
      urgent_.Push(bucket.urgent, last_urgent_, last.bucket);
    } else {
      order_.Push(bucket.order, last_order_, last.bucket);
    }
  }

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

class Pass {
 public:
  Pass(const Board& board, const SchedulePolicy& policy, const NeedFn& need_of, int64_t now_us,
       int64_t suspect_us)
      : board_(board),
        policy_(policy),
        now_us_(now_us),
        fleet_(board, policy, need_of, now_us, suspect_us),
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
      if (r || !board_.HoldsNothing()) Preempt(c, w, bucket, r);
      if (r) {
        if (IsPromised(*r)) Promise(bucket.project, r->need.TotalBytes(), bucket.load_milli);
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

  // Nobody it waits for stays: it starts as soon as they have let go.
  bool IsPromised(const BoardReservation& r) const {
    return std::all_of(r.gone.begin(), r.gone.end(), [&](const HoldKey& key) {
      return stopped_.count(key) > 0 || board_.FindHold(key)->releasing;
    });
  }
  void Promise(int32_t project, int64_t bytes, int64_t load_milli) {
    PassFleet::Extra& promised = promised_[project];
    promised.bytes += bytes;
    promised.load_milli += load_milli;
  }
  // What it will hold on top of what it holds now, once all who were asked to let go have done so and those
  // they let go for have started.
  PassFleet::Extra Coming(int32_t project) const {
    PassFleet::Extra coming = fleet_.ExtraOf(project);
    const Board::Project& p = board_.projects()[static_cast<size_t>(project)];
    coming.bytes -= p.leaving_bytes;
    coming.load_milli -= p.leaving_load_milli;
    if (const auto promised = promised_.find(project); promised != promised_.end()) {
      coming.bytes += promised->second.bytes;
      coming.load_milli += promised->second.load_milli;
    }
    return coming;
  }

  // Whether `victim` is to make room for the job; why, in words. `going`: of the victim's project, who goes
  // with it.
  const char* Outranks(const Candidate& c, const Waiting& w, const Bucket& bucket, const Need& need,
                       const Board::Hold& victim, const PassFleet::Extra& going = {}) const {
    const int64_t left_us = std::max<int64_t>(0, victim.work_us - (now_us_ - victim.as_of_us));
    if (c.overdue && w.critical_us <= now_us_) return "is overdue";
    if (victim.project == bucket.project) {
      if (c.overdue && left_us > w.work_us) return "is overdue";
      const int32_t delta = w.priority - victim.priority;
      if (policy_.preempt_priority_delta > 0 && delta >= policy_.preempt_priority_delta)
        return "has a higher priority";
      if (policy_.preempt_work_ratio > 0 && delta >= 0 &&
          w.work_us < left_us / policy_.preempt_work_ratio)
        return "has much less work left";
      return nullptr;
    }
    if (c.brief && policy_.preempt_work_ratio > 0 && w.priority >= victim.priority &&
        w.work_us < left_us / policy_.preempt_work_ratio)
      return "has only a few minutes of work";
    if (!policy_.preempt_for_share) return nullptr;
    const PassFleet::Extra mine = Coming(bucket.project), theirs = Coming(victim.project);
    const int64_t after = board_.HeldShareOf(bucket.project, mine.bytes + need.TotalBytes(),
                                             mine.load_milli + bucket.load_milli);
    const int64_t rest =
        board_.HeldShareOf(victim.project, theirs.bytes - victim.added_bytes - going.bytes,
                           theirs.load_milli - victim.load_milli - going.load_milli);
    return after < rest ? "belongs to a project below its share" : nullptr;
  }

  struct Plan {
    int32_t device = -1;
    std::vector<HoldKey> victims;
    std::set<HoldKey> gone;
    const char* why = nullptr;
  };

  // The fewest on one device whose end would let the job in.
  std::optional<Plan> PlanOn(int32_t device, const Candidate& c, const Waiting& w,
                             const Bucket& bucket, const Need& need) const {
    const Board::Device& d = board_.devices()[static_cast<size_t>(device)];
    Plan plan;
    plan.device = device;
    std::vector<Board::VictimKey> weak;
    for (const int32_t index : d.held) {
      const Board::Hold& hold = board_.HoldAt(index);
      if (hold.releasing || stopped_.count(hold.key) > 0) {
        plan.gone.insert(hold.key);
        continue;
      }
      if (now_us_ - hold.start_us < policy_.min_run_us) continue;
      weak.push_back({hold.priority, -hold.end_us, hold.key});
    }
    std::sort(weak.begin(), weak.end());
    std::map<int32_t, PassFleet::Extra> going;  // by project
    for (const auto& [priority, end_us, key] : weak) {
      const Board::Hold& hold = *board_.FindHold(key);
      PassFleet::Extra& with_it = going[hold.project];
      const char* why = Outranks(c, w, bucket, need, hold, with_it);
      if (why == nullptr) continue;
      with_it.bytes += hold.added_bytes;
      with_it.load_milli += hold.load_milli;
      plan.victims.push_back(key);
      plan.gone.insert(key);
      plan.why = why;
      if (fleet_.FitsWithout(device, plan.gone, bucket, need)) return plan;
    }
    return std::nullopt;
  }

  // Someone it waits for should have ended by now: the prediction is no good.
  bool IsLate(const BoardReservation& r) const {
    return std::any_of(r.gone.begin(), r.gone.end(), [&](const HoldKey& key) {
      const Board::Hold& hold = *board_.FindHold(key);
      return !hold.releasing && hold.end_us < now_us_ - policy_.preempt_patience_us;
    });
  }

  void Preempt(const Candidate& c, const Waiting& w, const Bucket& bucket,
               std::optional<BoardReservation>& r) {
    if (r && r->start_us <= now_us_ + policy_.preempt_patience_us && !IsLate(*r)) return;
    std::optional<Plan> best;
    std::set<int32_t> seen;
    int count = 0;
    const std::vector<int32_t> reserved = Reserved();
    if (!victims_) victims_.emplace(board_.TimedDevices(), &Board::Device::victims);
    for (size_t i = 0; const auto victim = victims_->At(i); ++i) {
      if (++count > kMaxVictimsSeen || (best && best->victims.size() == 1)) break;
      const Board::Hold& hold = *board_.FindHold(std::get<HoldKey>(*victim->key));
      if (now_us_ - hold.start_us < policy_.min_run_us) continue;
      if (std::count(reserved.begin(), reserved.end(), hold.device) > 0) continue;
      const std::optional<Need> need = fleet_.NeedOn(bucket, hold.device, c.number);
      if (!need || Outranks(c, w, bucket, *need, hold) == nullptr) continue;
      if (!seen.insert(hold.device).second) continue;
      std::optional<Plan> plan = PlanOn(hold.device, c, w, bucket, *need);
      if (plan && (!best || plan->victims.size() < best->victims.size())) best = std::move(plan);
    }
    if (!best) return;
    for (const HoldKey& key : best->victims) {
      stopped_.insert(key);
      const Board::Hold& hold = *board_.FindHold(key);
      Promise(hold.project, -hold.added_bytes, -hold.load_milli);
      result_.stops.push_back({key, c.number, best->why});
    }
    r = BoardReservation{c.number,
                         c.bucket,
                         best->device,
                         *fleet_.NeedOn(bucket, best->device, c.number),
                         now_us_,
                         std::move(best->gone)};
  }

  const Board& board_;
  const SchedulePolicy& policy_;
  const int64_t now_us_;
  PassFleet fleet_;
  std::optional<Merged<Board::VictimKey>> victims_;
  std::vector<char> failed_;  // by bucket: nothing of this kind can start now
  std::set<int64_t> taken_;
  std::set<HoldKey> stopped_;
  // By project, of this pass: of those who have a place promised, less of those asked to let go.
  std::map<int32_t, PassFleet::Extra> promised_;
  int32_t passed_over_ = 0;
  int64_t brief_milli_ = 0;  // of brief jobs placed
  BoardSchedule result_;
};

}  // namespace

BoardSchedule RunPass(const Board& board, const SchedulePolicy& policy, const NeedFn& need_of,
                      int64_t now_us, int64_t suspect_us, size_t max_starts) {
  return Pass(board, policy, need_of, now_us, suspect_us).Run(max_starts);
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
    const Bucket& bucket = board.buckets()[static_cast<size_t>(first->next->bucket)];
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

#include "server/core/schedule_preempt.h"

#include <algorithm>
#include <utility>

namespace nibble::core {

namespace {

using Bucket = Board::Bucket;
using Waiting = Board::Waiting;

// Attempts looked at, weakest first, for one that could be asked to let go.
constexpr int kMaxVictimsSeen = 64;

}  // namespace

const char* PassPreemption::Outranks(const Candidate& c, const Waiting& w, const Bucket& bucket,
                                     const Need& need, const Board::Hold& victim,
                                     const PassFleet::Extra& going) const {
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

std::optional<PassPreemption::Plan> PassPreemption::PlanOn(int32_t device, const Candidate& c,
                                                           const Waiting& w, const Bucket& bucket,
                                                           const Need& need) const {
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

bool PassPreemption::IsLate(const BoardReservation& r) const {
  return std::any_of(r.gone.begin(), r.gone.end(), [&](const HoldKey& key) {
    const Board::Hold& hold = *board_.FindHold(key);
    return !hold.releasing && hold.end_us < now_us_ - policy_.preempt_patience_us;
  });
}

void PassPreemption::MakeRoom(const Candidate& c, const std::vector<int32_t>& reserved,
                              std::optional<BoardReservation>& r, std::vector<BoardSchedule::Stop>& stops) {
  if (r && r->start_us <= now_us_ + policy_.preempt_patience_us && !IsLate(*r)) return;
  std::optional<Plan> best;
  const Waiting& w = board_.waiting().at(c.number);
  const Bucket& bucket = board_.buckets()[static_cast<size_t>(c.bucket)];
  std::set<int32_t> seen;
  int count = 0;
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
    stops.push_back({key, c.number, best->why});
  }
  r = BoardReservation{c.number,
                       c.bucket,
                       best->device,
                       *fleet_.NeedOn(bucket, best->device, c.number),
                       now_us_,
                       std::move(best->gone)};
}

bool PassPreemption::IsPromised(const BoardReservation& r) const {
  return std::all_of(r.gone.begin(), r.gone.end(), [&](const HoldKey& key) {
    return stopped_.count(key) > 0 || board_.FindHold(key)->releasing;
  });
}

void PassPreemption::Keep(const BoardReservation& r) {
  const Bucket& bucket = board_.buckets()[static_cast<size_t>(r.bucket)];
  if (IsPromised(r)) Promise(bucket.project, r.need.TotalBytes(), bucket.load_milli);
}

void PassPreemption::Promise(int32_t project, int64_t bytes, int64_t load_milli) {
  PassFleet::Extra& promised = promised_[project];
  promised.bytes += bytes;
  promised.load_milli += load_milli;
}

PassFleet::Extra PassPreemption::Coming(int32_t project) const {
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

}  // namespace nibble::core

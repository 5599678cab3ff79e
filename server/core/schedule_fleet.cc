#include "server/core/schedule_fleet.h"

#include <algorithm>
#include <limits>

namespace nibble::core {
namespace {

constexpr int64_t kMillion = 1'000'000;
// Of the largest device's bytes. What is larger than all devices is in the last.
constexpr int64_t kSizeSteps = 1'001;
// More than any score: a worker where the job has failed comes last.
constexpr int64_t kAvoided = int64_t{1} << 50;
// Thousandths by which turns take longer: beyond this a device is slow, and how slow does not matter.
constexpr int64_t kSlowest = 64'000;
// Entries of all rankings of a pass; beyond that they are made anew as they are needed.
constexpr size_t kMaxRanked = 2'000'000;

}  // namespace

PassFleet::PassFleet(const Board& board, const SchedulePolicy& policy, const NeedFn& need_of,
                     int64_t now_us, int64_t suspect_us)
    : board_(board),
      policy_(policy),
      need_of_(need_of),
      now_us_(now_us),
      suspect_us_(suspect_us),
      fastest_mflops_(board.SpeedsDiffer() ? board.FastestMflops() : 0),
      mean_mflops_(board.MeanMflops()),
      largest_bytes_(board.LargestBytes()),
      step_bytes_(std::max<int64_t>(1, largest_bytes_ / (kSizeSteps - 1))),
      own_(board.blocks().size()),
      open_(board.blocks().size()),
      placed_(board.blocks().size()),
      versions_(board.blocks().size()) {}

const LoadOn<int32_t>& PassFleet::LoadOf(int32_t device) const {
  if (!changed_.empty()) {
    const auto it = changed_.find(device);
    if (it != changed_.end()) return it->second.load;
  }
  return board_.devices()[static_cast<size_t>(device)].load;
}

const std::optional<Need>& PassFleet::NeedIn(const Board::Bucket& bucket, size_t block,
                                             int32_t device, int64_t number) const {
  if (bucket.needs.size() <= block) bucket.needs.resize(board_.blocks().size());
  std::optional<std::optional<Need>>& known = bucket.needs[block];
  if (!known) known = need_of_(number, board_.devices()[static_cast<size_t>(device)]);
  return *known;
}

std::optional<Need> PassFleet::NeedOn(const Board::Bucket& bucket, int32_t device,
                                      int64_t number) const {
  const Board::Device& d = board_.devices()[static_cast<size_t>(device)];
  const Board::Block& block = board_.blocks()[static_cast<size_t>(d.block)];
  if (!IsLive(d.worker)) return std::nullopt;
  if (!bucket.numerics.empty() && bucket.numerics != block.numerics) return std::nullopt;
  const std::optional<Need>& need =
      NeedIn(bucket, static_cast<size_t>(d.block), device, number);
  if (!need || !need->FitsAlone(d.capacity())) return std::nullopt;
  return need;
}

const PassFleet::Typical& PassFleet::TypicalJobs() {
  Typical& typical = typical_;
  if (!typical.lost.empty()) return typical;
  std::vector<int64_t> count(kSizeSteps + 1, 0);
  int64_t total = 0;
  const auto add = [&](int64_t bytes, int64_t jobs) {
    const int64_t step = (bytes + step_bytes_ - 1) / step_bytes_;
    count[static_cast<size_t>(std::clamp<int64_t>(step, 1, kSizeSteps))] += jobs;
    total += jobs;
  };
  for (const Board::Bucket& bucket : board_.buckets()) {
    const int64_t bytes = bucket.KnownBytes();
    if (bytes > 0) add(bytes, static_cast<int64_t>(bucket.order.size()));
  }
  // What runs tells what will come, also when little waits.
  for (const auto& [bytes, holds] : board_.held_sizes()) add(bytes, holds);
  std::vector<std::pair<size_t, int64_t>> sizes;
  for (size_t step = 0; step < count.size(); ++step) {
    if (count[step] > 0) sizes.emplace_back(step, count[step]);
  }
  typical.larger.assign(kSizeSteps + 1, 0);
  typical.lost.assign(kSizeSteps + 1, 0);
  int64_t fit = 0;
  for (size_t free = 0; free < typical.lost.size(); ++free) {
    // Free bytes in a step hold what needs that step or less.
    fit += count[free];
    typical.larger[free] = total == 0 ? 0 : (total - fit) * kMillion / total;
    int64_t lost = 0;
    for (const auto& [step, jobs] : sizes) {
      if (step > free) break;
      lost += jobs * typical.lost[free - step];
    }
    const int64_t all = static_cast<int64_t>(free) * (kMillion / (kSizeSteps - 1));
    typical.lost[free] = fit == 0 ? all : lost / fit;
  }
  return typical;
}

const std::vector<int32_t>& PassFleet::OpenIn(size_t block) {
  std::optional<std::vector<int32_t>>& open = open_[block];
  if (open) return *open;
  open.emplace();
  // What the smallest job that waits would add where its base is.
  int64_t least_bytes = std::numeric_limits<int64_t>::max();
  int32_t least_milli = std::numeric_limits<int32_t>::max();
  for (const Board::Bucket& bucket : board_.buckets()) {
    if (bucket.order.empty()) continue;
    least_milli = std::min(least_milli, bucket.load_milli);
    const bool known = bucket.needs.size() > block && bucket.needs[block];
    if (!known) least_bytes = 0;
    if (!known || !*bucket.needs[block]) continue;
    const Need& need = **bucket.needs[block];
    least_bytes = std::min(least_bytes, need.persistent_bytes + need.host_bytes);
  }
  const std::vector<Board::Slot>& slots = board_.blocks()[block].slots;
  for (size_t i = 0; i < slots.size(); ++i) {
    const Board::Slot& slot = slots[i];
    if (slot.attempts >= policy_.max_attempts_per_device || slot.free_bytes < least_bytes) continue;
    const int32_t more_milli = fastest_mflops_ == 0
                                   ? least_milli
                                   : LoadAtSpeed(least_milli, mean_mflops_, slot.speed_mflops);
    if (!RoomForLoad(slot.load_milli, slot.attempts, more_milli)) continue;
    if (IsLive(slot.worker)) open->push_back(static_cast<int32_t>(i));
  }
  return *open;
}

bool PassFleet::HasRoom() {
  for (size_t block = 0; block < board_.blocks().size(); ++block) {
    if (!OpenIn(block).empty()) return true;
  }
  return false;
}

// Four parts, each in thousandths: turns that would have to be shared; how much longer they take than on the
// fastest device; how many more free bytes than before are of no use to typical jobs, those that wait and
// run, of the largest device's; and a base that has to be loaded first.
int64_t PassFleet::ScoreOf(const Board::Slot& slot, const Board::Bucket& bucket,
                           int64_t added_bytes, bool warm) {
  const Typical& typical = TypicalJobs();
  // In millionths of the largest device, so that no product overflows.
  const int64_t unit_bytes = std::max<int64_t>(1, largest_bytes_ / kMillion);
  const auto useless = [&](int64_t free_bytes) {
    const auto step = static_cast<size_t>(std::min(free_bytes / step_bytes_, kSizeSteps));
    return free_bytes / unit_bytes * typical.larger[step] +
           typical.lost[step] * policy_.rest_milli * (kMillion / 1'000);
  };
  const int64_t fragment =
      (useless(slot.free_bytes - added_bytes) - useless(slot.free_bytes)) / kMillion;
  const int32_t load_milli = LoadThere(bucket, slot.speed_mflops);
  const int64_t overload = std::max(0, slot.load_milli + load_milli - 1'000);
  int64_t slow = 0;
  if (slot.speed_mflops > 0 && slot.speed_mflops < fastest_mflops_) {
    const int64_t longer = fastest_mflops_ * 1'000 / slot.speed_mflops - 1'000;
    slow = std::min(longer, kSlowest) * load_milli / 1'000;
  }
  // The tightest fit breaks ties.
  const int64_t left_milli = (slot.free_bytes - added_bytes) / (slot.capacity_bytes / 1'000 + 1);
  return kMillion * (policy_.overload_weight * overload + policy_.slow_weight * slow +
                     (warm ? 0 : policy_.cold_base_weight * 1'000)) +
         1'000 * policy_.fragment_weight * fragment + left_milli;
}

std::optional<PassFleet::Offer> PassFleet::OfferOf(size_t block, size_t slot_index,
                                                   const Board::Bucket& bucket, const Need& need) {
  const Board::Slot& slot = SlotsOf(block)[slot_index];
  if (slot.attempts >= policy_.max_attempts_per_device) return std::nullopt;
  if (!RoomForLoad(slot.load_milli, slot.attempts, LoadThere(bucket, slot.speed_mflops)))
    return std::nullopt;
  const bool empty = slot.group < 0;
  const int64_t least_bytes = need.persistent_bytes + need.host_bytes;
  if (slot.free_bytes < (empty ? need.TotalBytes() : least_bytes)) return std::nullopt;
  const bool one_base = policy_.max_bases_per_device <= 1;
  if (one_base && !empty && slot.group != bucket.group) return std::nullopt;
  const Board::Device& device = board_.devices()[static_cast<size_t>(slot.device)];
  Offer offer{0, need.TotalBytes(), false};
  if (empty) {
    if (!device.capacity().Holds(need.beside)) return std::nullopt;
  } else {
    const LoadOn<int32_t>& load = LoadOf(slot.device);
    if (!load.Fits(device.capacity(), bucket.group, need, bucket.alone, policy_))
      return std::nullopt;
    offer.added_bytes = load.Added(bucket.group, need);
    offer.warm = load.Find(bucket.group) != nullptr;
  }
  offer.warm = offer.warm ||
               std::count(device.warm.begin(), device.warm.end(), bucket.base) > 0;
  offer.score = ScoreOf(slot, bucket, offer.added_bytes, offer.warm);
  return offer;
}

PassFleet::Ranking& PassFleet::RankingOf(size_t block, const Board::Bucket& bucket,
                                         const Need& need) {
  if (ranked_ > kMaxRanked) {
    rankings_.clear();
    ranking_of_.clear();
    ranked_ = 0;
  }
  Ranking*& known = ranking_of_[{&bucket, block}];
  if (known == nullptr) {
    known = &rankings_[{block, bucket.group, bucket.base, bucket.alone, bucket.load_milli,
                        {need.fixed_bytes, need.base_bytes, need.persistent_bytes, need.host_bytes,
                         need.step_bytes, need.beside.pinned_bytes, need.beside.host_bytes}}];
  }
  Ranking& ranking = *known;
  const auto put = [&](int32_t slot) {
    const auto offer = OfferOf(block, static_cast<size_t>(slot), bucket, need);
    if (!offer) return;
    ranking.heap.push_back({offer->score, slot, VersionOf(block, slot)});
    ++ranked_;
  };
  std::vector<int32_t>& placed = placed_[block];
  if (!ranking.made) {
    ranking.made = true;
    for (const int32_t slot : OpenIn(block)) put(slot);
    std::make_heap(ranking.heap.begin(), ranking.heap.end());
  } else {
    for (size_t i = ranking.seen; i < placed.size(); ++i) {
      const size_t before = ranking.heap.size();
      put(placed[i]);
      if (ranking.heap.size() > before) std::push_heap(ranking.heap.begin(), ranking.heap.end());
    }
  }
  ranking.seen = placed.size();
  return ranking;
}

std::optional<PassFleet::Ranked> PassFleet::BestIn(size_t block, const Board::Bucket& bucket,
                                                   const Board::Waiting& w, const Need& need,
                                                   const std::vector<int32_t>& excluded) {
  std::vector<Ranked>& heap = RankingOf(block, bucket, need).heap;
  const std::vector<Board::Slot>& slots = SlotsOf(block);
  std::vector<Ranked> passed;  // back in afterwards
  std::optional<Ranked> best;
  while (!heap.empty()) {
    const Ranked top = heap.front();
    const Board::Slot& slot = slots[static_cast<size_t>(top.slot)];
    if (top.version == VersionOf(block, top.slot)) {
      const bool out = std::count(excluded.begin(), excluded.end(), slot.device) > 0;
      const bool avoided =
          !w.avoid.empty() &&
          w.avoid.count(board_.workers()[static_cast<size_t>(slot.worker)].id) > 0;
      if (!out && !avoided) {
        best = top;
        break;
      }
      if (!out && !best) {
        best = top;
        best->score += kAvoided;
      }
      passed.push_back(top);
    }
    std::pop_heap(heap.begin(), heap.end());
    heap.pop_back();
    --ranked_;
  }
  for (const Ranked& entry : passed) {
    heap.push_back(entry);
    std::push_heap(heap.begin(), heap.end());
    ++ranked_;
  }
  return best;
}

std::optional<Spot> PassFleet::Best(const Board::Bucket& bucket, const Board::Waiting& w,
                                    int64_t number, const std::vector<int32_t>& excluded) {
  const auto name = [&](const Board::Slot& slot) {
    return std::tie(board_.workers()[static_cast<size_t>(slot.worker)].id,
                    board_.devices()[static_cast<size_t>(slot.device)].id);
  };
  std::optional<Ranked> best;
  size_t best_block = 0;
  for (size_t block = 0; block < board_.blocks().size(); ++block) {
    const std::vector<Board::Slot>& slots = SlotsOf(block);
    if (slots.empty()) continue;
    if (!bucket.numerics.empty() && bucket.numerics != board_.blocks()[block].numerics) continue;
    const std::optional<Need>& need = NeedIn(bucket, block, slots.front().device, number);
    if (!need) continue;
    const std::optional<Ranked> found = BestIn(block, bucket, w, *need, excluded);
    if (!found || (best && found->score > best->score)) continue;
    if (best && found->score == best->score &&
        name(SlotsOf(best_block)[static_cast<size_t>(best->slot)]) <
            name(slots[static_cast<size_t>(found->slot)]))
      continue;
    best = found;
    best_block = block;
  }
  if (!best) return std::nullopt;
  const auto index = static_cast<size_t>(best->slot);
  const Board::Slot& slot = SlotsOf(best_block)[index];
  const Need& need = **bucket.needs[best_block];
  const Offer offer = *OfferOf(best_block, index, bucket, need);
  return Spot{slot.device,  index,
              need,         offer.added_bytes,
              slot.free_bytes - offer.added_bytes, best->score,
              offer.warm};
}

void PassFleet::Place(const Board::Bucket& bucket, const Spot& spot) {
  const Board::Device& d = board_.devices()[static_cast<size_t>(spot.device)];
  const auto [it, fresh] = changed_.try_emplace(spot.device);
  Changed& changed = it->second;
  if (fresh) changed.load = d.load;
  changed.load.Add(bucket.group, spot.need, bucket.alone);
  const int32_t load_milli = LoadThere(bucket, d.speed_mflops);
  changed.added.push_back({spot.need, bucket.group, bucket.alone, load_milli});
  std::vector<Board::Slot>& own = own_[static_cast<size_t>(d.block)];
  if (own.empty()) own = board_.blocks()[static_cast<size_t>(d.block)].slots;
  Board::Slot& slot = own[spot.slot];
  slot.free_bytes -= spot.added_bytes;
  slot.load_milli += load_milli;
  ++slot.attempts;
  if (slot.group < 0) slot.group = bucket.group;
  std::vector<int32_t>& versions = versions_[static_cast<size_t>(d.block)];
  if (versions.empty()) versions.assign(own.size(), 0);
  ++versions[spot.slot];
  placed_[static_cast<size_t>(d.block)].push_back(static_cast<int32_t>(spot.slot));
  Extra& extra = extra_[bucket.project];
  extra.bytes += spot.added_bytes;
  extra.load_milli += bucket.load_milli;
  ++extra.jobs;
}

PassFleet::Rest PassFleet::RestOf(int32_t device, const std::set<HoldKey>& gone) const {
  Rest rest;
  for (const int32_t index : board_.devices()[static_cast<size_t>(device)].held) {
    const Board::Hold& hold = board_.HoldAt(index);
    if (gone.count(hold.key) > 0) continue;
    rest.load.Add(hold.group, hold.need, hold.alone);
    rest.load_milli += hold.load_milli;
  }
  const auto changed = changed_.find(device);
  if (changed == changed_.end()) return rest;
  for (const Added& added : changed->second.added) {
    rest.load.Add(added.group, added.need, added.alone);
    rest.load_milli += added.load_milli;
  }
  return rest;
}

bool PassFleet::FitsWithout(int32_t device, const std::set<HoldKey>& gone,
                            const Board::Bucket& bucket, const Need& need) const {
  const Rest rest = RestOf(device, gone);
  const Capacity capacity = board_.devices()[static_cast<size_t>(device)].capacity();
  return RoomForLoad(rest.load_milli, rest.load.attempts, LoadOnDevice(bucket, device)) &&
         rest.load.Fits(capacity, bucket.group, need, bucket.alone, policy_);
}

bool PassFleet::Delays(const BoardReservation& r, const Board::Bucket& bucket, int64_t work_us,
                       const Spot& spot) const {
  if (r.device != spot.device) return false;
  // It may be gone by then, with all of those that are there taking turns with it.
  const int32_t shared_milli = RestOf(r.device, {}).load_milli + LoadOnDevice(bucket, r.device);
  const int64_t end_us = now_us_ + work_us / 1'000 * std::max(1'000, shared_milli);
  if (end_us + policy_.preempt_patience_us <= r.start_us) return false;
  const Board::Bucket& holder = board_.buckets()[static_cast<size_t>(r.bucket)];
  Rest then = RestOf(r.device, r.gone);
  then.load.Add(bucket.group, spot.need, bucket.alone);
  then.load_milli += LoadOnDevice(bucket, r.device);
  const Capacity capacity = board_.devices()[static_cast<size_t>(r.device)].capacity();
  return !RoomForLoad(then.load_milli, then.load.attempts, LoadOnDevice(holder, r.device)) ||
         !then.load.Fits(capacity, holder.group, r.need, holder.alone, policy_);
}

std::optional<BoardReservation> PassFleet::Reserve(int64_t number, int32_t bucket_id,
                                                   const std::vector<int32_t>& reserved) const {
  const Board::Bucket& bucket = board_.buckets()[static_cast<size_t>(bucket_id)];
  struct Chance {
    std::optional<Need> need;
    std::set<HoldKey> gone;
  };
  std::map<int32_t, Chance> chances;
  if (!ends_) ends_.emplace(board_.TimedDevices(), &Board::Device::ends);
  for (size_t i = 0; const auto end = ends_->At(i); ++i) {
    const int32_t device = end->device;
    const auto [it, fresh] = chances.try_emplace(device);
    Chance& chance = it->second;
    if (fresh && std::count(reserved.begin(), reserved.end(), device) == 0)
      chance.need = NeedOn(bucket, device, number);
    if (!chance.need) continue;
    const auto& [end_us, key] = *end->key;
    chance.gone.insert(key);
    if (!FitsWithout(device, chance.gone, bucket, *chance.need)) continue;
    return BoardReservation{number, bucket_id, device, *chance.need, std::max(end_us, now_us_),
                            std::move(chance.gone)};
  }
  return std::nullopt;
}

bool PassFleet::InQuota(const Board::Bucket& bucket) const {
  if (policy_.projects.empty()) return true;
  const Board::Project& project = board_.projects()[static_cast<size_t>(bucket.project)];
  const auto it = policy_.projects.find(project.name);
  if (it == policy_.projects.end()) return true;
  const Extra extra = ExtraOf(bucket.project);
  const ProjectPolicy& p = it->second;
  if (p.quota_jobs > 0 && project.held_jobs + extra.jobs >= p.quota_jobs) return false;
  if (p.quota_bytes <= 0) return true;
  // The least it could add anywhere.
  int64_t least_bytes = 0;
  for (const auto& need : bucket.needs) {
    if (!need || !*need) continue;
    const int64_t bytes = (*need)->TotalBytes();
    least_bytes = least_bytes == 0 ? bytes : std::min(least_bytes, bytes);
  }
  return project.held_bytes + extra.bytes + least_bytes <= p.quota_bytes;
}

PassFleet::Extra PassFleet::ExtraOf(int32_t project) const {
  const auto it = extra_.find(project);
  return it == extra_.end() ? Extra{} : it->second;
}

int32_t PassFleet::SpeedPercent(int32_t device) const {
  if (fastest_mflops_ == 0) return 0;
  const int64_t mflops = board_.devices()[static_cast<size_t>(device)].speed_mflops;
  return static_cast<int32_t>(mflops * 100 / fastest_mflops_);
}

DeviceVerdict PassFleet::VerdictOf(int32_t device, const Board::Bucket& bucket,
                                   int64_t number) const {
  using Kind = DeviceVerdict::Kind;
  const Board::Device& d = board_.devices()[static_cast<size_t>(device)];
  const Board::Block& block = board_.blocks()[static_cast<size_t>(d.block)];
  DeviceVerdict v;
  v.device = device;
  v.speed_percent = SpeedPercent(device);
  v.capacity_bytes = d.capacity_bytes;
  v.free_bytes = d.capacity_bytes - d.load.total_bytes;
  v.load_milli = d.load_milli;
  v.attempts = d.load.attempts;
  const std::optional<Need>& need =
      NeedIn(bucket, static_cast<size_t>(d.block), device, number);
  if (need) v.needed_bytes = d.load.Added(bucket.group, *need);
  if (!bucket.numerics.empty() && bucket.numerics != block.numerics) {
    v.kind = Kind::kNumerics;
  } else if (!need) {
    v.kind = Kind::kNoPlan;
  } else if (!need->FitsAlone(d.capacity())) {
    v.kind = Kind::kNever;
    v.lacks_host_memory = need->TotalBytes() <= d.capacity_bytes;
  } else if (!IsLive(d.worker)) {
    v.kind = Kind::kNotLive;
  } else if (v.needed_bytes > v.free_bytes || !d.capacity().Holds(d.load.Beside(*need))) {
    v.kind = Kind::kBytes;
    v.lacks_host_memory = v.needed_bytes <= v.free_bytes;
  } else if (!d.load.Fits(d.capacity(), bucket.group, *need, bucket.alone, policy_)) {
    v.kind = Kind::kAttempts;
  } else if (!RoomForLoad(d.load_milli, d.load.attempts, LoadThere(bucket, d.speed_mflops))) {
    v.kind = Kind::kLoad;
  }
  return v;
}

}  // namespace nibble::core

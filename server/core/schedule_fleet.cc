#include "server/core/schedule_fleet.h"

#include <algorithm>
#include <limits>

namespace nibble::core {
namespace {

// More than any score: a worker where the job has failed comes last.
constexpr int64_t kAvoided = int64_t{1} << 50;
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
      score_(board, policy),
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
  offer.score =
      score_.Of(slot, LoadThere(bucket, slot.speed_mflops), offer.added_bytes, offer.warm);
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

}  // namespace nibble::core

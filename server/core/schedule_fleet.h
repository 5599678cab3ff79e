// The devices of a Board as one pass sees them: with what it has placed already.
//
// Made for one pass and thrown away. Slots are copied only when something is placed on their block.
//
// Every device is scored, but once per kind of job and pass: a placement changes one device, so only that one
// is scored again. Buckets that differ in their project alone share the scores, kept in a heap per block.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "server/core/schedule_pass.h"
#include "server/core/schedule_score.h"

namespace nibble::core {

// Where a job would go.
struct Spot {
  int32_t device = 0;
  size_t slot = 0;
  Need need;
  int64_t added_bytes = 0;
  int64_t left_bytes = 0;
  int64_t score = 0;  // smaller is better
  bool warm = false;
};

// The lists of all devices, each in order, as one list in order; made as far as somebody has looked, so that
// those who look again pay nothing.
template <typename Key>
class Merged {
 public:
  struct Entry {
    const Key* key;
    int32_t device;
    bool operator<(const Entry& other) const { return *other.key < *key; }  // smallest on top
  };

  Merged(const std::vector<Board::Device>& devices, std::vector<Key> Board::Device::* list)
      : devices_(devices), list_(list) {
    for (size_t i = 0; i < devices.size(); ++i) {
      if (!(devices[i].*list).empty())
        heap_.push_back({&(devices[i].*list)[0], static_cast<int32_t>(i)});
    }
    std::make_heap(heap_.begin(), heap_.end());
  }
  // nullopt beyond the last.
  std::optional<Entry> At(size_t index) {
    while (made_.size() <= index && !heap_.empty()) MakeNext();
    return index < made_.size() ? std::optional<Entry>(made_[index]) : std::nullopt;
  }

 private:
  void MakeNext() {
    made_.push_back(heap_.front());
    std::pop_heap(heap_.begin(), heap_.end());
    Entry& entry = heap_.back();
    const std::vector<Key>& list = devices_[static_cast<size_t>(entry.device)].*list_;
    if (++entry.key == list.data() + list.size()) {
      heap_.pop_back();
    } else {
      std::push_heap(heap_.begin(), heap_.end());
    }
  }

  const std::vector<Board::Device>& devices_;
  std::vector<Key> Board::Device::* list_;
  std::vector<Entry> heap_;
  std::vector<Entry> made_;
};

class PassFleet {
 public:
  struct Extra {
    int64_t bytes = 0;
    int64_t load_milli = 0;
    int32_t jobs = 0;
  };

  PassFleet(const Board& board, const SchedulePolicy& policy, const NeedFn& need_of,
            int64_t now_us, int64_t suspect_us);

  // False when no device has a place, or none as many free bytes as any job needs: nothing fits.
  bool HasRoom();
  // The best device the job fits on now, but for the excluded ones.
  std::optional<Spot> Best(const Board::Bucket& bucket, const Board::Waiting& w, int64_t number,
                           const std::vector<int32_t>& excluded);
  void Place(const Board::Bucket& bucket, const Spot& spot);
  // Whether the holder of the reservation could then no longer start when it is due.
  bool Delays(const BoardReservation& r, const Board::Bucket& bucket, int64_t work_us,
              const Spot& spot) const;
  // Where the job can start earliest when the attempts there end as expected; not on `reserved`.
  // nullopt when no live device could ever hold it.
  std::optional<BoardReservation> Reserve(int64_t number, int32_t bucket,
                                          const std::vector<int32_t>& reserved) const;
  // Whether it fits once `gone` have ended.
  bool FitsWithout(int32_t device, const std::set<HoldKey>& gone, const Board::Bucket& bucket,
                   const Need& need) const;
  std::optional<Need> NeedOn(const Board::Bucket& bucket, int32_t device, int64_t number) const;
  bool InQuota(const Board::Bucket& bucket) const;
  Extra ExtraOf(int32_t project) const;
  // Of the fastest device's speed; 0 when it is not known or all are alike.
  int32_t SpeedPercent(int32_t device) const;
  DeviceVerdict VerdictOf(int32_t device, const Board::Bucket& bucket, int64_t number) const;

 private:
  struct Added {
    Need need;
    int32_t group = 0;
    bool alone = false;
    int32_t load_milli = 0;
  };
  struct Changed {
    LoadOn<int32_t> load;
    std::vector<Added> added;
  };

  bool IsLive(int32_t worker) const {
    const Board::WorkerFacts& facts = board_.workers()[static_cast<size_t>(worker)];
    return facts.takes_work && now_us_ - facts.renewed_us <= suspect_us_;
  }
  const std::vector<Board::Slot>& SlotsOf(size_t block) const {
    return own_[block].empty() ? board_.blocks()[block].slots : own_[block];
  }
  const LoadOn<int32_t>& LoadOf(int32_t device) const;
  const std::optional<Need>& NeedIn(const Board::Bucket& bucket, size_t block, int32_t device,
                                    int64_t number) const;
  // What a device offers to a job; nullopt when the job does not fit there now.
  struct Offer {
    int64_t score = 0;
    int64_t added_bytes = 0;
    bool warm = false;
  };
  std::optional<Offer> OfferOf(size_t block, size_t slot, const Board::Bucket& bucket,
                               const Need& need);
  // A slot by its score, as of a version of the slot; ties go to the first name.
  struct Ranked {
    int64_t score = 0;
    int32_t slot = 0;
    int32_t version = 0;
    bool operator<(const Ranked& other) const {  // the best on top of a heap
      return std::tie(other.score, other.slot) < std::tie(score, slot);
    }
  };
  struct Ranking {
    std::vector<Ranked> heap;  // with entries that are out of date
    size_t seen = 0;           // of placed_
    bool made = false;
  };
  int32_t VersionOf(size_t block, int32_t slot) const {
    return versions_[block].empty() ? 0 : versions_[block][static_cast<size_t>(slot)];
  }
  // All that a score depends on besides the slot: block, group, base, alone, load, need.
  using RankingKey = std::tuple<size_t, int32_t, int32_t, bool, int32_t, std::array<int64_t, 7>>;
  Ranking& RankingOf(size_t block, const Board::Bucket& bucket, const Need& need);
  std::optional<Ranked> BestIn(size_t block, const Board::Bucket& bucket, const Board::Waiting& w,
                               const Need& need, const std::vector<int32_t>& excluded);
  bool RoomForLoad(int32_t load_milli, int32_t attempts, int32_t more_milli) const {
    return attempts == 0 || load_milli + more_milli <= policy_.max_load_milli;
  }
  // Of one job of the bucket on a device of that speed.
  int32_t LoadThere(const Board::Bucket& bucket, int64_t speed_mflops) const {
    if (fastest_mflops_ == 0) return bucket.load_milli;
    return LoadAtSpeed(bucket.load_milli, mean_mflops_, speed_mflops);
  }
  int32_t LoadOnDevice(const Board::Bucket& bucket, int32_t device) const {
    return LoadThere(bucket, board_.devices()[static_cast<size_t>(device)].speed_mflops);
  }
  struct Rest {
    LoadOn<int32_t> load;
    int32_t load_milli = 0;
  };
  Rest RestOf(int32_t device, const std::set<HoldKey>& gone) const;
  // Indexes of the slots of the block that could take something when the pass began.
  const std::vector<int32_t>& OpenIn(size_t block);

  const Board& board_;
  const SchedulePolicy& policy_;
  const NeedFn& need_of_;
  const int64_t now_us_;
  const int64_t suspect_us_;
  const int64_t fastest_mflops_;  // 0 = all devices are alike
  const int64_t mean_mflops_;     // what loads of buckets are for
  SlotScore score_;               // keeps what it learns of the board for the pass
  std::vector<std::vector<Board::Slot>> own_;  // by block; empty = as on the board
  std::vector<std::optional<std::vector<int32_t>>> open_;  // by block
  std::vector<std::vector<int32_t>> placed_;    // by block: slots placed on, in order
  std::vector<std::vector<int32_t>> versions_;  // by block and slot; empty = nothing placed there
  std::map<RankingKey, Ranking> rankings_;
  std::map<std::pair<const Board::Bucket*, size_t>, Ranking*> ranking_of_;
  size_t ranked_ = 0;  // entries of all rankings
  mutable std::optional<Merged<Board::EndKey>> ends_;
  std::map<int32_t, Changed> changed_;  // by device
  std::map<int32_t, Extra> extra_;      // by project
};

}  // namespace nibble::core

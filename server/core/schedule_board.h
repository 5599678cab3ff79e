// What the scheduler looks at: devices, what is admitted on them, who waits, and what each project
// has had; with the indexes that keep a decision cheap whatever the length of the queue.
//
// A value, derived from the rows of the State (State.board) and kept up to date by Apply, one call
// per change, each O(log n). It knows no policy but the keys it sorts by. Used by one thread at a
// time: `Bucket::needs`, expected ends and the like are filled in while a const Board is read. A hold
// that comes touches its device's totals and none of its neighbours, so that it costs the same on a full
// fleet as on an empty one.
//
// Jobs that are alike for the scheduler (same project, plan, base, numerics, load) wait in one
// bucket, so that a pass looks at each kind once, not at each job.
#pragma once

#include <cstdint>
#include <deque>
#include <ext/pb_ds/assoc_container.hpp>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "server/core/options.h"
#include "server/core/schedule_load.h"

namespace nibble::core {

using HoldKey = std::pair<int64_t, int64_t>;  // number of the job, epoch

// A set that also knows how many of its keys come before another: order_of_key, O(log n).
template <typename Key>
using RankedSet = __gnu_pbds::tree<Key, __gnu_pbds::null_type, std::less<Key>, __gnu_pbds::rb_tree_tag,
                                   __gnu_pbds::tree_order_statistics_node_update>;

// A job that waits.
struct BoardJob {
  int64_t number = 0;  // order of creation; breaks ties
  std::string job_id;
  std::string project;
  std::string shape;     // jobs of one shape need the same on the same device: the plan key
  std::string group;     // GroupKey
  std::string base;      // digest
  std::string numerics;  // class of the device it must have; "" = any
  bool alone = false;
  int32_t priority = 0;
  int64_t queued_us = 0;  // it waits since; time it ran before does not count
  int64_t not_before_us = 0;
  int64_t work_us = 0;   // predicted, left, alone on a device
  int64_t total_us = 0;  // from the beginning; predicted on the short side, for the bound
  int32_t load_milli = 1'000;
  bool own_load = false;        // it was measured on this very job
  bool started = false;         // it has been on a device before
  std::set<std::string> avoid;  // workers it failed on
};

// An attempt that holds bytes.
struct BoardHold {
  HoldKey key;
  std::string job_id;
  std::string project;
  std::string worker_id;
  std::string device_id;
  std::string group;
  Need need;
  bool alone = false;
  int32_t priority = 0;
  int64_t start_us = 0;
  int64_t work_us = 0;  // left, as of now
  int32_t load_milli = 1'000;
  bool releasing = false;  // asked to let go, or its job has ended
};

class Board {
 public:
  using OrderKey = std::tuple<int32_t, int64_t, int64_t>;  // -priority, rank, number
  using UrgentKey = std::pair<int64_t, int64_t>;           // overdue from, number
  using EndKey = std::pair<int64_t, HoldKey>;              // expected end
  using VictimKey = std::tuple<int32_t, int64_t, HoldKey>; // priority, -expected end

  struct Waiting {
    std::string job_id;
    int32_t bucket = 0;
    int32_t priority = 0;
    int64_t queued_us = 0;
    int64_t not_before_us = 0;
    int64_t work_us = 0;
    int64_t total_us = 0;
    int64_t rank_us = 0;
    bool started = false;
    int64_t urgent_us = 0;    // overdue from then on, if it has not started before
    int64_t critical_us = 0;  // overdue whatever its project has
    std::set<std::string> avoid;
  };
  struct Bucket {
    std::string shape;
    std::string numerics;
    int32_t project = 0;
    int32_t group = 0;
    int32_t base = 0;
    bool alone = false;
    int32_t own_load_milli = 0;  // of jobs that were measured; 0 = of those that were not
    int32_t load_milli = 0;
    RankedSet<OrderKey> order;
    RankedSet<UrgentKey> urgent;  // those that have never started
    // By block; what has been asked of the planner. nullopt inside: no plan for such devices.
    mutable std::vector<std::optional<std::optional<Need>>> needs;
    // Of a job of this kind alone, on the first block that was asked about; 0 = on none.
    int64_t KnownBytes() const {
      for (const auto& need : needs) {
        if (need && *need) return (*need)->TotalBytes();
      }
      return 0;
    }
  };
  // Of a project, as of a time: what it holds, and its usage of the recent past, decayed: MiB x us,
  // and thousandths of a device x us.
  struct Usage {
    int64_t held_bytes = 0;
    int64_t held_load_milli = 0;
    int64_t memory_time = 0;
    int64_t device_time = 0;
    int64_t as_of_us = 0;
  };
  struct Project : Usage {
    std::string name;
    int32_t held_jobs = 0;
    int64_t leaving_bytes = 0;  // of what it holds, what is about to be let go
    int64_t leaving_load_milli = 0;
    int64_t waiting = 0;
    std::set<std::pair<OrderKey, int32_t>> heads;          // the first of each bucket
    std::set<std::pair<UrgentKey, int32_t>> urgent_heads;  // the first overdue of each
  };
  struct Hold {
    HoldKey key;
    std::string job_id;
    int32_t project = 0;
    int32_t device = -1;  // -1: the device is gone
    int32_t group = 0;
    Need need;
    int64_t added_bytes = 0;  // counted for the project
    bool alone = false;
    bool releasing = false;
    bool brief = false;  // had little work left when it began
    int32_t priority = 0;
    int32_t load_milli = 0;
    // Of the device's time it had beside those there at that change of the device; 0 = not known.
    int32_t seen_milli = 0;
    int32_t seen_change = 0;
    int64_t start_us = 0;
    int64_t work_us = 0;  // left at as_of_us
    int64_t as_of_us = 0;
    mutable int64_t end_us = 0;  // expected, while the device stays as it is; see TimedDevices
  };
  struct Device {
    int32_t worker = 0;
    std::string id;
    int32_t block = 0;
    int64_t capacity_bytes = 0;
    int64_t speed_mflops = 0;  // SpeedOf; 0 = not known
    HostPart beside;           // offered of the host; see Capacity
    LoadOn<int32_t> load;
    Capacity capacity() const {
      Capacity all(capacity_bytes);
      all.beside = beside;
      return all;
    }
    int32_t load_milli = 0;
    int64_t changed_us = 0;     // when the last came or went
    int32_t changes = 0;        // how often that was
    int32_t slot = 0;           // in its block
    std::vector<int32_t> held;  // for HoldAt, by key
    // Of those, the first first; and those nobody has asked to let go, the weakest first. Right after
    // TimedDevices or EndsOf.
    mutable std::vector<EndKey> ends;
    mutable std::vector<VictimKey> victims;
    mutable bool timed = true;
    std::vector<int32_t> warm;  // bases an engine still has in memory
  };
  // What a scan over all devices reads, in order of names.
  struct Slot {
    int64_t free_bytes = 0;
    int64_t capacity_bytes = 0;
    int64_t speed_mflops = 0;
    int32_t load_milli = 0;
    int32_t attempts = 0;
    int32_t group = -1;  // the first on it; -1 = empty
    int32_t worker = 0;
    int32_t device = 0;
  };
  // Devices of one profile: plans are the same on all of them.
  struct Block {
    std::string profile;
    std::string numerics;
    std::vector<Slot> slots;
  };
  struct WorkerFacts {
    std::string id;
    bool takes_work = false;
    int64_t renewed_us = 0;
    bool operator==(const WorkerFacts&) const = default;
  };

  // Sorting keys follow the policy in force when a job comes; set it first.
  void SetPolicy(const SchedulePolicy& policy) { policy_ = policy; }
  const SchedulePolicy& policy() const { return policy_; }

  // Fleet. A device that is put again keeps what it holds.
  void PutWorker(const WorkerFacts& facts);
  void SetRenewed(const std::string& worker_id, int64_t renewed_us);
  void PutDevice(const std::string& worker_id, const std::string& device_id,
                 const std::string& profile, const std::string& numerics, int64_t capacity_bytes,
                 const HostPart& beside = {}, int64_t speed_mflops = 0);
  void RemoveDevice(const std::string& worker_id, const std::string& device_id);
  void SetWarm(const std::string& worker_id, const std::string& device_id,
               const std::set<std::string>& bases);

  // Queue. A job that is enqueued again is replaced.
  void Enqueue(const BoardJob& job);
  void Dequeue(int64_t number);
  // Of all jobs of a shape that wait and have not been measured themselves.
  void SetShapeLoad(const std::string& shape, int32_t load_milli);
  std::vector<int64_t> WaitingOfShape(const std::string& shape, size_t limit) const;

  // What is held. `now_us` settles the usage of the project until then.
  void AddHold(const BoardHold& hold, int64_t now_us);
  void RemoveHold(const HoldKey& key, int64_t now_us);
  void SetHoldWork(const HoldKey& key, int64_t work_us, int32_t load_milli, int64_t now_us);
  void SetHoldSeen(const HoldKey& key, int32_t seen_milli);
  void SetReleasing(const HoldKey& key, int64_t now_us);
  void SetHoldPriority(const HoldKey& key, int32_t priority);

  int64_t now_us() const { return now_us_; }  // the latest time it was told

  // Share of the fleet in millionths, past and present, over the project's weight. `extra` comes
  // on top of what is held.
  int64_t ShareOf(int32_t project, int64_t now_us, int64_t extra_bytes, int64_t extra_load) const;
  // Of what it holds at this moment alone.
  int64_t HeldShareOf(int32_t project, int64_t extra_bytes, int64_t extra_load) const;

  // Whether a brief job of this load may go before the shares of projects; `extra_load` was placed
  // on top of what is held.
  bool BriefFits(int64_t load_milli, int64_t extra_load) const {
    return held_brief_milli_ + extra_load + load_milli <= int64_t{fleet_devices_} * policy_.brief_milli;
  }

  const std::map<int64_t, Waiting>& waiting() const { return waiting_; }
  // Of the devices whose speed is known; 0 = of none.
  int64_t FastestMflops() const { return speeds_.empty() ? 0 : speeds_.rbegin()->first; }
  int64_t MeanMflops() const;
  // Whether there are devices of different speeds.
  bool SpeedsDiffer() const { return speeds_.size() > 1; }

  const std::deque<Bucket>& buckets() const { return buckets_; }
  const std::vector<Project>& projects() const { return projects_; }
  const Hold* FindHold(const HoldKey& key) const;
  const Hold& HoldAt(int32_t index) const { return holds_[static_cast<size_t>(index)]; }
  bool HoldsNothing() const { return hold_ids_.empty(); }
  // How many of those that hold bytes need so many, alone on a device: what comes is like what runs.
  const std::map<int64_t, int32_t>& held_sizes() const { return held_sizes_; }
  int64_t LargestBytes() const { return capacities_.empty() ? 0 : capacities_.rbegin()->first; }
  const std::vector<Device>& devices() const { return devices_; }
  // The same, once expected ends and victims have been worked out where something changed.
  const std::vector<Device>& TimedDevices() const;
  const std::vector<EndKey>& EndsOf(int32_t device) const;
  const std::vector<Block>& blocks() const { return blocks_; }
  const std::vector<WorkerFacts>& workers() const { return workers_; }
  int32_t FindProject(const std::string& name) const { return Find(project_ids_, name); }
  int32_t FindDevice(const std::string& worker_id, const std::string& device_id) const;
  // Thousandths of its time that are taken, once that was seen of all on it; before, all of it.
  int32_t SeenLoadOf(int32_t device) const;
  std::vector<std::string> DevicesOf(const std::string& worker_id) const;
  const std::string& group_name(int32_t group) const {
    return group_names_[static_cast<size_t>(group)];
  }
  // Everything in words, whatever the order it came in; for comparing two boards.
  std::string Dump() const;

 private:
  using BucketKey = std::tuple<std::string, std::string, std::string, std::string, bool, int32_t>;

  static int32_t Find(const std::map<std::string, int32_t>& ids, const std::string& name);
  // Counts by value; none is not kept.
  static void CountIn(std::map<int64_t, int32_t>& counts, int64_t value) { ++counts[value]; }
  static void CountOut(std::map<int64_t, int32_t>& counts, int64_t value) {
    const auto it = counts.find(value);
    if (it != counts.end() && --it->second == 0) counts.erase(it);
  }
  int32_t Intern(std::map<std::string, int32_t>& ids, const std::string& name);
  int32_t ProjectId(const std::string& name);
  int32_t WorkerId(const std::string& id);
  int32_t BlockId(const std::string& profile, const std::string& numerics);
  int32_t BucketOf(const BoardJob& job);
  void UnlistHeads(int32_t bucket);
  void ListHeads(int32_t bucket);
  // Numbers the slots from `first` on.
  void NumberSlots(std::vector<Slot>& slots, size_t first);
  Hold* HoldOf(const HoldKey& key);
  // After holds of the device changed: its totals anew, from all of them.
  void Recount(int32_t device);
  void FillSlot(int32_t device);
  // What is expected of all on it holds no longer.
  void Untime(int32_t device);
  void Retime(const Device& device) const;
  void TakeOff(const HoldKey& key, int64_t now_us);
  // Adds to what its project is about to let go, with -1 takes it off again; nothing unless it is releasing.
  void CountLeaving(const Hold& hold, int32_t sign) {
    if (!hold.releasing) return;
    Project& project = projects_[static_cast<size_t>(hold.project)];
    project.leaving_bytes += sign * hold.added_bytes;
    project.leaving_load_milli += sign * hold.load_milli;
  }
  void NoteChange(int32_t device, int64_t now_us);
  void Settle(Usage& usage, int64_t now_us) const;
  int64_t DominantShare(const Project& project, int64_t memory_mib, int64_t load_milli) const;

  SchedulePolicy policy_;
  int64_t now_us_ = 0;
  std::map<std::string, int32_t> project_ids_, worker_ids_, block_ids_, group_ids_, base_ids_;
  std::vector<std::string> group_names_;
  std::vector<Project> projects_;
  std::vector<WorkerFacts> workers_;
  std::vector<Block> blocks_;
  std::vector<Device> devices_;
  std::map<std::pair<std::string, std::string>, int32_t> device_ids_;  // worker, device
  std::vector<int32_t> free_devices_;
  mutable std::vector<int32_t> untimed_;
  int64_t fleet_mib_ = 0;
  int32_t fleet_devices_ = 0;
  std::map<int64_t, int32_t> speeds_;      // known ones -> devices
  std::map<int64_t, int32_t> capacities_;  // -> devices
  std::map<int64_t, int32_t> held_sizes_;
  int64_t held_brief_milli_ = 0;

  std::map<BucketKey, int32_t> bucket_ids_;
  std::deque<Bucket> buckets_;  // they never move: their sets are copied when they do
  std::vector<int32_t> free_buckets_;
  std::map<int64_t, Waiting> waiting_;
  std::vector<Hold> holds_;  // by number; with free ones between
  std::vector<int32_t> free_holds_;
  struct HashOfHold {
    size_t operator()(const HoldKey& key) const {
      return static_cast<size_t>(key.first * 31 + key.second);
    }
  };
  std::unordered_map<HoldKey, int32_t, HashOfHold> hold_ids_;  // never gone through in its own order
};

}  // namespace nibble::core

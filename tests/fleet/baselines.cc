// The ways of placing jobs that Nibble is compared with.
#include <algorithm>
#include <functional>
#include <map>

#include "base/status.h"
#include "tests/fleet/policy.h"

namespace nibble::fleet {
namespace {

struct Style {
  const char* name;
  Reserving reserving;
  bool backfill;     // later jobs may pass a blocked one they do not delay (EASY)
  bool fragments;    // places by the descent of byte fragmentation
  bool clairvoyant;  // knows real durations; shortest remaining first, preempting for nothing
  bool fair;         // the project with the smallest dominant share of what is given out goes first
};
constexpr Style kStyles[] = {
    {"clairvoyant", Reserving::kShared, false, false, true, false},
    {"clairvoyant-fair", Reserving::kShared, false, false, true, true},
    {"fragmentation", Reserving::kSeparate, true, true, false, false},
    {"reserve-20", Reserving::kFifth, true, false, false, false},
    {"fifo-backfill", Reserving::kWhole, true, false, false, false},
    {"fifo", Reserving::kWhole, false, false, false, false},
};
// Only of fills.
constexpr Style kTightest{"tightest", Reserving::kSeparate, true, false, false, false};

// Sum of busy shares a device may be given. A quarter too many slows everybody on it by a fifth at
// most, which costs less than waiting does: of 1, 1.1, 1.25, 1.5 and 2 this gave the baselines
// their best means.
constexpr double kBusyCap = 1.25;

// Room on one device as it is, or as it would be.
struct Room {
  int64_t capacity_bytes;
  Occupancy occupancy;
  double busy_share = 0;
  double speed = 1;
  double BusyOf(const FleetJob& job) const { return job.BusyAt(speed); }
};

class Baseline : public Policy {
 public:
  Baseline(const Style& style, Floor* floor) : style_(style), floor_(*floor) {}

  void Act() override {
    if (style_.clairvoyant) {
      Repack();
    } else {
      InOrder();
    }
  }

 private:
  const FleetJob& Job(int32_t id) const { return floor_.job(id); }

  Room RoomOf(int32_t device) const {
    const Floor::Device& d = floor_.device(device);
    Room room{d.capacity_bytes, d.occupancy, 0, d.speed};
    for (const int32_t id : d.jobs) room.busy_share += room.BusyOf(Job(id));
    return room;
  }

  bool Fits(const Room& room, int32_t id) const {
    const FleetJob& job = Job(id);
    // Hardly more turns than the device has time for.
    if (room.occupancy.jobs() > 0 && room.busy_share + room.BusyOf(job) > kBusyCap + 1e-9)
      return false;
    return room.occupancy.Fits(room.capacity_bytes, job.recipe);
  }

  static void Put(Room& room, const FleetJob& job) {
    room.occupancy.Add(job.recipe);
    room.busy_share += room.BusyOf(job);
  }

  // Bytes no job of the mix, each by its weight, could use there.
  double Fragmented(int64_t free_bytes) const {
    const std::vector<Recipe>& recipes = floor_.scenario().recipes;
    double lost = 0;
    for (size_t i = 0; i < recipes.size(); ++i) {
      if (floor_.workload().plans[i].TotalBytes() > free_bytes)
        lost += recipes[i].weight * static_cast<double>(free_bytes);
    }
    return lost;
  }

  // Smaller is better.
  double Score(const Room& room, int32_t id) const {
    const int64_t used = room.occupancy.ReservedBytes(room.capacity_bytes);
    const int64_t free_bytes = room.capacity_bytes - used;
    const int64_t added = room.occupancy.AddedBytes(room.capacity_bytes, Job(id).recipe);
    if (style_.fragments) return Fragmented(free_bytes - added) - Fragmented(free_bytes);
    if (style_.clairvoyant) {
      // Where it is done first, by its turns and how fast they are; then the fewest bytes more, then the
      // tightest.
      const double busy = std::max(1.0, room.busy_share + room.BusyOf(Job(id)));
      return (busy / Job(id).PaceAt(room.speed) - 1) * 1e18 + static_cast<double>(added) * 1e3 +
             static_cast<double>(free_bytes - added);
    }
    return static_cast<double>(style_.reserving == Reserving::kWhole ? room.capacity_bytes
                                                                     : free_bytes - added);
  }

  int32_t Best(const std::vector<Room>& rooms, int32_t id,
               const std::function<bool(int32_t)>& allowed) const {
    int32_t best = -1;
    double best_score = 0;
    for (int32_t d = 0; d < floor_.devices(); ++d) {
      const Room& room = rooms[static_cast<size_t>(d)];
      if (!Fits(room, id) || !allowed(d)) continue;
      const double score = Score(room, id);
      const bool faster = best >= 0 && score == best_score &&
                          room.speed > rooms[static_cast<size_t>(best)].speed;
      if (best >= 0 && score >= best_score && !faster) continue;
      best = d;
      best_score = score;
    }
    return best;
  }

  // Jobs that found no device in this pass, by recipe the least busy share of them: another of the
  // recipe that is at least as busy need not look.
  class Hopeless {
   public:
    explicit Hopeless(size_t recipes) : least_(recipes, 2) {}
    bool Has(const FleetJob& job) const {
      return job.busy_share >= least_[static_cast<size_t>(job.recipe)];
    }
    void Add(const FleetJob& job) {
      double& least = least_[static_cast<size_t>(job.recipe)];
      least = std::min(least, job.busy_share);
    }

   private:
    std::vector<double> least_;
  };
  static bool Anywhere(int32_t) { return true; }

  // First in, first out; the first that must wait blocks the rest, or, with backfill, holds a
  // reservation on the device where it fits first.
  void InOrder() {
    std::vector<Room> rooms;
    for (int32_t d = 0; d < floor_.devices(); ++d) rooms.push_back(RoomOf(d));
    int32_t reserved_on = -1;
    int64_t reserved_at_us = 0;
    Room rest{0, rooms[0].occupancy};  // what is there when the reservation begins
    const std::set<int32_t> waiting = floor_.waiting();  // ids are by arrival
    Hopeless hopeless(floor_.workload().plans.size());
    for (const int32_t id : waiting) {
      if (hopeless.Has(Job(id))) continue;
      const int32_t device = Best(rooms, id, [&](int32_t d) {
        if (d != reserved_on) return true;
        if (EndUs(id, d) <= reserved_at_us) return true;
        Room then = rest;
        Put(then, Job(id));
        return then.occupancy.Fits(then.capacity_bytes, Job(head_).recipe) &&
               then.busy_share + then.BusyOf(Job(head_)) <= kBusyCap + 1e-9;
      });
      if (device >= 0) {
        Put(rooms[static_cast<size_t>(device)], Job(id));
        if (device == reserved_on && EndUs(id, device) > reserved_at_us)
          Put(rest, Job(id));
        floor_.Start(id, device, floor_.now_us() + floor_.scenario().costs.start_us);
      } else if (!style_.backfill) {
        return;
      } else {
        // Where nobody ever leaves there is nothing to wait for.
        if (reserved_on < 0 && !floor_.scenario().fill.wanted) {
          head_ = id;
          Reserve(id, reserved_on, reserved_at_us, rest);
        }
        if (Best(rooms, id, Anywhere) < 0) hopeless.Add(Job(id));
      }
    }
  }

  // What is left of it on that device, as one would predict.
  int64_t EndUs(int32_t id, int32_t device) const {
    const FleetJob& job = Job(id);
    const double done = static_cast<double>(floor_.StepsDone(id)) / static_cast<double>(job.steps);
    return floor_.now_us() + static_cast<int64_t>((1 - done) * static_cast<double>(job.nominal_us) /
                                                  job.PaceAt(floor_.device(device).speed));
  }

  void Reserve(int32_t id, int32_t& on, int64_t& at_us, Room& rest) const {
    at_us = kNeverUs;
    for (int32_t d = 0; d < floor_.devices(); ++d) {
      const Floor::Device& device = floor_.device(d);
      std::vector<std::pair<int64_t, int32_t>> ends;
      for (const int32_t other : device.jobs) ends.emplace_back(EndUs(other, d), other);
      std::sort(ends.begin(), ends.end());
      Room room = RoomOf(d);
      int64_t when_us = floor_.now_us();
      for (const auto& [end_us, other] : ends) {
        if (Fits(room, id)) break;
        room.occupancy.Remove(Job(other).recipe);
        room.busy_share -= room.BusyOf(Job(other));
        when_us = end_us;
      }
      if (!Fits(room, id) || when_us >= at_us) continue;
      on = d;
      at_us = when_us;
      rest = room;
    }
  }

  // What one job is of the fleet, by its project's weight: the larger of its parts of bytes and time.
  double ShareOf(const FleetJob& job) const {
    const double bytes = static_cast<double>(
        floor_.workload().plans[static_cast<size_t>(job.recipe)].TotalBytes());
    double fleet_bytes = 0;
    for (int32_t d = 0; d < floor_.devices(); ++d)
      fleet_bytes += static_cast<double>(floor_.device(d).capacity_bytes);
    return std::max(bytes / fleet_bytes, job.busy_share / floor_.devices()) /
           floor_.scenario().tenants[static_cast<size_t>(job.tenant)].weight;
  }

  // All unfinished jobs by true remaining time, or that within the project that was given the least so far;
  // each where it is or where it adds the fewest bytes; who no longer fits is set aside.
  void Repack() {
    std::vector<std::vector<std::pair<double, int32_t>>> orders(
        style_.fair ? floor_.scenario().tenants.size() : 1);
    const auto list = [&](int32_t id) {
      const size_t order = style_.fair ? static_cast<size_t>(Job(id).tenant) : 0;
      orders[order].emplace_back(floor_.RemainingUs(id), id);
    };
    for (const int32_t id : floor_.waiting()) list(id);
    std::vector<Room> kept;
    std::vector<Room> full;  // kept, and what runs there and has not been looked at
    for (int32_t d = 0; d < floor_.devices(); ++d) {
      const Floor::Device& device = floor_.device(d);
      kept.push_back(
          {device.capacity_bytes, Occupancy(&floor_.workload().plans, style_.reserving), 0, device.speed});
      full.push_back(RoomOf(d));
      for (const int32_t id : device.jobs) list(id);
    }
    for (auto& order : orders) std::sort(order.begin(), order.end());
    std::map<int32_t, int32_t> starts;
    Hopeless hopeless(floor_.workload().plans.size());  // room in `kept` only shrinks
    std::vector<int32_t> stops;
    const auto place = [&](int32_t id) {
      const int32_t at = floor_.run(id).device;
      if (at >= 0 && Fits(kept[static_cast<size_t>(at)], id)) {
        Put(kept[static_cast<size_t>(at)], Job(id));
        return true;
      }
      if (at < 0 && hopeless.Has(Job(id))) return false;
      if (at >= 0) {
        stops.push_back(id);
        Room& left = full[static_cast<size_t>(at)];
        left.occupancy.Remove(Job(id).recipe);
        left.busy_share -= left.BusyOf(Job(id));
      }
      int32_t to = Best(full, id, Anywhere);
      if (to < 0) to = Best(kept, id, Anywhere);
      if (to < 0) {
        hopeless.Add(Job(id));
        return false;
      }
      Put(kept[static_cast<size_t>(to)], Job(id));
      Put(full[static_cast<size_t>(to)], Job(id));
      starts[id] = to;
      return true;
    };
    std::vector<double> shares(orders.size());
    std::vector<size_t> next(orders.size());
    while (true) {
      size_t least = orders.size();
      for (size_t i = 0; i < orders.size(); ++i) {
        if (next[i] < orders[i].size() && (least == orders.size() || shares[i] < shares[least])) least = i;
      }
      if (least == orders.size()) break;
      const int32_t id = orders[least][next[least]++].second;
      if (place(id) && style_.fair) shares[least] += ShareOf(Job(id));
    }
    for (const int32_t id : stops) floor_.Preempt(id);
    for (const auto& [id, device] : starts) {
      const bool fresh = floor_.run(id).first_start_us < 0;
      floor_.Start(id, device, floor_.now_us() + (fresh ? floor_.scenario().costs.start_us : 0));
    }
  }

  const Style& style_;
  Floor& floor_;
  int32_t head_ = -1;
};

}  // namespace

const std::vector<std::string>& PolicyNames() {
  static const auto* names = [] {
    auto* made = new std::vector<std::string>{"nibble"};
    for (const Style& style : kStyles) made->push_back(style.name);
    return made;
  }();
  return *names;
}

bool IsPolicy(std::string_view name) {
  return std::find(PolicyNames().begin(), PolicyNames().end(), name) != PolicyNames().end();
}

Reserving ReservingOf(std::string_view name) {
  for (const Style& style : kStyles) {
    if (name == style.name) return style.reserving;
  }
  return name == kTightest.name || name == "nibble-apart" ? Reserving::kSeparate : Reserving::kShared;
}

std::unique_ptr<Policy> MakePolicy(std::string_view name, Floor* floor) {
  for (const Style& style : kStyles) {
    if (name == style.name) return std::make_unique<Baseline>(style, floor);
  }
  if (name == kTightest.name) return std::make_unique<Baseline>(kTightest, floor);
  CHECK(name == "nibble" || name == "nibble-apart");
  return MakeNibblePolicy(floor, /*apart=*/name == "nibble-apart");
}

}  // namespace nibble::fleet

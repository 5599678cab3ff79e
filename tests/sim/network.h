// Messages between processes: late, lost, twice, out of order, or cut off for a while.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "tests/sim/faults.h"
#include "tests/sim/world.h"

namespace nibble::sim {

class Network {
 public:
  Network(World* world, const Faults* faults) : world_(*world), faults_(*faults) {}

  // `peer` names the other end of the server's link; `deliver` may be called never, once or twice.
  void Send(const std::string& peer, std::function<void()> deliver) {
    const auto cut = cut_until_us_.find(peer);
    if (cut != cut_until_us_.end() && world_.now_us() < cut->second) return;
    Random& rng = world_.rng();
    if (rng.Chance(faults_.loss)) return;
    const int copies = rng.Chance(faults_.duplicate) ? 2 : 1;
    for (int i = 0; i < copies; ++i) world_.After(Delay(), deliver);
  }
  // Arrives whatever is cut meanwhile; the peer is cut off both ways until shortly before.
  void SendStuck(const std::string& peer, int64_t delay_us, std::function<void()> deliver) {
    const int64_t until_us = world_.now_us() + delay_us - kSecond;
    cut_until_us_[peer] = cut_until_us_[Back(peer)] = until_us;
    world_.After(delay_us, std::move(deliver));
  }
  // The way back is a link of its own.
  static std::string Back(const std::string& peer) { return peer + "<"; }
  // Both ways, or one.
  void Cut(const std::string& peer, int64_t duration_us) {
    const uint64_t which = world_.rng().Below(3);
    if (which != 0) cut_until_us_[peer] = world_.now_us() + duration_us;
    if (which != 1) cut_until_us_[Back(peer)] = world_.now_us() + duration_us;
  }
  void Heal() { cut_until_us_.clear(); }

 private:
  // Mostly quick, sometimes as late as the run allows.
  int64_t Delay() {
    Random& rng = world_.rng();
    return rng.Chance(0.9) ? rng.Between(200, 5'000) : rng.Between(5'000, faults_.max_delay_us);
  }

  World& world_;
  const Faults& faults_;
  std::map<std::string, int64_t> cut_until_us_;
};

}  // namespace nibble::sim

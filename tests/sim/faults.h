// What can go wrong in a run. The seed draws which kinds exist and how often they come (swarm
// testing): a run without loss finds other faults than one that never gets a message through.
#pragma once

#include <cstdint>

#include "base/random.h"

namespace nibble::sim {

struct Faults {
  // Network, per message.
  double loss = 0;
  double duplicate = 0;
  int64_t max_delay_us = 20'000;
  double stuck = 0;  // of results: on the way for longer than a lease, its host cut off meanwhile
  // Per second of the chaos phase.
  double partition = 0;
  double server_crash = 0;
  double worker_crash = 0;
  double worker_freeze = 0;
  double worker_drain = 0;    // SIGTERM
  double second_process = 0;  // another process starts under the same worker id
  double engine_crash = 0;
  double device_death = 0;    // engines end and none starts, for a while
  double disk_full = 0;   // of a worker, for a while: what it would fetch finds no room
  double wall_clock = 0;  // is set, by up to an hour
  double all_sleep = 0;   // a machine that is suspended, with everything on it
  // Per detach, per fetch of a checkpoint, per commit.
  double engine_hang = 0;
  double bad_fetch = 0;
  double commit_fails = 0;
  // Users.
  double user_action = 0.2;  // per second: cancel, pause, resume, delete, drain
  double bad_job = 0.05;     // jobs that fail for a reason of their own
  double poison_job = 0.05;  // jobs that kill every engine

  static Faults Draw(Random& rng) {
    Faults f;
    const auto some = [&](double low, double high) {
      return rng.Chance(0.5) ? low + rng.Unit() * (high - low) : 0.0;
    };
    f.loss = some(0.01, 0.3);
    f.duplicate = some(0.01, 0.5);
    f.max_delay_us = rng.Chance(0.3) ? 5'000'000 : 20'000;
    f.stuck = some(0.1, 0.5);
    f.partition = some(0.005, 0.03);
    f.server_crash = some(0.005, 0.05);
    f.worker_crash = some(0.005, 0.05);
    f.worker_freeze = some(0.005, 0.03);
    f.worker_drain = some(0.002, 0.02);
    f.second_process = rng.Chance(0.2) ? 0.005 : 0;
    f.engine_crash = some(0.005, 0.05);
    f.device_death = some(0.003, 0.02);
    f.disk_full = some(0.003, 0.02);
    f.wall_clock = some(0.01, 0.1);
    f.engine_hang = some(0.05, 0.5);
    f.bad_fetch = some(0.02, 0.3);
    f.commit_fails = some(0.005, 0.1);
    f.user_action = 0.05 + rng.Unit() * 0.5;
    f.bad_job = some(0.05, 0.3);
    f.poison_job = some(0.05, 0.2);
    f.all_sleep = some(0.003, 0.02);
    return f;
  }
  // The faults of the outside world end; what a job is stays.
  void Heal() {
    loss = duplicate = stuck = partition = server_crash = worker_crash = worker_freeze = worker_drain = 0;
    second_process = engine_crash = device_death = disk_full = wall_clock = engine_hang = bad_fetch =
        commit_fails = user_action = all_sleep = 0;
    max_delay_us = 20'000;
  }
};

}  // namespace nibble::sim

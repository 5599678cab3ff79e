// Random fleets and jobs against the scheduler alone: what must hold whatever is drawn.
//
// A small world drives a Board as Apply would: jobs come, run for their time on the device they
// were placed on, are asked to let go, and end. Times are whole seconds.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/random.h"
#include "server/core/schedule_pass.h"

namespace nibble::core {
namespace {

constexpr int64_t kGB = 1'000'000'000;
constexpr int64_t kMinuteUs = 60 * kSecondUs;

struct Kind {
  std::string shape;
  std::string group;
  Need need;
  int32_t load_milli = 0;
};

class World {
 public:
  explicit World(uint64_t seed) : rng_(seed) {
    policy_.max_bases_per_device = static_cast<int32_t>(rng_.Between(1, 3));
    policy_.max_attempts_per_device = static_cast<int32_t>(rng_.Between(1, 6));
    policy_.max_load_milli = static_cast<int32_t>(rng_.Between(1'000, 4'000));
    policy_.max_reservations = static_cast<int32_t>(rng_.Between(1, 8));
    policy_.wait_floor_us = 600 * kMinuteUs;
    policy_.min_run_us = rng_.Between(1, 20) * kMinuteUs;
    policy_.projects["p0"].weight = static_cast<int32_t>(rng_.Between(1, 4));
    board_.SetPolicy(policy_);
    const int64_t devices = rng_.Between(1, 6);
    for (int64_t i = 0; i < devices; ++i) {
      const std::string worker = absl::StrCat("w", i);
      board_.PutWorker({worker, true, 0});
      // Some hosts say what they have beside the device's memory, some do not (0: not limited).
      const HostPart beside{rng_.Chance(0.6) ? rng_.Between(1, 12) * kGB : 0,
                            rng_.Chance(0.6) ? rng_.Between(1, 12) * kGB : 0};
      board_.PutDevice(worker, "gpu0", rng_.Chance(0.7) ? "profile-a" : "profile-b", "numerics",
                       rng_.Between(20, 80) * kGB, beside);
    }
    for (int i = 0; i < 6; ++i) {
      Kind kind;
      kind.shape = absl::StrCat("shape-", i);
      kind.group = absl::StrCat("group-", i % 3);
      kind.need.fixed_bytes = kGB / 2;
      kind.need.base_bytes = (1 + i % 3) * 4 * kGB;
      kind.need.persistent_bytes = rng_.Between(1, 4'000) * kGB / 1'000;
      kind.need.step_bytes = rng_.Between(1, 8'000) * kGB / 1'000;
      kind.need.beside = {rng_.Chance(0.5) ? rng_.Between(1, 6'000) * kGB / 1'000 : kGB / 1'000,
                          rng_.Between(10, 3'000) * kGB / 1'000};
      kind.load_milli = static_cast<int32_t>(rng_.Between(200, 1'000));
      kinds_.push_back(kind);
    }
    for (const Kind& kind : kinds_) by_shape_[kind.shape] = kind.need;
  }

  void Submit() {
    const Kind& kind = kinds_[rng_.Below(kinds_.size())];
    BoardJob job;
    job.number = ++last_number_;
    job.job_id = absl::StrCat("job-", job.number);
    job.project = absl::StrCat("p", rng_.Below(3));
    job.shape = kind.shape;
    job.group = kind.group;
    job.base = kind.group;
    job.priority = static_cast<int32_t>(rng_.Between(0, 1));
    job.queued_us = now_us_;
    job.work_us = job.total_us = rng_.Between(1, 90) * kMinuteUs;
    job.load_milli = kind.load_milli;
    jobs_[job.number] = job;
    board_.Enqueue(job);
  }

  bool FitsSomewhere(int64_t number) const {
    const Need& need = by_shape_.at(jobs_.at(number).shape);
    return std::any_of(board_.devices().begin(), board_.devices().end(), [&](const auto& d) {
      return need.FitsAlone(d.capacity());
    });
  }

  BoardSchedule Decide() const {
    const NeedFn need_of = [this](int64_t number, const Board::Device&) {
      return std::optional<Need>(by_shape_.at(jobs_.at(number).shape));
    };
    return RunPass(board_, policy_, need_of, now_us_, kForeverUs, 1'000);
  }

  void Apply(const BoardSchedule& schedule) {
    for (const BoardSchedule::Start& start : schedule.starts) {
      BoardJob& job = jobs_.at(start.number);
      board_.Dequeue(job.number);
      const Board::Device& d = board_.devices()[static_cast<size_t>(start.device)];
      BoardHold hold;
      hold.key = {job.number, ++epochs_[job.number]};
      hold.job_id = job.job_id;
      hold.project = job.project;
      hold.worker_id = board_.workers()[static_cast<size_t>(d.worker)].id;
      hold.device_id = d.id;
      hold.group = job.group;
      hold.need = by_shape_.at(job.shape);
      hold.priority = job.priority;
      hold.start_us = now_us_;
      hold.work_us = job.work_us;
      hold.load_milli = job.load_milli;
      board_.AddHold(hold, now_us_);
      running_[hold.key] = {start.number, now_us_, 0};
      if (!job.started) first_start_[job.number] = now_us_;
      job.started = true;
    }
    for (const BoardSchedule::Stop& stop : schedule.stops) {
      board_.SetReleasing(stop.key, now_us_);
      running_.at(stop.key).stop_us = now_us_ + kMinuteUs;
      ++stops_;
    }
  }

  // Jobs run at full speed or, where turns are shared, by their part.
  void Pass(int64_t us) {
    now_us_ += us;
    std::vector<HoldKey> ended;
    for (auto& [key, run] : running_) {
      const Board::Hold& hold = *board_.FindHold(key);
      const Board::Device& d = board_.devices()[static_cast<size_t>(hold.device)];
      BoardJob& job = jobs_.at(run.number);
      if (run.stop_us == 0 || now_us_ < run.stop_us)
        job.work_us -= us * 1'000 / std::max(1'000, d.load_milli);
      if (job.work_us <= 0 || (run.stop_us > 0 && now_us_ >= run.stop_us)) ended.push_back(key);
    }
    for (const HoldKey& key : ended) {
      BoardJob& job = jobs_.at(key.first);
      running_.erase(key);
      board_.RemoveHold(key, now_us_);
      if (job.work_us <= 0) continue;
      job.queued_us = now_us_;
      board_.Enqueue(job);
    }
    for (const auto& [key, run] : running_) {
      const Board::Hold& hold = *board_.FindHold(key);
      board_.SetHoldWork(key, jobs_.at(run.number).work_us, hold.load_milli, now_us_);
    }
  }

  void CheckDevices() const {
    for (const Board::Device& d : board_.devices()) {
      LoadOn<std::string> load;
      int32_t milli = 0;
      for (const int32_t index : d.held) {
        const BoardJob& job = jobs_.at(board_.HoldAt(index).key.first);
        load.Add(job.group, by_shape_.at(job.shape), false);
        milli += job.load_milli;
      }
      ASSERT_LE(load.TotalBytes(), d.capacity_bytes);
      ASSERT_TRUE(d.capacity().Holds(load.beside));
      ASSERT_EQ(load.beside, d.load.beside);
      ASSERT_LE(load.attempts, policy_.max_attempts_per_device);
      ASSERT_LE(static_cast<int32_t>(load.groups.size()), policy_.max_bases_per_device);
      ASSERT_TRUE(load.attempts <= 1 || milli <= policy_.max_load_milli);
    }
  }

  // The same devices, jobs and holds, put on in another order.
  Board MadeAnew() {
    Board board;
    board.SetPolicy(policy_);
    std::vector<HoldKey> keys;
    for (const auto& [key, run] : running_) keys.push_back(key);
    for (size_t i = 0; i < keys.size(); ++i) std::swap(keys[i], keys[i + rng_.Below(keys.size() - i)]);
    for (const Board::WorkerFacts& worker : board_.workers()) board.PutWorker(worker);
    for (auto d = board_.devices().rbegin(); d != board_.devices().rend(); ++d) {
      const Board::Block& block = board_.blocks()[static_cast<size_t>(d->block)];
      board.PutDevice(board_.workers()[static_cast<size_t>(d->worker)].id, d->id, block.profile,
                      block.numerics, d->capacity_bytes, d->beside);
    }
    for (auto w = board_.waiting().rbegin(); w != board_.waiting().rend(); ++w)
      board.Enqueue(jobs_.at(w->first));
    for (const HoldKey& key : keys) {
      const Board::Hold& hold = *board_.FindHold(key);
      const BoardJob& job = jobs_.at(key.first);
      const Board::Device& d = board_.devices()[static_cast<size_t>(hold.device)];
      board.AddHold({key, job.job_id, job.project, board_.workers()[static_cast<size_t>(d.worker)].id, d.id,
                     job.group, hold.need, hold.alone, hold.priority, hold.start_us, hold.work_us,
                     hold.load_milli, hold.releasing},
                    now_us_);
    }
    return board;
  }

  static constexpr int64_t kForeverUs = int64_t{1} << 60;
  struct Run {
    int64_t number = 0;
    int64_t start_us = 0;
    int64_t stop_us = 0;  // lets go then; 0 = was not asked to
  };
  Random rng_;
  SchedulePolicy policy_;
  Board board_;
  int64_t now_us_ = kSecondUs;
  int64_t last_number_ = 0;
  int64_t stops_ = 0;
  std::vector<Kind> kinds_;
  std::map<std::string, Need> by_shape_;
  std::map<int64_t, BoardJob> jobs_;
  std::map<int64_t, int64_t> epochs_;
  std::map<int64_t, int64_t> first_start_;
  std::map<HoldKey, Run> running_;
};

constexpr uint64_t kSeeds = 60;

TEST(ScheduleProperties, NothingIsOverCommittedAndAllThatFitsEnds) {
  int64_t stops = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    World world(seed);
    for (int minute = 0; minute < 10'000; ++minute) {
      if (minute < 600 && world.rng_.Chance(0.1)) world.Submit();
      world.Apply(world.Decide());
      world.CheckDevices();
      if (::testing::Test::HasFatalFailure()) return;
      world.Pass(kMinuteUs);
    }
    stops += world.stops_;
    for (const auto& [number, waiting] : world.board_.waiting()) {
      EXPECT_FALSE(world.FitsSomewhere(number)) << waiting.job_id << " never started";
    }
    EXPECT_TRUE(world.running_.empty());
  }
  EXPECT_GT(stops, 0);
}

TEST(ScheduleProperties, TheSameBoardDecidesTheSameAndACopyToo) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    World world(seed);
    for (int minute = 0; minute < 300; ++minute) {
      if (world.rng_.Chance(0.3)) world.Submit();
      const BoardSchedule schedule = world.Decide();
      const World copy = world;
      const BoardSchedule again = copy.Decide();
      ASSERT_EQ(schedule.starts.size(), again.starts.size());
      for (size_t i = 0; i < schedule.starts.size(); ++i) {
        ASSERT_EQ(schedule.starts[i].number, again.starts[i].number);
        ASSERT_EQ(schedule.starts[i].device, again.starts[i].device);
      }
      ASSERT_EQ(copy.board_.Dump(), world.board_.Dump());
      world.Apply(schedule);
      world.Pass(kMinuteUs);
    }
  }
}

// Sizes of what runs are counted as holds come and go, and never drift from the holds.
TEST(ScheduleProperties, ABoardMadeAnewEqualsTheOneThatWasKept) {
  int64_t most = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    World world(seed);
    for (int minute = 0; minute < 300; ++minute) {
      if (world.rng_.Chance(0.3)) world.Submit();
      world.Apply(world.Decide());
      world.Pass(kMinuteUs);
      const Board anew = world.MadeAnew();
      ASSERT_EQ(anew.Dump(), world.board_.Dump());
      std::map<int64_t, int32_t> sizes;
      for (const auto& [key, run] : world.running_)
        ++sizes[world.by_shape_.at(world.jobs_.at(key.first).shape).TotalBytes()];
      ASSERT_EQ(world.board_.held_sizes(), sizes);
      most = std::max(most, static_cast<int64_t>(sizes.size()));
    }
  }
  EXPECT_GT(most, 2);
}

// Whoever holds a reservation still fits there once those it waits for have ended, after all the pass has
// placed but for what will be over by then.
TEST(ScheduleProperties, WhatStartsLaterLeavesRoomForTheReservation) {
  int64_t checked = 0, passing = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    World world(seed);
    for (int minute = 0; minute < 400; ++minute) {
      if (world.rng_.Chance(0.3)) world.Submit();
      const BoardSchedule schedule = world.Decide();
      world.Apply(schedule);
      for (const BoardReservation& r : schedule.reservations) {
        const BoardJob& holder = world.jobs_.at(r.number);
        const Board::Device& d = world.board_.devices()[static_cast<size_t>(r.device)];
        LoadOn<std::string> rest;
        int32_t milli = 0;
        for (const int32_t index : d.held) {
          const HoldKey& key = world.board_.HoldAt(index).key;
          if (r.gone.count(key) > 0) continue;
          const BoardJob& job = world.jobs_.at(key.first);
          const bool fresh = world.running_.at(key).start_us == world.now_us_;
          if (fresh && world.now_us_ + job.work_us + world.policy_.preempt_patience_us <= r.start_us) {
            ++passing;
            continue;
          }
          rest.Add(job.group, world.by_shape_.at(job.shape), false);
          milli += job.load_milli;
        }
        EXPECT_TRUE(rest.Fits(d.capacity(), holder.group, r.need, false, world.policy_));
        EXPECT_TRUE(rest.attempts == 0 || milli + holder.load_milli <= world.policy_.max_load_milli);
        ++checked;
      }
      if (::testing::Test::HasFailure()) return;
      world.Pass(kMinuteUs);
    }
  }
  EXPECT_GT(checked, 1'000);
  EXPECT_GT(passing, 0);
}

}  // namespace
}  // namespace nibble::core

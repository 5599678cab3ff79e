// Where a job goes among devices it fits on: what is left there is to be of use to jobs like those that wait
// and run.
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/core/schedule_pass.h"

namespace nibble::core {
namespace {

constexpr int64_t kMB = 1'000'000;
constexpr int64_t kNowUs = kSecondUs;

// Devices and what runs on them; turns take no time worth counting.
class Fleet {
 public:
  Fleet() {
    policy.max_attempts_per_device = policy.max_bases_per_device = 64;
    policy.max_load_milli = 1'000'000;
    board.SetPolicy(policy);
  }
  void Add(const std::string& name, int64_t capacity_mb, const std::string& profile = "profile") {
    board.PutWorker({name, true, 0});
    board.PutDevice(name, "gpu0", profile, "numerics", capacity_mb * kMB);
  }
  static Need Sized(int64_t base_mb, int64_t persistent_mb) {
    Need need;
    need.base_bytes = base_mb * kMB;
    need.persistent_bytes = persistent_mb * kMB;
    return need;
  }
  void Run(const std::string& worker, const std::string& group, const Need& need, int times = 1,
           int64_t work_minutes = 60, int32_t load_milli = 1) {
    for (int i = 0; i < times; ++i) {
      BoardHold hold;
      hold.key = {++last_, 1};
      hold.job_id = absl::StrCat("job-", last_);
      hold.project = "p";
      hold.worker_id = worker;
      hold.device_id = "gpu0";
      hold.group = group;
      hold.need = need;
      hold.work_us = work_minutes * 60 * kSecondUs;
      hold.load_milli = load_milli;
      board.AddHold(hold, kNowUs);
    }
  }
  // The worker that a job of that need would start on.
  std::string PlaceOf(const std::string& group, const Need& need) {
    Board asked = board;
    BoardJob job;
    job.number = last_ + 1;
    job.job_id = "asked";
    job.project = "p";
    job.shape = job.group = group;
    job.base = group;
    job.work_us = job.total_us = 60 * kSecondUs;
    job.load_milli = 1;
    asked.Enqueue(job);
    const NeedFn need_of = [&](int64_t, const Board::Device&) { return std::optional<Need>(need); };
    const BoardSchedule schedule = RunPass(asked, policy, need_of, kNowUs, int64_t{1} << 60, 10);
    if (schedule.starts.empty()) return "";
    const Board::Device& device = asked.devices()[static_cast<size_t>(schedule.starts[0].device)];
    return asked.workers()[static_cast<size_t>(device.worker)].id;
  }

  // Jobs that wait, each of a kind of its own.
  BoardJob JobOf(const std::string& name, int64_t work_minutes, int32_t priority = 0) {
    BoardJob job;
    job.number = 1'000 + static_cast<int64_t>(needs_.size());
    job.job_id = job.shape = job.group = job.base = name;
    job.project = "p";
    job.priority = priority;
    job.work_us = job.total_us = work_minutes * 60 * kSecondUs;
    job.load_milli = 1;
    return job;
  }
  int64_t Wait(const BoardJob& job, const Need& need) {
    needs_[job.number] = need;
    board.Enqueue(job);
    return job.number;
  }
  BoardSchedule Pass() {
    const NeedFn need_of = [&](int64_t number, const Board::Device&) {
      return std::optional<Need>(needs_.at(number));
    };
    return RunPass(board, policy, need_of, kNowUs, int64_t{1} << 60, 10);
  }
  const std::string& WorkerOf(int32_t device) const {
    return board.workers()[static_cast<size_t>(board.devices()[static_cast<size_t>(device)].worker)].id;
  }

  SchedulePolicy policy;
  Board board;

 private:
  int64_t last_ = 0;
  std::map<int64_t, Need> needs_;
};

TEST(Placement, TheTightestFitWhenNothingIsKnown) {
  Fleet fleet;
  fleet.Add("a", 400);
  fleet.Add("b", 300);
  EXPECT_EQ(fleet.PlaceOf("small", Fleet::Sized(0, 100)), "b");
}

// Nobody waits, but jobs of 250 run: on the tighter device no further one would find room.
TEST(Placement, LeavesRoomForJobsLikeThoseThatRun) {
  Fleet fleet;
  fleet.Add("a", 350);
  fleet.Add("b", 260);
  fleet.Add("full", 2'500);
  fleet.Run("full", "large", Fleet::Sized(0, 250), 10);
  EXPECT_EQ(fleet.PlaceOf("small", Fleet::Sized(0, 100)), "a");
  // Once they have ended the tightest fit is the best again.
  for (int64_t number = 1; number <= 10; ++number) fleet.board.RemoveHold({number, 1}, kNowUs);
  EXPECT_TRUE(fleet.board.held_sizes().empty());
  EXPECT_EQ(fleet.PlaceOf("small", Fleet::Sized(0, 100)), "b");
}

// Nothing runs, but jobs of 280 wait before another try: what the small one leaves is to be of use to them.
// Without them it goes to the tighter device: all sizes are whole thousandths, so no rounding decides.
TEST(Placement, LeavesRoomForJobsLikeThoseThatWait) {
  const auto place_of_small = [](int waiting) {
    Fleet fleet;
    fleet.Add("a", 400);
    fleet.Add("b", 300);
    for (int i = 0; i < waiting; ++i) {
      BoardJob large = fleet.JobOf(absl::StrCat("large-", i), 60);
      large.not_before_us = kNowUs + 1;
      large.shape = large.group = large.base = "large";
      const int64_t number = fleet.Wait(large, Fleet::Sized(0, 280));
      // Planned when it was made.
      fleet.board.buckets()[static_cast<size_t>(fleet.board.waiting().at(number).bucket)].needs = {
          std::optional<Need>(Fleet::Sized(0, 280))};
    }
    fleet.Wait(fleet.JobOf("small", 60), Fleet::Sized(0, 100));
    const BoardSchedule schedule = fleet.Pass();
    EXPECT_EQ(schedule.starts.size(), 1u);
    return schedule.starts.empty() ? "" : fleet.WorkerOf(schedule.starts[0].device);
  };
  EXPECT_EQ(place_of_small(0), "b");
  EXPECT_EQ(place_of_small(5), "a");
}

// What a worker's processes need is measured when it starts, so that each device may be of a kind of its own.
TEST(Placement, KnowsTheSameOfAllKindsOfDevices) {
  Fleet fleet;
  fleet.Add("a", 350, "profile-a");
  fleet.Add("b", 260, "profile-b");
  fleet.Add("full", 2'500, "profile-c");
  fleet.Run("full", "large", Fleet::Sized(0, 250), 10);
  EXPECT_EQ(fleet.PlaceOf("small", Fleet::Sized(0, 100)), "a");
}

// A job of an eighth of a small device or of a large one costs the fleet as many bytes.
TEST(Placement, AByteIsAByteOnEveryDevice) {
  Fleet fleet;
  fleet.Add("large", 1'000);
  fleet.Add("small", 290);
  fleet.Add("full", 3'000);
  fleet.Run("full", "half", Fleet::Sized(0, 300), 10);
  // On the small device what is used is of no use to any of them; on the large one room for a third is lost.
  EXPECT_EQ(fleet.PlaceOf("asked", Fleet::Sized(0, 150)), "small");
}

// Jobs of 200 run. The base is on both devices, so that the job adds 100: 500 free become 400, which two of
// 200 fill; 400 would become 300, of which 100 were lost.
TEST(Placement, LeavesWhatTypicalJobsFill) {
  Fleet fleet;
  fleet.Add("a", 650);
  fleet.Add("b", 750);
  fleet.Add("full", 4'000);
  fleet.Run("full", "other", Fleet::Sized(0, 200), 20);
  fleet.Run("a", "shared", Fleet::Sized(150, 100));
  fleet.Run("b", "shared", Fleet::Sized(150, 100));
  EXPECT_EQ(fleet.PlaceOf("shared", Fleet::Sized(150, 100)), "b");
  fleet.policy.rest_milli = 0;
  EXPECT_EQ(fleet.PlaceOf("shared", Fleet::Sized(150, 100)), "a") << "any job finds as much room as before";
}

// On "a" something runs for an hour; who needs nearly all of it comes first and waits for that. What would
// not fit beside it may use the hour, if it is over by then.
TEST(Placement, AReservedDeviceIsUsedUntilItsHolderMayStart) {
  const auto starts = [](int64_t work_minutes, int32_t load_milli) {
    Fleet fleet;
    fleet.Add("a", 200);
    fleet.Run("a", "x", Fleet::Sized(0, 150), 1, 60, load_milli);
    BoardJob behind = fleet.JobOf("behind", work_minutes);
    behind.load_milli = load_milli;
    fleet.Wait(behind, Fleet::Sized(0, 30));
    const int64_t first = fleet.Wait(fleet.JobOf("first", work_minutes, 1), Fleet::Sized(0, 190));
    const BoardSchedule schedule = fleet.Pass();
    EXPECT_EQ(schedule.reservations.front().number, first);
    EXPECT_EQ(schedule.reservations.front().start_us, kNowUs + 3600 * kSecondUs);
    return schedule.starts.size();
  };
  EXPECT_EQ(starts(58, 1), 1u);
  EXPECT_EQ(starts(60, 1), 0u) << "a minute is left for what predictions are wrong by";
  EXPECT_EQ(starts(29, 1'000), 1u);
  EXPECT_EQ(starts(40, 1'000), 0u) << "it would take turns with the other, and so twice as long";
}

// Each of several that cannot start has a device of its own to wait for, the first
// the one that is free first.
TEST(Placement, EachThatWaitsHasItsOwnReservation) {
  Fleet fleet;
  fleet.Add("a", 200);
  fleet.Add("b", 200);
  fleet.Run("a", "x", Fleet::Sized(0, 150), 1, 120);
  fleet.Run("b", "x", Fleet::Sized(0, 150), 1, 60);
  const int64_t first = fleet.Wait(fleet.JobOf("first", 600, 2), Fleet::Sized(0, 190));
  const int64_t second = fleet.Wait(fleet.JobOf("second", 600, 1), Fleet::Sized(0, 190));
  fleet.Wait(fleet.JobOf("third", 600), Fleet::Sized(0, 190));
  const BoardSchedule schedule = fleet.Pass();
  ASSERT_EQ(schedule.reservations.size(), 2u);
  EXPECT_EQ(schedule.reservations[0].number, first);
  EXPECT_EQ(fleet.WorkerOf(schedule.reservations[0].device), "b");
  EXPECT_EQ(schedule.reservations[1].number, second);
  EXPECT_EQ(fleet.WorkerOf(schedule.reservations[1].device), "a");
  EXPECT_EQ(schedule.reservations[1].start_us, kNowUs + 7200 * kSecondUs);
}

// Nothing is kept free where the job could not run: other numerics, or too many turns.
TEST(Placement, NothingIsReservedWhereTheJobCouldNotRun) {
  Fleet fleet;
  fleet.Add("a", 200);
  fleet.Run("a", "x", Fleet::Sized(0, 150));
  BoardJob strange = fleet.JobOf("strange", 60);
  strange.numerics = "others";
  fleet.Wait(strange, Fleet::Sized(0, 190));
  EXPECT_TRUE(fleet.Pass().reservations.empty());
  // Two run with half of the device's time each, a third of a quarter has to wait for both.
  Fleet busy;
  busy.policy.max_load_milli = 1'000;
  busy.board.SetPolicy(busy.policy);
  busy.Add("a", 1'000);
  busy.Run("a", "x", Fleet::Sized(0, 10), 1, 60, 800);
  busy.Run("a", "x", Fleet::Sized(0, 10), 1, 120, 200);
  BoardJob whole = busy.JobOf("whole", 60);
  whole.load_milli = 1'000;
  busy.Wait(whole, Fleet::Sized(0, 10));
  const BoardSchedule schedule = busy.Pass();
  EXPECT_TRUE(schedule.starts.empty());
  ASSERT_EQ(schedule.reservations.size(), 1u);
  EXPECT_EQ(schedule.reservations[0].start_us, kNowUs + 7200 * kSecondUs) << "one alone is always let in";
}

// A job that keeps a device busier than may be is let in where it is alone.
TEST(Placement, AloneOnADeviceAJobIsAlwaysLetIn) {
  Fleet fleet;
  fleet.policy.max_load_milli = 500;
  fleet.board.SetPolicy(fleet.policy);
  fleet.Add("a", 1'000);
  BoardJob busy = fleet.JobOf("busy", 60, 1);
  busy.load_milli = 1'000;
  fleet.Wait(busy, Fleet::Sized(0, 10));
  fleet.Wait(fleet.JobOf("idle", 60), Fleet::Sized(0, 10));
  const BoardSchedule schedule = fleet.Pass();
  ASSERT_EQ(schedule.starts.size(), 1u);
  EXPECT_EQ(schedule.starts[0].number, 1'000);
}

// Two that each want all of a device's time take twice as long.
TEST(Board, NeighboursTakeTurns) {
  Fleet fleet;
  fleet.Add("a", 200);
  fleet.Run("a", "x", Fleet::Sized(0, 10), 2, 60, 1'000);
  for (const auto& [end_us, key] : fleet.board.EndsOf(fleet.board.FindDevice("a", "gpu0")))
    EXPECT_EQ(end_us, kNowUs + 7200 * kSecondUs);
}

TEST(Board, KnowsTheSizesThatRunAndTheLargestDevice) {
  Fleet fleet;
  EXPECT_EQ(fleet.board.LargestBytes(), 0);
  fleet.Add("a", 300);
  fleet.Add("b", 800);
  EXPECT_EQ(fleet.board.LargestBytes(), 800 * kMB);
  fleet.Run("a", "x", Fleet::Sized(50, 30));
  fleet.Run("b", "x", Fleet::Sized(50, 30), 2);
  fleet.Run("b", "y", Fleet::Sized(0, 70));
  const std::map<int64_t, int32_t> sizes{{70 * kMB, 1}, {80 * kMB, 3}};
  EXPECT_EQ(fleet.board.held_sizes(), sizes) << "alone, so with the base each time";
  // A device that goes does not end what it held; one that is put again is counted once.
  fleet.board.RemoveDevice("b", "gpu0");
  EXPECT_EQ(fleet.board.LargestBytes(), 300 * kMB);
  EXPECT_EQ(fleet.board.held_sizes(), sizes);
  fleet.Add("a", 200);
  EXPECT_EQ(fleet.board.LargestBytes(), 200 * kMB);
  fleet.board.RemoveHold({1, 1}, kNowUs);
  fleet.board.RemoveHold({4, 1}, kNowUs);
  EXPECT_EQ(fleet.board.held_sizes(), (std::map<int64_t, int32_t>{{80 * kMB, 2}}));
}

// Sizes and capacities at the bounds of what is accepted neither overflow nor leave the tables.
TEST(Placement, HugeSizesAreWeighedWithoutOverflow) {
  Fleet fleet;
  constexpr int64_t kHugeMb = (int64_t{1} << 50) / kMB;
  fleet.Add("huge", 4 * kHugeMb);
  fleet.Add("tiny", 1);
  fleet.Run("huge", "x", Fleet::Sized(kHugeMb, kHugeMb));
  fleet.Run("tiny", "y", Fleet::Sized(0, 0));
  EXPECT_EQ(fleet.PlaceOf("z", Fleet::Sized(kHugeMb, 0)), "huge");
  EXPECT_EQ(fleet.PlaceOf("z", Fleet::Sized(0, 1)), "tiny");
  EXPECT_EQ(fleet.PlaceOf("z", Fleet::Sized(kHugeMb, 4 * kHugeMb)), "");
}

}  // namespace
}  // namespace nibble::core

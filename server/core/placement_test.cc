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
  void Run(const std::string& worker, const std::string& group, const Need& need, int times = 1) {
    for (int i = 0; i < times; ++i) {
      BoardHold hold;
      hold.key = {++last_, 1};
      hold.job_id = absl::StrCat("job-", last_);
      hold.project = "p";
      hold.worker_id = worker;
      hold.device_id = "gpu0";
      hold.group = group;
      hold.need = need;
      hold.work_us = 3600 * kSecondUs;
      hold.load_milli = 1;
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

  SchedulePolicy policy;
  Board board;

 private:
  int64_t last_ = 0;
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
  const auto starts = [](int64_t work_minutes) {
    Fleet fleet;
    fleet.Add("a", 200);
    fleet.Run("a", "x", Fleet::Sized(0, 150));
    const std::map<std::string, Need> needs{{"first", Fleet::Sized(0, 190)}, {"behind", Fleet::Sized(0, 30)}};
    std::map<int64_t, Need> by_number;
    for (const auto& [name, need] : needs) {
      BoardJob job;
      job.number = 100 + static_cast<int64_t>(by_number.size());
      job.job_id = job.shape = job.group = job.base = name;
      job.project = "p";
      job.priority = name == "first" ? 1 : 0;
      job.work_us = job.total_us = work_minutes * 60 * kSecondUs;
      job.load_milli = 1;
      by_number[job.number] = need;
      fleet.board.Enqueue(job);
    }
    const NeedFn need_of = [&](int64_t number, const Board::Device&) {
      return std::optional<Need>(by_number.at(number));
    };
    const BoardSchedule schedule =
        RunPass(fleet.board, fleet.policy, need_of, kNowUs, int64_t{1} << 60, 10);
    EXPECT_EQ(schedule.reservations.front().number, 101);
    EXPECT_EQ(schedule.reservations.front().start_us, kNowUs + 3600 * kSecondUs);
    return schedule.starts.size();
  };
  EXPECT_EQ(starts(58), 1u);
  EXPECT_EQ(starts(60), 0u) << "a minute is left for what predictions are wrong by";
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

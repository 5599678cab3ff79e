// Places in the queue, counted without going through it, against the order itself; and who is named.
#include "server/core/queue_look.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <random>

#include "absl/strings/str_cat.h"
#include "server/core/testing/driver.h"

namespace nibble::core {
namespace {

using testing::Driver;
using testing::kMB;
using ::testing::HasSubstr;

constexpr int64_t kHourUs = 3600 * kSecondUs;

// 1 GiB of base and 256 MiB of its own for each shape's number.
std::optional<Need> NeedOf(const Board& board, int64_t number) {
  const Board::Waiting& w = board.waiting().at(number);
  Need need;
  need.base_bytes = int64_t{1} << 30;
  need.persistent_bytes =
      (board.buckets()[static_cast<size_t>(w.bucket)].shape.back() - '0') * (int64_t{1} << 28);
  return need;
}

Board FullBoard(int32_t projects, int32_t shapes_of_each, int32_t jobs, std::mt19937& rng) {
  Board board;
  SchedulePolicy policy;
  policy.projects["p1"].weight = 3;
  board.SetPolicy(policy);
  board.PutWorker({"w", true, 0});
  for (int i = 0; i < 8; ++i) board.PutDevice("w", absl::StrCat("d", i), "kind", "any", int64_t{64} << 30);
  for (int32_t i = 0; i < jobs; ++i) {
    const auto project = static_cast<int32_t>(rng() % static_cast<uint32_t>(projects));
    BoardJob job;
    job.number = i;
    job.job_id = absl::StrCat("j", i);
    job.project = absl::StrCat("p", project);
    const auto shape = static_cast<int32_t>(rng() % static_cast<uint32_t>(shapes_of_each));
    job.shape = absl::StrCat("s", 1 + (project + shape) % 4);
    job.group = job.base = "base";
    job.priority = static_cast<int32_t>(rng() % 3);
    job.queued_us = static_cast<int64_t>(rng() % 20) * kHourUs;
    job.work_us = static_cast<int64_t>(rng() % 100) * 60 * kSecondUs;
    job.load_milli = 250 * (1 + project % 2);
    job.started = rng() % 5 == 0;
    board.Enqueue(job);
  }
  // Every kind has been planned.
  for (const auto& [number, w] : board.waiting()) {
    const Board::Bucket& bucket = board.buckets()[static_cast<size_t>(w.bucket)];
    bucket.needs = {std::optional<Need>(NeedOf(board, number))};
  }
  return board;
}

// With the jobs of each project alike, and with all of one project, however many kinds it has: exactly.
TEST(QueuePlaces, AreThoseOfTheOrder) {
  std::mt19937 rng(7);
  for (const auto& [projects, shapes] : {std::pair{1, 4}, std::pair{5, 1}}) {
    SCOPED_TRACE(absl::StrCat(projects, " projects of ", shapes, " kinds"));
    const Board board = FullBoard(projects, shapes, 700, rng);
    for (const int64_t now_us : {int64_t{0}, 22 * kHourUs, 100 * kHourUs}) {
      const std::vector<int64_t> order = OrderOf(board, now_us, std::numeric_limits<size_t>::max());
      ASSERT_EQ(order.size(), 700u);
      for (size_t i = 0; i < order.size(); ++i) {
        ASSERT_EQ(JobsBefore(board, now_us, order[i]), static_cast<int64_t>(i))
            << "at " << now_us / kHourUs << " h";
      }
      EXPECT_EQ(OrderOf(board, now_us, 10), std::vector<int64_t>(order.begin(), order.begin() + 10));
    }
  }
}

// Several kinds in several projects: an estimate, off by no more than kinds differ.
TEST(QueuePlaces, AreNearTheOrderWhereJobsDiffer) {
  std::mt19937 rng(8);
  const Board board = FullBoard(4, 3, 2'000, rng);
  const std::vector<int64_t> order = OrderOf(board, 30 * kHourUs, std::numeric_limits<size_t>::max());
  for (size_t i = 0; i < order.size(); ++i)
    EXPECT_NEAR(static_cast<double>(JobsBefore(board, 30 * kHourUs, order[i])), static_cast<double>(i), 100);
}

TEST(QueuePlaces, OfWhatDoesNotWaitAreZero) {
  Driver d;
  d.AddWorker("w1", 125 * kMB);
  d.Must(Driver::JobOf("a"));
  d.Must(Driver::JobOf("b"));
  d.Place();
  QueueLook look(d.state(), d.core(), d.Now().monotonic_us);
  EXPECT_EQ(look.PlaceOf(d.job("a")), 0);
  EXPECT_EQ(look.PlaceOf(d.job("b")), 1);
}

// What is kept with a job is for its own project, so a claimant of another one has no name there.
TEST(Preemption, NamesOnlyAClaimantOfTheSameProject) {
  for (const char* project : {"default", "theirs"}) {
    SCOPED_TRACE(project);
    Driver d;
    d.core().options.max_attempts_per_device = 1;
    d.Must(ServerStart{"timeline-1"});
    for (const char* worker : {"w1", "w2", "w3"}) d.AddWorker(worker);
    for (const char* id : {"v1", "v2", "v3"}) {
      CreateJob victim = Driver::JobOf(id);
      victim.spec.max_steps = 1'000'000'000;
      d.Must(victim);
    }
    d.Place();
    d.Advance(d.core().options.min_run_us + kSecondUs);
    for (const char* worker : {"w1", "w2", "w3"}) d.Must(Synchronize(d.SyncOf(worker)));
    CreateJob claimant = Driver::JobOf("claimant");
    claimant.tenant = project;
    claimant.spec.max_steps = 1;
    d.Must(claimant);
    d.Place();
    std::string why;
    for (const char* id : {"v1", "v2", "v3"}) why += d.job(id).attempts.at(1).release_reason;
    const bool same = std::string_view(project) == "default";
    EXPECT_THAT(why, HasSubstr(same ? "jobs/claimant" : QueueLook::kHidden));
    EXPECT_EQ(why.find("claimant") != std::string::npos, same) << why;
  }
}

}  // namespace
}  // namespace nibble::core

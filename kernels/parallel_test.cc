#include "kernels/parallel.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <cstdlib>
#include <numeric>
#include <thread>
#include <vector>

namespace nibble::kernels {
namespace {

TEST(ThreadPool, EveryPieceOnceOnAKnownThread) {
  for (const int threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    for (const int64_t pieces : {0, 1, 2, 5, 100, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(pieces));
      std::atomic<bool> bad{false};
      pool.Run(pieces, [&](int64_t piece, int thread) {
        seen[static_cast<size_t>(piece)].fetch_add(1);
        if (thread < 0 || thread >= threads) bad = true;
      });
      for (const auto& count : seen) EXPECT_EQ(count.load(), 1);
      EXPECT_FALSE(bad);
    }
  }
}

TEST(ThreadPool, ManySmallRunsInARow) {
  ThreadPool pool(4);
  int64_t total = 0;
  for (int run = 0; run < 20000; ++run) {
    int64_t parts[3] = {};
    pool.Run(3, [&](int64_t piece, int) { parts[piece] = piece + run; });
    total += parts[0] + parts[1] + parts[2];
  }
  EXPECT_EQ(total, 3 * (20000ll * 19999 / 2) + 3 * 20000);
}

TEST(ThreadPool, NoTwoPiecesOfOneThreadAtOnce) {
  ThreadPool pool(4);
  std::atomic<int> inside[4] = {};
  std::atomic<bool> bad{false};
  pool.Run(5000, [&](int64_t, int thread) {
    if (inside[thread].fetch_add(1) != 0) bad = true;
    inside[thread].fetch_sub(1);
  });
  EXPECT_FALSE(bad);
}

// As in two engine processes on one machine: more threads than cores, and nobody's result changes.
TEST(ThreadPool, PoolsBesideEachOtherComputeWhatEachDoesAlone) {
  const auto work = [](int threads) {
    ThreadPool pool(threads);
    std::vector<double> values(4096, 1), sums(64);
    for (int run = 0; run < 500; ++run) {
      pool.Run(64, [&](int64_t piece, int) {
        double sum = 0;
        for (int64_t i = piece * 64; i < (piece + 1) * 64; ++i) {
          values[static_cast<size_t>(i)] = values[static_cast<size_t>(i)] * 0.999 + static_cast<double>(i);
          sum += values[static_cast<size_t>(i)];
        }
        sums[static_cast<size_t>(piece)] += sum;
      });
    }
    return std::accumulate(sums.begin(), sums.end(), 0.0);
  };
  const double alone = work(1);
  std::vector<double> together(4);
  {
    std::vector<std::thread> jobs;
    for (double& result : together) jobs.emplace_back([&] { result = work(3); });
    for (std::thread& job : jobs) job.join();
  }
  for (const double result : together) EXPECT_EQ(result, alone);
}

// A stack larger than the address space stands for a system that has no thread to give.
TEST(ThreadPool, FewerThreadsWhereTheSystemHasNoMore) {
  pthread_attr_t before, attributes;
  ASSERT_EQ(pthread_getattr_default_np(&before), 0);
  ASSERT_EQ(pthread_getattr_default_np(&attributes), 0);
  ASSERT_EQ(pthread_attr_setstacksize(&attributes, size_t{1} << 50), 0);
  ASSERT_EQ(pthread_setattr_default_np(&attributes), 0);
  ThreadPool pool(4);
  ASSERT_EQ(pthread_setattr_default_np(&before), 0);
  EXPECT_EQ(pool.threads(), 1);
  int64_t sum = 0;
  pool.Run(10, [&](int64_t piece, int) { sum += piece; });
  EXPECT_EQ(sum, 45);
  pthread_attr_destroy(&attributes);
  pthread_attr_destroy(&before);
}

// How many processors each thread of a pool may use.
std::vector<int> ProcessorsOf(int threads, Placement placement) {
  std::vector<int> counts(static_cast<size_t>(threads));
  // A thread of its own: a pinned caller stays pinned.
  std::thread([&] {
    ThreadPool pool(threads, placement);
    std::atomic<int> arrived{0};
    pool.Run(threads, [&](int64_t, int thread) {
      ++arrived;
      while (arrived < threads) std::this_thread::yield();  // so that each thread takes one piece
      cpu_set_t set;
      CPU_ZERO(&set);
      ASSERT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
      counts[static_cast<size_t>(thread)] = CPU_COUNT(&set);
    });
  }).join();
  return counts;
}

TEST(ThreadPool, IsPinnedOnlyWhenAsked) {
  cpu_set_t set;
  CPU_ZERO(&set);
  ASSERT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
  EXPECT_EQ(ProcessorsOf(3, Placement::kFree), std::vector<int>(3, CPU_COUNT(&set)));
  EXPECT_EQ(ProcessorsOf(3, Placement::kPinned), std::vector<int>(3, 1));
  EXPECT_EQ(ProcessorsOf(3, Placement::kFree), std::vector<int>(3, CPU_COUNT(&set))) << "after a pinned one";

  unsetenv("NIBBLE_PIN_THREADS");
  EXPECT_EQ(AskedPlacement(), Placement::kFree);
  setenv("NIBBLE_PIN_THREADS", "1", 1);
  EXPECT_EQ(AskedPlacement(), Placement::kPinned);
  unsetenv("NIBBLE_PIN_THREADS");
}

}  // namespace
}  // namespace nibble::kernels

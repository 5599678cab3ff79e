#include "kernels/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
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

}  // namespace
}  // namespace nibble::kernels

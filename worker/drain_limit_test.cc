// When a worker that is to go waits no longer.
#include "worker/drain_limit.h"

#include <gtest/gtest.h>

namespace nibble::worker {
namespace {

constexpr int64_t kSecondUs = 1'000'000;

TEST(DrainLimit, IsLongerWhileThereIsSomethingToHandOver) {
  DrainLimit idle, busy;
  EXPECT_FALSE(idle.Passed(0, 900 * kSecondUs)) << "nobody has asked it to go";
  idle.Begin(1'000 * kSecondUs);
  busy.Begin(1'000 * kSecondUs);
  EXPECT_FALSE(idle.Passed(0, 1'000 * kSecondUs));
  EXPECT_FALSE(busy.Passed(2, 1'006 * kSecondUs));
  EXPECT_TRUE(idle.Passed(0, 1'006 * kSecondUs));
  EXPECT_TRUE(busy.Passed(2, 1'121 * kSecondUs));
}

TEST(DrainLimit, OnceAllIsTakenTheServerHasTimeToHearOfIt) {
  DrainLimit limit;
  limit.Begin(1'000 * kSecondUs);
  EXPECT_FALSE(limit.Passed(1, 1'040 * kSecondUs));
  EXPECT_FALSE(limit.Passed(0, 1'041 * kSecondUs)) << "only just";
  EXPECT_FALSE(limit.Passed(0, 1'045 * kSecondUs));
  EXPECT_TRUE(limit.Passed(0, 1'047 * kSecondUs));
}

}  // namespace
}  // namespace nibble::worker

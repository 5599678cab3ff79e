// How long somebody who asks now and then has been looked after.
#include "worker/awake_limit.h"

#include <gtest/gtest.h>

namespace nibble::worker {
namespace {

TEST(AwakeLimit, DoesNotCountWhatWasSleptThrough) {
  AwakeLimit limit(/*limit_us=*/100, /*sleep_us=*/15, /*now_us=*/1'000);
  EXPECT_FALSE(limit.Passed(1'014));
  EXPECT_FALSE(limit.Passed(9'014));
  int64_t now_us = 9'014;
  while (!limit.Passed(now_us)) now_us += 10;
  EXPECT_GE(now_us, 9'100);
  EXPECT_LT(now_us, 9'110);
  AwakeLimit all(100, 0, 1'000);
  EXPECT_TRUE(all.Passed(9'014));
}

}  // namespace
}  // namespace nibble::worker

#include "server/trouble_log.h"

#include <gtest/gtest.h>

namespace nibble::server {
namespace {

using Say = TroubleLog::Say;
constexpr int64_t kTickUs = 1'000'000;  // a second

TEST(TroubleLog, SaysSoOnceAMinuteAndWhenItHasEnded) {
  TroubleLog log;
  int fails = 0;
  EXPECT_EQ(log.Note("append", false, 0).say, Say::kNothing);
  for (int64_t s = 1; s <= 150; ++s) fails += log.Note("append", true, s * kTickUs).say == Say::kFails;
  EXPECT_EQ(fails, 3);
  EXPECT_EQ(log.Note("finish", true, 151 * kTickUs).say, Say::kFails) << "each for itself";
  EXPECT_EQ(log.Note("append", false, 152 * kTickUs).say, Say::kNothing);
  const TroubleLog::Verdict mended = log.Note("append", false, 181 * kTickUs);
  EXPECT_EQ(mended.say, Say::kWorksAgain);
  EXPECT_EQ(mended.after_us, 149 * kTickUs);
  EXPECT_EQ(log.Note("append", false, 182 * kTickUs).say, Say::kNothing);
}

// A full disk has room for the small file of a checkpoint, and not for the large one after it.
TEST(TroubleLog, WhatWorksNowAndThenStillFails) {
  TroubleLog log;
  int said = 0;
  for (int64_t s = 1; s <= 120; ++s) said += log.Note("begin", s % 2 == 0, s * kTickUs).say != Say::kNothing;
  EXPECT_EQ(said, 2);
}

}  // namespace
}  // namespace nibble::server

#include "server/store_health.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace nibble::server {
namespace {

using testing::HasSubstr;

constexpr int64_t kSecondUs = 1'000'000;

TEST(StoreHealth, WarnsWhileWritingFails) {
  StoreHealth health;
  EXPECT_EQ(health.Trouble(0), "");
  const absl::Status full = Error(Reason::kStorageFull, "no space left on /secret/path");
  health.Note("commit", absl::OkStatus(), 1 * kSecondUs);
  EXPECT_EQ(health.Trouble(1 * kSecondUs), "");
  health.Note("append_metrics", full, 2 * kSecondUs);
  health.Note("append_metrics", full, 20 * kSecondUs);
  const std::string trouble = health.Trouble(22 * kSecondUs);
  EXPECT_THAT(trouble, HasSubstr("cannot write its database, its disk is full (for 20 s)"));
  EXPECT_THAT(trouble, testing::Not(HasSubstr("/secret")));
  // One that works says nothing of the other.
  health.Note("commit", absl::OkStatus(), 23 * kSecondUs);
  EXPECT_NE(health.Trouble(23 * kSecondUs), "");
  health.Note("append_metrics", absl::OkStatus(), 24 * kSecondUs);
  EXPECT_EQ(health.Trouble(24 * kSecondUs), "");
}

TEST(StoreHealth, WhatNobodyTriesAgainIsNotKnown) {
  StoreHealth health;
  health.Note("commit", Error(Reason::kStoreUnavailable, "I/O error"), 0);
  EXPECT_THAT(health.Trouble(30 * kSecondUs), HasSubstr("cannot write its database (for 30 s)"));
  EXPECT_EQ(health.Trouble(31 * kSecondUs), "");
  health.Note("commit", Error(Reason::kStoreUnavailable, "I/O error"), 40 * kSecondUs);
  EXPECT_THAT(health.Trouble(41 * kSecondUs), HasSubstr("(for 41 s)"));
}

}  // namespace
}  // namespace nibble::server

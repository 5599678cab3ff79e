// An excerpt in parts is the excerpt at once.
#include "server/core/excerpt.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "server/core/schedule_sync.h"
#include "server/core/testing/driver.h"

namespace nibble::core {
namespace {

using testing::Driver;
using testing::kMB;

class ExcerptTest : public ::testing::Test {
 protected:
  ExcerptTest() {
    for (int i = 0; i < 5; ++i) driver_.AddWorker(absl::StrCat("w", i), 250 * kMB);
    for (int i = 0; i < 12; ++i) driver_.Must(Driver::JobOf(absl::StrCat("j", i)));
    driver_.Place();
    for (int i = 0; i < 40; ++i) driver_.mutable_state().learned[absl::StrCat("plan", i)][0].step_us = i + 1;
  }
  const Model& model() const { return driver_.state().models.at("base"); }

  Driver driver_;
};

TEST_F(ExcerptTest, InPartsItIsTheSameAsAtOnce) {
  Excerpt at_once(model());
  ASSERT_TRUE(at_once.Copy(driver_.state(), SIZE_MAX));
  const State whole = std::move(at_once).Take(7);
  EXPECT_EQ(whole.workers.size(), 5u);
  EXPECT_GT(whole.jobs.size(), 4u) << "those that run";
  EXPECT_TRUE(whole.queued_jobs.empty()) << "and none that waits";
  Excerpt excerpt(model());
  int parts = 1;
  while (!excerpt.Copy(driver_.state(), 3)) ++parts;
  EXPECT_GE(parts, 40 / 3 + 2);
  const State joined = std::move(excerpt).Take(7);
  EXPECT_TRUE(joined.workers == whole.workers);
  EXPECT_TRUE(joined.jobs == whole.jobs);
  EXPECT_TRUE(joined.models == whole.models);
  EXPECT_TRUE(joined.learned == whole.learned);
  EXPECT_EQ(joined.holding, whole.holding);
  EXPECT_EQ(joined.board.Dump(), whole.board.Dump());
}

// The fleet goes on between parts: jobs end, workers come and go.
TEST_F(ExcerptTest, WhatChangesMeanwhileLeavesItSound) {
  Excerpt excerpt(model());
  bool all = excerpt.Copy(driver_.state(), 42);  // the learned, and the first worker
  ASSERT_FALSE(all);
  const std::string job = driver_.state().holding.at("w0").begin()->first;
  driver_.Must(ReportReleased{driver_.FenceOf(job), 0});
  driver_.Must(Synchronize(driver_.SyncOf("w0")));
  driver_.AddWorker("a-new-one", 250 * kMB);
  driver_.Place();
  for (int i = 0; !all; ++i) {
    ASSERT_LT(i, 10);
    all = excerpt.Copy(driver_.state(), 1);
  }
  const State fleet = std::move(excerpt).Take(driver_.Now().monotonic_us);
  EXPECT_EQ(fleet.workers.count("a-new-one"), 0u) << "its place in the order had been passed";
  for (const auto& [worker, held] : fleet.holding) EXPECT_EQ(fleet.workers.count(worker), 1u) << worker;
  EXPECT_TRUE(fleet.CheckInvariants({}).ok()) << fleet.CheckInvariants({});
}

}  // namespace
}  // namespace nibble::core

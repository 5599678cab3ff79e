#include "engine/region.h"

#include <csignal>
#include <cstring>

#include "gtest/gtest.h"

namespace nibble::engine {
namespace {

TEST(Region, CountsTouchedPages) {
  auto region = Region::Reserve(int64_t{1} << 30);
  ASSERT_TRUE(region.ok());
  ASSERT_TRUE(region->Map(100 * 4096).ok());
  EXPECT_EQ(region->TouchedBytes(), 0);
  std::memset(region->data() + 10 * 4096, 1, 3 * 4096);
  EXPECT_EQ(region->TouchedBytes(), 3 * 4096);
  EXPECT_EQ(region->TouchedBytes(11 * 4096), 4096);
}

TEST(Region, GivesMemoryBackAndComesBackZeroed) {
  auto region = Region::Reserve(1 << 20);
  ASSERT_TRUE(region->Map(5000).ok());
  EXPECT_EQ(region->mapped_bytes(), 8192);
  std::byte* const at = region->data();
  at[4999] = std::byte{7};
  region->Unmap();
  EXPECT_EQ(region->mapped_bytes(), 0);
  ASSERT_TRUE(region->Map(1 << 20).ok());
  EXPECT_EQ(region->data(), at);
  EXPECT_EQ(at[4999], std::byte{0});
}

TEST(Region, WhatIsLeftKeepsItsContents) {
  auto region = Region::Reserve(1 << 20);
  ASSERT_TRUE(region->Map(10 * 4096).ok());
  std::memset(region->data(), 1, 10 * 4096);
  region->Shrink(3 * 4096 - 5);
  EXPECT_EQ(region->mapped_bytes(), 3 * 4096);
  EXPECT_EQ(region->TouchedBytes(), 3 * 4096);
  EXPECT_EQ(region->data()[3 * 4096 - 1], std::byte{1});
  region->Shrink(1 << 20);  // it is smaller already
  EXPECT_EQ(region->mapped_bytes(), 3 * 4096);
}

TEST(RegionDeathTest, AWriteBehindThePlanFaults) {
  auto region = Region::Reserve(1 << 20);
  ASSERT_TRUE(region->Map(4096).ok());
  volatile std::byte* const data = region->data();
  // Without a sanitizer's report: run_tests.py takes every one for a finding.
  EXPECT_DEATH({ std::signal(SIGSEGV, SIG_DFL); data[4096] = std::byte{1}; }, "");
}

}  // namespace
}  // namespace nibble::engine

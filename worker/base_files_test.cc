#include "worker/base_files.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"

namespace nibble::worker {
namespace {

class BaseFilesTest : public testing::Test {
 protected:
  // A base of one block, last used at that second.
  std::string Add(char digit, int64_t used_s, const std::string& suffix = "") {
    const std::string path = dir_.Join("base-" + std::string(64, digit) + suffix);
    EXPECT_TRUE(WriteFileAtomic(path, std::string(kBytes, 'x')).ok());
    const struct timespec times[2] = {{used_s, 0}, {used_s, 0}};
    EXPECT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
    return path;
  }
  static constexpr int64_t kBytes = 1 << 16;
  TempDir dir_;
};

TEST_F(BaseFilesTest, TheLeastRecentlyUsedGoUntilTheBoundHolds) {
  const std::string oldest = Add('a', 100), newest = Add('b', 300), middle = Add('c', 200);
  const std::string memo = dir_.Join("digest-" + std::string(64, 'a'));
  ASSERT_TRUE(WriteFileAtomic(memo, "kept").ok());
  EXPECT_EQ(ShrinkBases(dir_.path(), 3 * kBytes), 3 * kBytes);
  EXPECT_EQ(ShrinkBases(dir_.path(), 2 * kBytes), 2 * kBytes);
  EXPECT_FALSE(FileExists(oldest));
  EXPECT_EQ(ShrinkBases(dir_.path(), kBytes), kBytes);
  EXPECT_FALSE(FileExists(middle));
  EXPECT_TRUE(FileExists(newest) && FileExists(memo));
}

TEST_F(BaseFilesTest, WhatAnEngineHasOpenStays) {
  const std::string used = Add('a', 100), making = Add('b', 100, ".tmp");
  const std::string idle = Add('c', 200), left = Add('d', 100, ".tmp");
  const int reader = open(used.c_str(), O_RDONLY | O_CLOEXEC);
  const int maker = open(making.c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_EQ(flock(reader, LOCK_SH), 0);
  ASSERT_EQ(flock(maker, LOCK_EX), 0);
  EXPECT_EQ(ShrinkBases(dir_.path(), 0), 2 * kBytes);
  EXPECT_TRUE(FileExists(used) && FileExists(making));
  EXPECT_FALSE(FileExists(idle) || FileExists(left));
  close(reader);
  close(maker);
  EXPECT_EQ(ShrinkBases(dir_.path(), 0), 0);
}

}  // namespace
}  // namespace nibble::worker

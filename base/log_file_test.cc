#include "base/log_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "base/file.h"

namespace nibble {
namespace {

TEST(LogFile, WhoeverAppendsGoesOnInTheNewOne) {
  const TempDir dir;
  const std::string path = dir.Join("engine.log");
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  ASSERT_EQ(write(fd, "first\n", 6), 6);
  CutLogFile(path, 6);
  EXPECT_FALSE(FileExists(path + ".1"));
  ASSERT_EQ(write(fd, "second\n", 7), 7);
  CutLogFile(path, 12);
  ASSERT_EQ(write(fd, "third\n", 6), 6);
  close(fd);
  EXPECT_EQ(*ReadFile(path + ".1"), "irst\nsecond\n") << "and no more than the bound";
  EXPECT_EQ(*ReadFile(path), "third\n");
}

// Of before it was looked at, or written in a loop between two looks; most of it a hole, which costs nothing.
TEST(LogFile, OneThatHasGrownBeyondWhatIsReadAtOnceIsCutToo) {
  const TempDir dir;
  const std::string path = dir.Join("engine.log");
  ASSERT_TRUE(WriteFileAtomic(path, "").ok());
  ASSERT_EQ(truncate(path.c_str(), int64_t{40} << 30), 0);
  CutLogFile(path, 4096);
  EXPECT_EQ(*FileSizeBytes(path + ".1"), 4096);
  EXPECT_EQ(*FileSizeBytes(path), 0);
}

TEST(LogFile, OneThatCannotBeKeptIsCutAllTheSame) {
  const TempDir dir;
  const std::string path = dir.Join("engine.log");
  ASSERT_TRUE(WriteFileAtomic(path, "too long").ok());
  ASSERT_TRUE(MakeDirs(path + ".1/in the way").ok());
  CutLogFile(path, 4);
  EXPECT_EQ(*ReadFile(path), "");
}

}  // namespace
}  // namespace nibble

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
  CutLogFile(path, 6);
  ASSERT_EQ(write(fd, "third\n", 6), 6);
  close(fd);
  EXPECT_EQ(*ReadFile(path + ".1"), "first\nsecond\n");
  EXPECT_EQ(*ReadFile(path), "third\n");
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

#include "worker/memory_kills.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file.h"

namespace nibble::worker {
namespace {

using testing::HasSubstr;

class MemoryKillsTest : public testing::Test {
 protected:
  void Write(const std::string& path, const std::string& text) {
    const std::string full = dir_.path() + path;
    ASSERT_TRUE(MakeDirs(DirName(full)).ok());
    ASSERT_TRUE(WriteFileAtomic(full, text).ok());
  }
  MemoryKills Count() { return CountMemoryKills(dir_.path()); }
  TempDir dir_;
};

TEST_F(MemoryKillsTest, AreThoseOfTheOwnGroup) {
  EXPECT_EQ(Count().group, -1);
  EXPECT_EQ(Count().machine, -1);
  Write("/proc/vmstat", "nr_free_pages 100\noom_kill 7\n");
  Write("/proc/self/cgroup", "0::/system.slice/nibble-worker.service\n");
  Write("/sys/fs/cgroup/system.slice/memory.events", "low 0\noom 5\noom_kill 5\n");
  Write("/sys/fs/cgroup/system.slice/nibble-worker.service/memory.events",
        "low 0\nhigh 0\nmax 90\noom 4\noom_kill 2\noom_group_kill 0\n");
  EXPECT_EQ(Count().group, 2) << "not of those around it, in which others are killed";
  EXPECT_EQ(Count().machine, 7);
  // From within a container: a path of the host, and the mount is its own group.
  Write("/proc/self/cgroup", "0::/docker/1\n");
  Write("/sys/fs/cgroup/memory.events", "oom_kill 3\n");
  EXPECT_EQ(Count().group, 3);
  Write("/proc/self/cgroup", "4:memory:/docker/1\n0::/\n");
  Write("/sys/fs/cgroup/memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n");
  EXPECT_EQ(Count().group, 1);
}

// Killed between its last words and the count: the count has its own death.
TEST(KillsBefore, AreThoseThatTheProcessOutlived) {
  KillsBefore before({2, 7});
  EXPECT_EQ(before.outlived().group, 2);
  before.Heard();
  before.Counted({3, 8}, /*nothing_unread=*/true);
  EXPECT_TRUE(CauseOfKill(before.outlived(), {3, 8}).out_of_memory);
  // It speaks again: another was killed then.
  before.Heard();
  EXPECT_FALSE(CauseOfKill(before.outlived(), {3, 8}).out_of_memory);
  // What was on its way before the count proves nothing.
  before.Counted({4, 9}, /*nothing_unread=*/false);
  before.Heard();
  EXPECT_TRUE(CauseOfKill(before.outlived(), {4, 9}).out_of_memory);
}

TEST(CauseOfKill, SaysWhatItWasJudgedBy) {
  const auto words = [](MemoryKills before, MemoryKills after, bool out_of_memory) {
    const KillCause cause = CauseOfKill(before, after);
    EXPECT_EQ(cause.out_of_memory, out_of_memory) << cause.words;
    return cause.words;
  };
  EXPECT_THAT(words({2, 7}, {3, 8}, true), HasSubstr("oom_kill count of its cgroup rose from 2 to 3"));
  // Somebody else's process was killed for memory while somebody killed ours.
  EXPECT_THAT(words({2, 7}, {2, 8}, false), HasSubstr("someone: the oom_kill count of its cgroup is"));
  EXPECT_THAT(words({-1, 7}, {-1, 8}, true), HasSubstr("machine's oom_kill count rose from 7 to 8"));
  EXPECT_THAT(words({-1, 7}, {-1, 7}, false), HasSubstr("someone: this machine's oom_kill count is"));
  EXPECT_THAT(words({-1, -1}, {-1, -1}, false), HasSubstr("does not count such kills"));
}

}  // namespace
}  // namespace nibble::worker

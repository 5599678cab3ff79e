#include "worker/engine_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/file.h"
#include "worker/engine_line.h"

namespace nibble::worker {
namespace {

// Collects what comes and lets a test wait for it.
class Listener {
 public:
  EngineProcess::Callbacks callbacks() {
    return {[this](std::string_view line) {
              std::lock_guard lock(mutex_);
              lines_.emplace_back(line);
              changed_.notify_all();
              return line.find("hello there") == std::string_view::npos;
            },
            [this](const ProcessExit& exit) {
              std::lock_guard lock(mutex_);
              exit_ = exit;
              exited_ = true;
              changed_.notify_all();
            }};
  }
  bool WaitForLines(size_t count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20),
                             [&] { return lines_.size() >= count; });
  }
  ProcessExit WaitForExit() {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, std::chrono::seconds(20), [&] { return exited_; }));
    return exit_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> lines_;
  ProcessExit exit_;
  bool exited_ = false;
};

class EngineProcessTest : public testing::Test {
 protected:
  std::unique_ptr<EngineProcess> StartEngine(std::vector<std::string> arguments,
                                             std::chrono::milliseconds exit_time = EngineProcess::kExitTime) {
    auto process = EngineProcess::Start(arguments, dir_.Join("log"), listener_.callbacks(), exit_time);
    EXPECT_TRUE(process.ok()) << process.status();
    return process.ok() ? std::move(*process) : nullptr;
  }
  TempDir dir_;
  Listener listener_;
};

TEST_F(EngineProcessTest, SpeaksAndEndsWhenTold) {
  const auto engine = StartEngine({NIBBLE_FAKE_ENGINE, "serve", "--fd", "3"});
  ASSERT_TRUE(listener_.WaitForLines(2));
  ASSERT_TRUE(engine->Send(ShutdownLine()).ok());
  const ProcessExit exit = listener_.WaitForExit();
  EXPECT_EQ(exit.code, 0);
  EXPECT_EQ(exit.message, "ended with code 0");
}

TEST_F(EngineProcessTest, KillIsNoticedAndIsNotTakenForWantOfMemory) {
  const auto engine = StartEngine({NIBBLE_FAKE_ENGINE, "serve", "--fd", "3"});
  ASSERT_TRUE(listener_.WaitForLines(1));
  engine->Kill();
  const ProcessExit exit = listener_.WaitForExit();
  EXPECT_EQ(exit.code, -1);
  EXPECT_EQ(exit.message, "was ended by signal 9 (Killed) by its worker");
  EXPECT_FALSE(exit.out_of_memory);
  EXPECT_FALSE(engine->Send(ShutdownLine()).ok());
}

TEST_F(EngineProcessTest, AKillByAStrangerIsSaidToBeThat) {
  const auto engine = StartEngine({NIBBLE_FAKE_ENGINE, "serve", "--fd", "3"});
  ASSERT_TRUE(listener_.WaitForLines(1));
  ASSERT_EQ(kill(engine->pid(), SIGKILL), 0);
  const ProcessExit exit = listener_.WaitForExit();
  EXPECT_THAT(exit.message, testing::HasSubstr("was ended by signal 9 (Killed) by someone"));
  EXPECT_FALSE(exit.out_of_memory);
}

TEST_F(EngineProcessTest, DestructionEndsTheProcess) {
  auto engine = StartEngine({NIBBLE_FAKE_ENGINE, "serve", "--fd", "3"});
  ASSERT_TRUE(listener_.WaitForLines(1));
  const pid_t pid = engine->pid();
  EXPECT_GT(ResidentBytes(pid), 100'000);
  engine.reset();
  EXPECT_EQ(kill(pid, 0), -1);
  EXPECT_EQ(ResidentBytes(pid), 0);
}

// As one does whose driver hangs when everything is closed: nothing is heard of it any more, and it is there.
TEST_F(EngineProcessTest, OneThatHasClosedItsEndAndStaysIsKilled) {
  const auto engine = StartEngine({"/bin/sh", "-c", "exec 3>&-; sleep 1000"}, std::chrono::milliseconds(50));
  EXPECT_EQ(listener_.WaitForExit().message, "was ended by signal 9 (Killed) by its worker");
  EXPECT_EQ(kill(engine->pid(), 0), -1);
}

// What one that was killed has said before is heard, though another holds its end of the socket.
TEST_F(EngineProcessTest, AnotherHolderOfItsEndIsNotWaitedFor) {
  const std::string begun = dir_.Join("begun");
  const auto engine = StartEngine({"/bin/sh", "-c", "setsid sh -c 'touch " + begun +
                                                        "; sleep 20' & echo said >&3; sleep 1000"});
  ASSERT_TRUE(listener_.WaitForLines(1));
  for (int i = 0; i < 2'000 && !FileExists(begun); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  engine->Kill();
  EXPECT_EQ(listener_.WaitForExit().message, "was ended by signal 9 (Killed) by its worker");
}

TEST_F(EngineProcessTest, AMissingBinaryIsAnExit) {
  const auto engine = StartEngine({"/nowhere/nibble-engine", "serve"});
  EXPECT_EQ(listener_.WaitForExit().message, "could not be started");
}

TEST(RunHelperTest, OutputExitAndCancel) {
  TempDir dir;
  const auto echo =
      RunHelper({"/bin/sh", "-c", "echo out; echo err >&2; exit 3"}, dir.Join("log"), nullptr);
  ASSERT_TRUE(echo.ok());
  EXPECT_EQ(echo->output, "out\n");
  EXPECT_EQ(echo->exit.code, 3);
  EXPECT_EQ(TailOfFile(dir.Join("log"), 100), "err");
  const auto bounded =
      RunHelper({"/bin/sh", "-c", "yes | head -c 100000"}, dir.Join("log"), nullptr, 100);
  ASSERT_TRUE(bounded.ok());
  EXPECT_EQ(bounded->output.size(), 100u);
  const auto cancelled =
      RunHelper({"/bin/sh", "-c", "sleep 100"}, dir.Join("log"), [] { return true; });
  ASSERT_TRUE(cancelled.ok());
  EXPECT_TRUE(cancelled->cancelled);
}

// As one does that a driver holds: what has been killed may go on holding its output.
TEST(RunHelperTest, OneThatDoesNotDieIsNotWaitedForLong) {
  const TempDir dir;
  const std::string begun = dir.Join("begun"), ended = dir.Join("ended");
  const auto result = RunHelper(
      {"/bin/sh", "-c", "setsid sh -c 'touch " + begun + "; sleep 20; touch " + ended + "' & sleep 100"},
      dir.Join("log"), [&] { return FileExists(begun); });
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->cancelled);
  EXPECT_FALSE(FileExists(ended));
}

// As one does whose driver takes for ever to let go of a GPU at its exit.
TEST(RunHelperTest, OneThatHasClosedItsOutputIsStillCancelled) {
  const TempDir dir;
  const std::string begun = dir.Join("begun"), ended = dir.Join("ended");
  const auto result =
      RunHelper({"/bin/sh", "-c", "exec >&-; touch " + begun + "; sleep 20; touch " + ended}, dir.Join("log"),
                [&] { return FileExists(begun); });
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->cancelled);
  EXPECT_FALSE(FileExists(ended));
}

TEST(RunHelperTest, IsTheFirstToGoWhenMemoryRunsOut) {
  const TempDir dir;
  const auto result = RunHelper({"cat", "/proc/self/oom_score_adj"}, dir.Join("log"), nullptr, 100);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->output, "500\n");
}

}  // namespace
}  // namespace nibble::worker

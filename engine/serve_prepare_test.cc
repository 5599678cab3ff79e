// Jobs whose data is being read while others have turns.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <string>
#include <thread>
#include <vector>

#include "engine/crash_line.h"
#include "engine/testing/serve_fixture.h"

namespace nibble::engine {
namespace {

// Data that is read for as long as somebody likes comes out of a pipe with a name: who reads it waits.
class PrepareTest : public ServeTest {
 protected:
  void SetUp() override {
    ServeTest::SetUp();
    rows_ = *ReadFile(dir_.Join("train.jsonl"));
    ASSERT_EQ(mkfifo(dir_.Join("pipe").c_str(), 0600), 0);
  }
  void TearDown() override {
    ServeTest::TearDown();
    over_ = true;
    if (writer_.joinable()) writer_.join();
  }

  json AttachPipe(const std::string& attempt, int64_t max_steps) {
    json attach = Attach(attempt, max_steps);
    attach["dataset"] = dir_.Join("pipe");
    return attach;
  }
  // When there is a reader; -1 when there will be none.
  int OpenPipe() {
    int fd = -1;
    while (!over_ && fd < 0) fd = open(dir_.Join("pipe").c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd >= 0) fcntl(fd, F_SETFL, 0);
    return fd;
  }
  void WriteOnce() {
    const int fd = OpenPipe();
    EXPECT_EQ(write(fd, rows_.data(), rows_.size()), static_cast<ssize_t>(rows_.size()));
    close(fd);
  }
  // The rows again and again, until who reads them has had enough.
  void WriteForEver() {
    writer_ = std::thread([this] {
      const int fd = OpenPipe();  // who is let go early need not have opened it
      if (fd < 0) return;
      while (write(fd, rows_.data(), rows_.size()) > 0) {
      }
      close(fd);
    });
  }
  void UntilReading(const std::string& attempt) {
    for (json line = Until("phase", attempt); !line.empty(); line = Until("phase", attempt)) {
      if (line["phase"] == "TOKENIZING") return;
    }
  }

  std::string rows_;
  std::atomic<bool> over_{false};
  std::thread writer_;
};

TEST_F(PrepareTest, NeighboursStepMeanwhileAndNoByteChanges) {
  Send(Attach("alone/1", 12));
  Until("finished", "alone/1");
  Send(Attach("neighbour/1", 1'000'000));
  Until("step", "neighbour/1");
  Send(AttachPipe("job/1", 12));
  UntilReading("job/1");
  for (int i = 0; i < 20; ++i) Until("step", "neighbour/1");
  EXPECT_EQ(CountSeen("plan", "job/1"), 0);
  WriteOnce();
  Until("finished", "job/1");
  EXPECT_TRUE(Weights("job-1") == Weights("alone-1"));
}

TEST_F(PrepareTest, WhoIsReadIsLetGoAtOnce) {
  Send(Attach("neighbour/1", 1'000'000));
  Until("step", "neighbour/1");
  WriteForEver();
  Send(AttachPipe("job/1", 12));
  UntilReading("job/1");
  Send({{"type", "detach"}, {"attempt", "job/1"}, {"checkpoint", true}});
  EXPECT_EQ(Until("detached", "job/1")["step"], 0);
  Until("step", "neighbour/1");
  EXPECT_EQ(CountSeen("plan", "job/1"), 0);
  EXPECT_EQ(CountSeen("checkpoint", "job/1"), 0);
}

TEST_F(PrepareTest, AnEngineThatIsToStopReadsNoFurther) {
  WriteForEver();
  Send(AttachPipe("job/1", 12));
  UntilReading("job/1");
  Stop();
}

TEST_F(PrepareTest, ALongReadHoldsUpNoShortOne) {
  WriteForEver();
  Send(AttachPipe("long/1", 12));
  UntilReading("long/1");
  Send(Attach("short/1", 3));
  EXPECT_EQ(Until("finished", "short/1")["step"], 3);
  EXPECT_EQ(CountSeen("plan", "long/1"), 0);
  Send({{"type", "detach"}, {"attempt", "long/1"}, {"checkpoint", false}});
  Until("detached", "long/1");
}

TEST_F(PrepareTest, WhoIsPausedMeanwhileHasNoTurnAfterwards) {
  Send(AttachPipe("job/1", 12));
  UntilReading("job/1");
  Send({{"type", "pause"}, {"attempt", "job/1"}});
  EXPECT_EQ(Until("paused", "job/1")["step"], 0);
  WriteOnce();
  Until("plan", "job/1");
  Send(Attach("neighbour/1", 3));
  Until("finished", "neighbour/1");
  EXPECT_EQ(CountSeen("step", "job/1"), 0);
  Send({{"type", "resume"}, {"attempt", "job/1"}});
  EXPECT_EQ(Until("finished", "job/1")["step"], 12);
}

// Reading begins in the middle of a turn, and who has it is still the one to blame.
TEST_F(PrepareTest, ReadingDoesNotWaitForATurnToEnd) {
  Stop();
  pending_.clear();
  // Its first turn stays where commands are first looked at, until one comes that is no attach.
  options_.waits_in_turn = [](const std::vector<std::string>& attempts, int64_t steps_done) {
    return attempts.front() == "turn/1" && steps_done == 0;
  };
  Start();
  json turn = Attach("turn/1", 3);
  turn["eval_dataset"] = "";  // a turn is a step
  Send(turn);
  Until("plan", "turn/1");
  Until("phase", "turn/1");
  WriteForEver();
  Send(AttachPipe("job/1", 12));
  UntilReading("job/1");
  EXPECT_EQ(Until("turn")["attempt"], "turn/1");
  EXPECT_EQ(CountSeen("step", "turn/1"), 0);
  Send({{"type", "detach"}, {"attempt", "job/1"}, {"checkpoint", false}});
  Until("detached", "job/1");
  if (CountSeen("finished", "turn/1") == 0) Until("finished", "turn/1");
}

class OpeningTest : public PrepareTest {
 protected:
  // Where the base is made the engine waits for a command, again and again until the last one is on its way.
  void StartHeld() {
    Stop();
    pending_.clear();
    cache_dir_ = dir_.Join("cold");
    options_.waits_in_turn = [this](const std::vector<std::string>&, int64_t steps) {
      return steps == -1 && !last_is_sent_;
    };
    Start();
    Until("hello");
  }
  void Detach(const std::string& attempt) {
    Send({{"type", "detach"}, {"attempt", attempt}, {"checkpoint", true}});
  }
  bool BaseIsThere() {
    const absl::StatusOr<std::vector<std::string>> names = ListDir(dir_.Join("cold"));
    EXPECT_TRUE(names.ok()) << names.status();
    if (!names.ok()) return true;
    for (const std::string& name : *names) {
      if (name.starts_with("base-") && !name.ends_with(".tmp")) return true;
    }
    return false;
  }
  std::atomic<bool> last_is_sent_{false};
};

TEST_F(OpeningTest, WhoWaitsForTheBaseAloneIsLetGoAndItIsMadeForTheNext) {
  StartHeld();
  Send(Attach("job/1", 3));
  Until("phase", "job/1");
  Detach("job/1");
  EXPECT_EQ(Until("detached", "job/1")["step"], 0);
  EXPECT_FALSE(BaseIsThere());
  last_is_sent_ = true;
  Send(Attach("next/1", 3));
  EXPECT_EQ(Until("finished", "next/1")["step"], 3);
}

TEST_F(OpeningTest, ForOthersTheBaseIsMadeToItsEnd) {
  StartHeld();
  Send(Attach("job/1", 100000));  // it does not end before it is to leave
  Until("phase", "job/1");
  Send(Attach("other/1", 3));
  last_is_sent_ = true;  // before it is: both may come at once
  Detach("job/1");
  Until("detached", "job/1");
  EXPECT_TRUE(BaseIsThere());
  if (CountSeen("finished", "other/1") == 0) Until("finished", "other/1");
  EXPECT_EQ(CountSeen("step", "other/1"), 3);
}

// One that was made before is read and compared: of a large model that takes seconds, too.
TEST_F(OpeningTest, WhoWaitsForABaseToBeMappedIsLetGo) {
  StartHeld();
  last_is_sent_ = true;
  Send(Attach("job/1", 3));
  Until("finished", "job/1");
  ASSERT_EQ(CountSeen("base", ""), 1);
  Stop();
  last_is_sent_ = false;
  StartHeld();
  Send(Attach("again/1", 3));
  Until("phase", "again/1");
  Detach("again/1");
  EXPECT_EQ(Until("detached", "again/1")["step"], 0);
  last_is_sent_ = true;
  EXPECT_EQ(CountSeen("base", ""), 1) << "it was not mapped to the end";
  Send(Attach("next/1", 3));
  EXPECT_EQ(Until("finished", "next/1")["step"], 3);
}

TEST_F(OpeningTest, AnEngineThatIsToStopMakesNoBase) {
  StartHeld();
  Send(Attach("job/1", 3));
  Until("phase", "job/1");
  Stop();
  EXPECT_FALSE(BaseIsThere());
}

TEST(CrashLineTest, WhoseDataWasReadIsToldAndTheProcessStillDies) {
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const pid_t child = fork();
  if (child == 0) {
    // Without a sanitizer's report: run_tests.py takes every one for a finding.
    std::signal(SIGSEGV, SIG_DFL);
    SendCrashLinesTo(pair[1]);
    std::thread([] {
      { const CrashLine over("over/1"); }
      const CrashLine line("job/1");
      std::raise(SIGSEGV);
    }).join();
    std::_Exit(0);
  }
  close(pair[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t size; (size = read(pair[0], buffer, sizeof buffer)) > 0;)
    text.append(buffer, static_cast<size_t>(size));
  close(pair[0]);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV) << status;
  ASSERT_FALSE(text.empty());
  EXPECT_EQ(text.front(), '\n');  // so that a line that was cut off before it ends there
  const json line = json::parse(text);
  EXPECT_EQ(line["type"], "turn");
  EXPECT_EQ(line["attempt"], "job/1");
}

}  // namespace
}  // namespace nibble::engine

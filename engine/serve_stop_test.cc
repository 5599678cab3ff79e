// Commands to let go that come in the middle of a turn.
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/testing/serve_fixture.h"

namespace nibble::engine {
namespace {

// A turn is held in its middle until the command is there that is to come in it: nothing here depends on who
// is quicker.
class StopTest : public ServeTest {
 protected:
  using Turn = std::pair<std::vector<std::string>, int64_t>;  // whose, and steps the first has done

  StopTest() {
    options_.waits_in_turn = [this](const std::vector<std::string>& attempts, int64_t steps_done) {
      return ++looks_[{attempts, steps_done}] == 3 && held_.contains({attempts, steps_done});
    };
  }
  // To be called before the turn begins.
  void Hold(const std::vector<std::string>& attempts, int64_t steps_done) {
    held_.insert({attempts, steps_done});
  }

  // While all jobs are paused.
  void HoldNothing() { held_.clear(); }

  // Of micro-batches so short that turns may be fused.
  json AttachSteps(const std::string& attempt, int64_t max_steps, int32_t sequence_len = 48) {
    spec::TrainSpec spec;
    spec.lora_r = 32;
    spec.sequence_len = sequence_len;
    spec.micro_batch_size = 1;
    spec.recompute = spec::Recompute::kFull;
    spec.gradient_accumulation_steps = 4;
    spec.max_steps = max_steps;
    spec.eval_steps = -1;
    spec.save_interval_seconds = 0;
    json attach = AttachSpec(attempt, spec);
    attach["eval_dataset"] = "";  // a turn is a step
    return attach;
  }
  void Detach(const std::string& attempt, bool checkpoint) {
    Send({{"type", "detach"}, {"attempt", attempt}, {"checkpoint", checkpoint}});
  }

 private:
  std::map<Turn, int> looks_;  // the engine's thread
  std::set<Turn> held_;        // set before the line that begins the turn is sent
};

TEST_F(StopTest, AStepThatIsGivenUpIsDoneAgainWithTheSameBits) {
  Hold({"job/1"}, 1);
  Send(AttachSteps("alone/1", 2));
  Until("finished", "alone/1");
  Send(AttachSteps("job/1", 2));
  Until("step", "job/1");
  Detach("job/1", true);  // in the second step
  const json checkpoint = Until("checkpoint", "job/1");
  EXPECT_EQ(checkpoint["step"], 1);
  EXPECT_EQ(Until("detached", "job/1")["step"], 1);
  json rest = AttachSteps("job/2", 2);
  rest["resume"] = checkpoint["dir"];
  Send(rest);
  Until("finished", "job/2");
  EXPECT_EQ(CountSeen("step", "job/2"), 1);
  EXPECT_TRUE(Weights("job-2") == Weights("alone-1"));
}

TEST_F(StopTest, WhoIsNotToBeSavedLeavesInTheFirstStep) {
  Hold({"job/1"}, 0);
  Send(AttachSteps("job/1", 2));
  Until("plan", "job/1");
  Until("phase", "job/1");  // TRAINING
  Detach("job/1", false);
  EXPECT_EQ(Until("detached", "job/1")["step"], 0);
  EXPECT_EQ(CountSeen("step", "job/1"), 0);
}

class TurnsTest : public StopTest {
 protected:
  TurnsTest() { options_.fuse = false; }
};

TEST_F(TurnsTest, ANeighbourLeavesInTheMiddleOfATurn) {
  Hold({"long/1"}, 0);
  Send(AttachSteps("alone/1", 1));
  Until("finished", "alone/1");
  Send(Attach("short/1", 1000));
  Until("step", "short/1");
  Send(AttachSteps("long/1", 1));
  Until("plan", "long/1");
  while (Until("phase", "long/1")["phase"] != "TRAINING") {
  }
  Detach("short/1", true);
  Until("detached", "short/1");
  EXPECT_GT(CountSeen("checkpoint", "short/1"), 0);
  EXPECT_EQ(CountSeen("step", "long/1"), 0);  // its turn is not over
  Until("finished", "long/1");
  EXPECT_TRUE(Weights("long-1") == Weights("alone-1"));
}

// What a worker would blame at any moment: whom the last line of a turn or a phase names.
TEST_F(TurnsTest, TheWorkerKnowsWhoseTurnItIs) {
  json often = Attach("often/1", 40);
  often["priority"] = 20;
  Send(often);
  Send(Attach("seldom/1", 10));
  std::string turn;
  int steps = 0, again = 0, finished = 0;
  std::string last;
  while (finished < 2) {
    const json line = Next();
    ASSERT_FALSE(line.empty());
    const std::string type = line["type"], attempt = line.value("attempt", "");
    ASSERT_NE(type, "failed") << line.dump();
    if (type == "turn" || type == "phase") turn = attempt;
    if (type == "finished") ++finished;
    if (type != "step") continue;
    EXPECT_EQ(turn, attempt) << line.dump();
    again += last == attempt;  // not one after the other
    last = attempt;
    ++steps;
  }
  EXPECT_EQ(steps, 50);
  EXPECT_GT(again, 0);
}

// No timed test: of steps that cost the same one has 256 times the turns.
TEST_F(TurnsTest, APriorityChangedWhileTheyRunShiftsTheTurnsAndNoBit) {
  Send(Attach("alone/1", 60));
  Until("finished", "alone/1");
  for (int64_t step = 20; step < 60; ++step) {  // until a command comes: neither ends before it is paused
    Hold({"less/1"}, step);
    Hold({"more/1"}, step);
  }
  Send(Attach("less/1", 60));
  Send(Attach("more/1", 60));
  Until("step", "more/1");
  for (const char* attempt : {"less/1", "more/1"}) {
    Send({{"type", "pause"}, {"attempt", attempt}});
    Until("paused", attempt);
  }
  HoldNothing();
  const int before = CountSeen("step", "less/1"), left = 60 - CountSeen("step", "more/1");
  ASSERT_GT(left, 20);
  Send({{"type", "priority"}, {"attempt", "less/1"}, {"priority", -40}});
  Send({{"type", "priority"}, {"attempt", "more/1"}, {"priority", 40}});
  for (const char* attempt : {"more/1", "less/1"}) Send({{"type", "resume"}, {"attempt", attempt}});
  Until("finished", "more/1");
  EXPECT_LE(CountSeen("step", "less/1") - before, left / 4);
  Until("finished", "less/1");
  EXPECT_TRUE(Weights("less-1") == Weights("alone-1"));
  EXPECT_TRUE(Weights("more-1") == Weights("alone-1"));
}

TEST_F(StopTest, OneOfAFusedTurnLeavesInItsMiddle) {
  Hold({"a/1"}, 0);  // until b is on its way
  // Products of two jobs fit into the step region of one of long sequences.
  Send(AttachSteps("room/1", 1000, 128));
  Until("plan", "room/1");
  Send({{"type", "pause"}, {"attempt", "room/1"}});
  Until("paused", "room/1");
  Hold({"a/1", "b/1"}, 1);
  Send(AttachSteps("alone/1", 2));
  Until("finished", "alone/1");
  Send(AttachSteps("a/1", 2));
  while (Until("phase", "a/1")["phase"] != "TRAINING") {
  }
  Send(AttachSteps("b/1", 2));
  Until("plan", "b/1");
  while (Until("phase", "b/1")["phase"] != "TRAINING") {
  }
  Detach("b/1", false);
  EXPECT_EQ(Until("detached", "b/1")["step"], 0);
  EXPECT_EQ(CountSeen("step", "a/1"), 1);  // the second was given up with b's first
  Until("finished", "a/1");
  EXPECT_TRUE(Weights("a-1") == Weights("alone-1"));
}

TEST_F(StopTest, AnEngineThatIsToStopDoesNotEndTheStep) {
  Hold({"job/1"}, 0);
  Send(AttachSteps("job/1", 2));
  Until("plan", "job/1");
  Until("phase", "job/1");
  Send({{"type", "shutdown"}});
  engine_.join();
  EXPECT_TRUE(status_.ok()) << status_;
  close(fds_[1]);
  for (json line = Next(); !line.empty(); line = Next()) EXPECT_NE(line["type"], "step");
  close(fds_[0]);
}

}  // namespace
}  // namespace nibble::engine

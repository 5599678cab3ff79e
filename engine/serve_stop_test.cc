// Commands to let go that come in the middle of a turn.
#include "engine/testing/serve_fixture.h"

namespace nibble::engine {
namespace {

// So many micro-batches that a step takes long: commands sent when it begins come in its middle.
constexpr int32_t kManyMicroBatches = 8192;

class StopTest : public ServeTest {
 protected:
  json AttachLong(const std::string& attempt, int64_t max_steps) {
    spec::TrainSpec spec;
    spec.lora_r = 4;
    spec.sequence_len = 64;
    spec.micro_batch_size = 2;
    spec.gradient_accumulation_steps = kManyMicroBatches;
    spec.max_steps = max_steps;
    spec.eval_steps = -1;
    spec.save_interval_seconds = 0;
    return AttachSpec(attempt, spec);
  }
  void Detach(const std::string& attempt, bool checkpoint) {
    Send({{"type", "detach"}, {"attempt", attempt}, {"checkpoint", checkpoint}});
  }
};

TEST_F(StopTest, AStepThatIsGivenUpIsDoneAgainWithTheSameBits) {
  Send(AttachLong("alone/1", 2));
  Until("finished", "alone/1");
  Send(AttachLong("job/1", 2));
  Until("step", "job/1");
  Detach("job/1", true);  // in the second step
  const json checkpoint = Until("checkpoint", "job/1");
  EXPECT_EQ(checkpoint["step"], 1);
  EXPECT_EQ(Until("detached", "job/1")["step"], 1);
  json rest = AttachLong("job/2", 2);
  rest["resume"] = checkpoint["dir"];
  Send(rest);
  Until("finished", "job/2");
  EXPECT_EQ(CountSeen("step", "job/2"), 1);
  EXPECT_TRUE(Weights("job-2") == Weights("alone-1"));
}

TEST_F(StopTest, WhoIsNotToBeSavedLeavesInTheFirstStep) {
  Send(AttachLong("job/1", 2));
  Until("phase", "job/1");
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
  Send(AttachLong("alone/1", 1));
  Until("finished", "alone/1");
  Send(Attach("short/1", 1000));
  Until("step", "short/1");
  Send(AttachLong("long/1", 1));
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

TEST_F(StopTest, OneOfAFusedTurnLeavesInItsMiddle) {
  Send(AttachLong("alone/1", 1));
  Until("finished", "alone/1");
  Send(AttachLong("a/1", 1));
  Send(AttachLong("b/1", 1));
  Until("plan", "b/1");
  while (Until("phase", "b/1")["phase"] != "TRAINING") {
  }
  Detach("b/1", false);
  EXPECT_EQ(Until("detached", "b/1")["step"], 0);
  Until("finished", "a/1");
  EXPECT_TRUE(Weights("a-1") == Weights("alone-1"));
}

TEST_F(StopTest, AnEngineThatIsToStopDoesNotEndTheStep) {
  Send(AttachLong("job/1", 2));
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

// Engines that die, hang or lose their device: who is at fault, who is waited for.
#include <map>
#include <string>

#include "worker/core/testing/agent_fixture.h"

namespace nibble::worker {
namespace {

TEST_F(AgentTest, TheTurnThatKilledTheEngineIsAtFault) {
  const int64_t engine = Run("a", {AssignmentOf("a")});
  Run("b", {AssignmentOf("a"), AssignmentOf("b")});
  Feed(EngineTurn{engine, {"b", 1}});
  Feed(EngineExited{engine, "signal 9", false});
  ASSERT_EQ(reports_.size(), 2u);
  EXPECT_EQ(reports_[0].key.job_id, "a");
  EXPECT_TRUE(std::get<FailedReport>(reports_[0].body).neighbour_fault);
  EXPECT_FALSE(std::get<FailedReport>(reports_[1].body).neighbour_fault);
  EXPECT_TRUE(std::get<FailedReport>(reports_[1].body).infrastructure);
}

// By priority one may have many turns in a row: who tells turns is not second-guessed.
TEST_F(AgentTest, AnEngineThatTellsTurnsIsBelieved) {
  const int64_t engine = Run("a", {AssignmentOf("a")});
  Run("b", {AssignmentOf("a"), AssignmentOf("b")});
  Feed(EngineTurn{engine, {"a", 1}});
  Feed(StepOf("a", 1));  // and its turn again
  Feed(EngineExited{engine, "signal 11", false});
  std::map<std::string, bool> neighbour;
  for (const Report& report : reports_) {
    if (const auto* failed = std::get_if<FailedReport>(&report.body))
      neighbour[report.key.job_id] = failed->neighbour_fault;
  }
  EXPECT_THAT(neighbour, testing::ElementsAre(testing::Pair("a", false), testing::Pair("b", true)));
}

TEST_F(AgentTest, AnEngineThatDoesNotLetGoIsKilledAndItsNeighboursSaySo) {
  Run("a", {AssignmentOf("a")});
  const int64_t engine = Run("b", {AssignmentOf("a"), AssignmentOf("b")});
  Desire({AssignmentOf("a"), AssignmentOf("b", "base", Want::kStop)});
  Advance(301 * kSecondUs);
  EXPECT_NE(Find<KillEngine>(), nullptr);
  Feed(EngineExited{engine, "killed", false});
  ASSERT_FALSE(reports_.empty());
  EXPECT_EQ(reports_.back().key.job_id, "a");
  EXPECT_TRUE(std::get<FailedReport>(reports_.back().body).neighbour_fault);
}

// Suspended, or stopped with everything on its machine: nobody had those minutes.
class SleepTest : public AgentTest {
 protected:
  void SetUp() override {
    AgentOptions options;
    options.probed_devices = {"cpu0"};
    agent_ = Agent(options);
    AgentTest::SetUp();
  }
  // As time passes: with a Tick every second.
  void Wait(int64_t us) {
    for (const int64_t end_us = now_us_ + us; now_us_ < end_us && !seen_;) {
      Advance(kSecondUs);
      seen_ = Find<KillEngine>() != nullptr;
    }
  }
  bool seen_ = false;  // an engine was killed
};

TEST_F(SleepTest, AnEngineHasTimeToLetGoThatPassedForIt) {
  Run("a", {AssignmentOf("a")});
  Run("b", {AssignmentOf("a"), AssignmentOf("b")});
  Desire({AssignmentOf("a"), AssignmentOf("b", "base", Want::kStop)});
  Wait(200 * kSecondUs);
  Advance(3'000 * kSecondUs);
  EXPECT_EQ(Find<KillEngine>(), nullptr);
  Wait(98 * kSecondUs);
  EXPECT_FALSE(seen_);
  Wait(3 * kSecondUs);
  EXPECT_TRUE(seen_);
}

TEST_F(SleepTest, AnEngineHasTimeToEndThatPassedForIt) {
  Run("a", {AssignmentOf("a")});
  Desire({AssignmentOf("b", "other base")});  // in place of it
  Feed(EngineDetached{engine_, {"a", 1}, 0});
  Feed(Fetched{{"b", 1}, {"model", "data", "", ""}});
  ASSERT_NE(Find<ShutdownEngine>(), nullptr);
  Wait(200 * kSecondUs);
  Advance(3'000 * kSecondUs);
  EXPECT_EQ(Find<KillEngine>(), nullptr);
  Wait(110 * kSecondUs);
  EXPECT_TRUE(seen_);
}

TEST_F(SleepTest, ADriverHasTimeToAnswerThatPassedForIt) {
  Run("a", {AssignmentOf("a")});
  Feed(EngineExited{engine_, "signal 9", false});
  ASSERT_NE(Find<DoProbe>(), nullptr);
  Wait(100 * kSecondUs);
  Advance(3'000 * kSecondUs);
  EXPECT_EQ(agent_.withdrawn_devices(), 0u);
  Wait(85 * kSecondUs);
  EXPECT_EQ(agent_.withdrawn_devices(), 1u);
}

// A night's sleep of a machine with its server on it: what is trained goes on in the morning.
TEST_F(SleepTest, ANightIsNoHourOfSilence) {
  Run("a", {AssignmentOf("a")});
  Advance(8 * 3'600 * kSecondUs);
  EXPECT_NE(Find<PauseAttempt>(), nullptr) << "the lease is over all the same";
  EXPECT_EQ(Find<Detach>(), nullptr);
  Desire({AssignmentOf("a")});
  EXPECT_NE(Find<ResumeAttempt>(), nullptr);
}

class ReplacedEngineTest : public AgentTest {
 protected:
  void SetUp() override {
    AgentOptions options = Options();
    options.numerics = {{"cpu0", "numerics"}, {"cpu1", "others"}};
    agent_ = Agent(options);
    AgentTest::SetUp();
  }
};

// An upgrade under a running worker: jobs in the old engine end there, no attempt fails by it, and the worker
// begins anew with what it then measures.
TEST_F(ReplacedEngineTest, WhatRunsEndsAndThenTheWorkerBeginsAnew) {
  const int64_t old_engine = Run("a", {AssignmentOf("a")});
  Desire({AssignmentOf("a"), AssignmentOf("b", "other base")});
  Feed(Fetched{{"b", 1}, {"model", "data", "", ""}});
  ASSERT_NE(Find<StartEngine>(), nullptr);
  const int64_t new_engine = Find<StartEngine>()->engine;
  Feed(EngineHello{new_engine, "new numerics"});
  EXPECT_EQ(Find<Attach>(), nullptr);
  ASSERT_NE(Find<ShutdownEngine>(), nullptr);
  EXPECT_EQ(Find<ShutdownEngine>()->engine, new_engine);
  ASSERT_FALSE(reports_.empty());
  const auto& failed = std::get<FailedReport>(reports_.back().body);
  EXPECT_EQ(reports_.back().key.job_id, "b");
  EXPECT_TRUE(failed.neighbour_fault) << "it costs no retry";
  EXPECT_NE(failed.message.find("was replaced: it has numerics new numerics"), std::string::npos);
  // Nothing is to be placed on any device, whichever noticed.
  Feed(EngineExited{new_engine, "ended with code 0", false});
  Answer(ReportReply::Code::kOk);
  Desire({AssignmentOf("a")});
  Advance(50'000);
  ASSERT_EQ(sync_.devices.size(), 2u);
  for (const DeviceStatus& device : sync_.devices)
    EXPECT_NE(device.fault.find("was replaced"), std::string::npos) << device.device_id;
  EXPECT_FALSE(sync_.draining);
  EXPECT_GT(agent_.NextDueUs(), now_us_) << "no probe is due for it";
  Advance(3'600 * kSecondUs);
  EXPECT_EQ(Find<DoProbe>(), nullptr);
  EXPECT_EQ(Find<Exit>(), nullptr);
  // The old engine ends its job.
  Feed(EngineFinished{old_engine, {"a", 1}, 10, "adapter", "max_steps"});
  ASSERT_NE(Find<DoUpload>(), nullptr);
  Feed(Uploaded{Find<DoUpload>()->id, {}});
  Answer(ReportReply::Code::kOk);
  Desire({});
  Advance(50'000);
  EXPECT_TRUE(sync_.draining);
  Desire({});
  Feed(EngineExited{old_engine, "ended with code 0", false});
  ASSERT_NE(Find<Exit>(), nullptr);
  EXPECT_TRUE(Find<Exit>()->begin_anew);
  EXPECT_FALSE(Find<Exit>()->superseded);
}

// Commands are looked at while data is read, so who is not let go is not let go.
TEST_F(AgentTest, AnEngineThatReadsANeighboursDataLetsGoInTime) {
  Run("a", {AssignmentOf("a")});
  const int64_t engine = Run("b", {AssignmentOf("a"), AssignmentOf("b")});
  Feed(EnginePhase{engine, {"b", 1}, Phase::kTokenizing});
  Desire({AssignmentOf("a", "base", Want::kStop), AssignmentOf("b")});
  Advance(301 * kSecondUs);
  EXPECT_NE(Find<KillEngine>(), nullptr);
}

// One whose data is being read says step 0; it gives back what it had.
TEST_F(AgentTest, WhoIsReleasedBeforeItBeganIsWhereItsCheckpointIs) {
  Assignment a = AssignmentOf("a");
  a.checkpoint_step = 40;
  const int64_t engine = Run("a", {a});
  Feed(EnginePhase{engine, {"a", 1}, Phase::kTokenizing});
  a.want = Want::kRelease;
  Desire({a});
  Feed(EngineDetached{engine, {"a", 1}, 0});
  ASSERT_FALSE(reports_.empty());
  ASSERT_TRUE(std::holds_alternative<ReleasedReport>(reports_.back().body));
  EXPECT_EQ(std::get<ReleasedReport>(reports_.back().body).step, 40);
}

// Whom the engine named last is who keeps it, not who waits to be let go.
TEST_F(AgentTest, WhoIsNotLetGoIsNotToBlameForTheTurnOfAnother) {
  Run("a", {AssignmentOf("a")});
  const int64_t engine = Run("b", {AssignmentOf("a"), AssignmentOf("b")});
  Feed(EngineTurn{engine, {"b", 1}});
  Desire({AssignmentOf("a", "base", Want::kRelease), AssignmentOf("b")});
  Advance(301 * kSecondUs);
  ASSERT_NE(Find<KillEngine>(), nullptr);
  Feed(EngineExited{engine, "killed", false});
  for (const Report& report : reports_) {
    const auto* failed = std::get_if<FailedReport>(&report.body);
    if (failed != nullptr) {
      EXPECT_EQ(failed->neighbour_fault, report.key.job_id == "a") << report.key.job_id;
    }
  }
}

// ---- Devices that a driver may lose
class ProbedDeviceTest : public AgentTest {
 protected:
  void SetUp() override {
    AgentOptions options = Options();
    options.probed_devices = {"cpu0"};
    agent_ = Agent(options);
    AgentTest::SetUp();
  }
  std::string Fault() const {
    for (const DeviceStatus& device : sync_.devices) {
      if (device.device_id == "cpu0") return device.fault;
    }
    return "";
  }
  FailedReport Failed(const std::string& job) const {
    for (const Report& report : reports_) {
      const auto* failed = std::get_if<FailedReport>(&report.body);
      if (failed != nullptr && report.key.job_id == job) return *failed;
    }
    return {};
  }
};

TEST_F(ProbedDeviceTest, ADeviceThatAnswersGoesOn) {
  Run("a", {AssignmentOf("a"), AssignmentOf("b")});
  Feed(EngineExited{engine_, "crashed", false});
  ASSERT_NE(Find<DoProbe>(), nullptr);
  EXPECT_EQ(Find<DoProbe>()->device_id, "cpu0");
  // Nothing starts there before it has answered.
  Feed(Fetched{{"b", 1}, {"model", "data", "", ""}});
  EXPECT_EQ(Find<StartEngine>(), nullptr);
  Feed(ProbeEnded{"cpu0", true, ""});
  EXPECT_NE(Find<StartEngine>(), nullptr);
  EXPECT_EQ(agent_.withdrawn_devices(), 0u);
  EXPECT_TRUE(Failed("a").infrastructure);
  EXPECT_EQ(Failed("b").reason, "");
}

TEST_F(ProbedDeviceTest, OneThatDoesNotIsWithdrawnUntilItDoes) {
  Run("a", {AssignmentOf("a"), AssignmentOf("b"), AssignmentOf("c")});
  Feed(Fetched{{"b", 1}, {"model", "data", "", ""}});  // attached as a's neighbour
  Feed(EngineExited{engine_, "crashed", false});
  Feed(ProbeEnded{"cpu0", false, "cuda:0 does not open"});
  Advance(50'000);
  EXPECT_EQ(Fault(), "cuda:0 does not open");
  EXPECT_EQ(agent_.withdrawn_devices(), 1u);
  // c was still being fetched: its time there would come to nothing, and that is not its fault.
  EXPECT_EQ(Failed("c").reason, "DEVICE_FAULT");
  EXPECT_TRUE(Failed("c").neighbour_fault);
  EXPECT_NE(Failed("c").message.find("cuda:0 does not open"), std::string::npos);
  EXPECT_FALSE(Failed("a").neighbour_fault);
  // What a server that has not heard yet places there.
  Desire({AssignmentOf("d")});
  EXPECT_EQ(Failed("d").reason, "DEVICE_FAULT");
  EXPECT_EQ(Find<DoFetch>(), nullptr);
  // Probed again and again, ever more rarely.
  Advance(29 * kSecondUs);
  EXPECT_EQ(Find<DoProbe>(), nullptr);
  Advance(2 * kSecondUs);
  ASSERT_NE(Find<DoProbe>(), nullptr);
  Feed(ProbeEnded{"cpu0", false, "cuda:0 does not open"});
  Advance(59 * kSecondUs);
  EXPECT_EQ(Find<DoProbe>(), nullptr);
  Advance(2 * kSecondUs);
  ASSERT_NE(Find<DoProbe>(), nullptr);
  Feed(ProbeEnded{"cpu0", true, ""});
  EXPECT_EQ(agent_.withdrawn_devices(), 0u);
  EXPECT_EQ(Fault(), "");
  Desire({AssignmentOf("e")});
  EXPECT_NE(Find<DoFetch>(), nullptr);
}

// A driver that has failed may hang when its process ends: the neighbours do not wait for that, nor is one of
// them blamed for it.
TEST_F(ProbedDeviceTest, AnEngineWhoseDeviceFailedAndThatDoesNotEndIsKilled) {
  Run("a", {AssignmentOf("a"), AssignmentOf("b"), AssignmentOf("c")});
  Feed(Fetched{{"b", 1}, {"model", "data", "", ""}});  // attached as a's neighbour
  Feed(EngineTurn{engine_, {"a", 1}});
  EngineFailed failed;
  failed.engine = engine_;
  failed.key = {"a", 1};
  failed.reason = "DEVICE_FAULT";
  failed.message = "the device failed: bus error";
  failed.infrastructure = true;
  Feed(failed);
  EXPECT_FALSE(Failed("a").neighbour_fault);
  Feed(Fetched{{"c", 1}, {"model", "data", "", ""}});
  EXPECT_EQ(Find<Attach>(), nullptr) << "it would go down with it";
  Advance(29 * kSecondUs);
  EXPECT_EQ(Find<KillEngine>(), nullptr);
  Advance(2 * kSecondUs);
  ASSERT_NE(Find<KillEngine>(), nullptr);
  EXPECT_EQ(Find<KillEngine>()->engine, engine_);
  Feed(EngineExited{engine_, "was ended by signal 9 (Killed) by its worker", false});
  EXPECT_EQ(Failed("b").reason, "ENGINE_FAILED");
  EXPECT_TRUE(Failed("b").neighbour_fault) << "it goes back to the queue without a retry";
  EXPECT_NE(Find<DoProbe>(), nullptr);
}

TEST_F(ProbedDeviceTest, WhereItEndsInTimeTheNeighboursAreNotToBlameEither) {
  Run("a", {AssignmentOf("a"), AssignmentOf("b")});
  Feed(Fetched{{"b", 1}, {"model", "data", "", ""}});
  EngineFailed failed;
  failed.engine = engine_;
  failed.key = {"a", 1};
  failed.reason = "DEVICE_FAULT";
  failed.infrastructure = true;
  Feed(failed);
  Feed(EngineExited{engine_, "ended with code 7", false});
  EXPECT_TRUE(Failed("b").neighbour_fault);
  EXPECT_NE(Find<DoProbe>(), nullptr);
}

TEST_F(ProbedDeviceTest, AnEngineThatNeverCameUpIsJudgedByTheProbe) {
  Desire({AssignmentOf("a")});
  Feed(Fetched{{"a", 1}, {"model", "data", "", ""}});
  ASSERT_NE(Find<StartEngine>(), nullptr);
  Feed(EngineExited{Find<StartEngine>()->engine, "no such file", false});
  EXPECT_EQ(Failed("a").reason, "");
  Feed(ProbeEnded{"cpu0", true, ""});  // the device is well: it was the engine
  EXPECT_EQ(Failed("a").reason, "ENGINE_FAILED");
  EXPECT_FALSE(Failed("a").neighbour_fault);
}

TEST_F(ProbedDeviceTest, SilenceIsAnAnswer) {
  Run("a", {AssignmentOf("a")});
  Feed(EngineExited{engine_, "crashed", false});
  ASSERT_NE(Find<DoProbe>(), nullptr);
  Advance(181 * kSecondUs);
  EXPECT_NE(Fault().find("has not answered"), std::string::npos);
  // One probe at a time, however long it takes.
  Advance(3'600 * kSecondUs);
  EXPECT_EQ(Find<DoProbe>(), nullptr);
  Feed(ProbeEnded{"cpu0", true, ""});
  EXPECT_EQ(agent_.withdrawn_devices(), 0u);
}

TEST_F(ProbedDeviceTest, NoProbeWhereAnotherEngineWorksNorAfterAnOrderlyEnd) {
  const int64_t first = Run("a", {AssignmentOf("a")});
  Desire({AssignmentOf("a"), AssignmentOf("b", "other")});
  Feed(Fetched{{"b", 1}, {"model", "data", "", ""}});
  ASSERT_NE(Find<StartEngine>(), nullptr);
  const int64_t second = Find<StartEngine>()->engine;
  Feed(EngineHello{second, "n"});
  Feed(EngineExited{first, "crashed", false});
  EXPECT_EQ(Find<DoProbe>(), nullptr);
  Feed(EngineFailed{second, {"b", 1}, "LOSS_NOT_FINITE", "nan", false});
  Advance(61 * kSecondUs);
  ASSERT_NE(Find<ShutdownEngine>(), nullptr);
  Feed(EngineExited{second, "ended with code 0", false});
  EXPECT_EQ(Find<DoProbe>(), nullptr);
}

}  // namespace
}  // namespace nibble::worker

// The agent, one input at a time.
#include "worker/core/agent.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>

namespace nibble::worker {
namespace {

constexpr int64_t kSecondUs = 1'000'000;

class AgentTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Feed(Start{});
    ASSERT_NE(Find<DoRegister>(), nullptr);
    Feed(RegisterReply{true, false, "t1", 1, 120 * kSecondUs});
    ASSERT_NE(Find<DoSynchronize>(), nullptr);
  }
  void Feed(const Input& input) {
    last_ = agent_.Handle(input, now_us_);
    for (const Action& action : last_) {
      if (const auto* sync = std::get_if<DoSynchronize>(&action)) sync_ = sync->request;
      if (const auto* report = std::get_if<DoReport>(&action)) reports_.push_back(report->report);
    }
  }
  void Advance(int64_t us) {
    now_us_ += us;
    Feed(Tick{});
  }
  template <typename A>
  const A* Find() const {
    for (const Action& action : last_) {
      if (const auto* a = std::get_if<A>(&action)) return a;
    }
    return nullptr;
  }
  static Assignment AssignmentOf(const std::string& job, const std::string& base = "base",
                                 Want want = Want::kRun) {
    Assignment a;
    a.key = {job, 1};
    a.token = "token-" + job;
    a.device_id = "cpu0";
    a.base_digest = base;
    a.want = want;
    return a;
  }
  void Desire(std::vector<Assignment> assignments) {
    // The next call is a moment after the last answer.
    if (sync_.id == answered_) Advance(50'000);
    answered_ = sync_.id;
    SynchronizeReply reply;
    reply.id = sync_.id;
    reply.timeline = "t1";
    reply.generation = 1;
    reply.revision = ++revision_;
    reply.assignments = std::move(assignments);
    Feed(reply);
  }
  // Up to attached; the engine's number.
  int64_t Run(const std::string& job, std::vector<Assignment> desired) {
    Desire(std::move(desired));
    Feed(Fetched{{job, 1}, {"model", "data", "", ""}});
    if (const auto* start = Find<StartEngine>()) {
      engine_ = start->engine;
      Feed(EngineHello{engine_, "numerics"});
    }
    EXPECT_NE(Find<Attach>(), nullptr);
    return engine_;
  }
  void Answer(ReportReply::Code code) { Feed(ReportReply{reports_.back().id, code, "no"}); }
  std::vector<std::string> Listed() const {
    std::vector<std::string> keys;
    for (const RunningAttempt& a : sync_.attempts) keys.push_back(a.key.ToString());
    return keys;
  }
  EngineStep StepOf(const std::string& job, int64_t step) const {
    EngineStep in{engine_, {job, 1}, {}};
    in.metric.step = step;
    in.metric.tokens = 10;
    return in;
  }

  Agent agent_{AgentOptions{}};
  int64_t now_us_ = 1'000 * kSecondUs;
  std::vector<Action> last_;
  SynchronizeRequest sync_;
  std::vector<Report> reports_;
  int64_t answered_ = 0;
  int64_t revision_ = 0;
  int64_t engine_ = 0;
};

TEST_F(AgentTest, FetchesStartsAttachesAndLists) {
  Desire({AssignmentOf("a")});
  ASSERT_NE(Find<DoFetch>(), nullptr);
  Advance(50'000);
  EXPECT_THAT(Listed(), testing::ElementsAre("a/1"));
  Feed(Fetched{{"a", 1}, {"model", "data", "", ""}});
  const auto* start = Find<StartEngine>();
  ASSERT_NE(start, nullptr);
  EXPECT_EQ(start->model_dir, "model");
  EXPECT_EQ(Find<Attach>(), nullptr);  // not before it says hello
  Feed(EngineHello{start->engine, "n"});
  ASSERT_NE(Find<Attach>(), nullptr);
}

TEST_F(AgentTest, JobsOfOneBaseShareTheEngine) {
  const int64_t engine = Run("a", {AssignmentOf("a")});
  EXPECT_EQ(Run("b", {AssignmentOf("a"), AssignmentOf("b")}), engine);
  EXPECT_EQ(agent_.engines(), 1u);
}

TEST_F(AgentTest, AnIdleEngineIsGoneBeforeAnotherBaseComes) {
  const int64_t engine = Run("a", {AssignmentOf("a")});
  Feed(EngineFailed{engine, {"a", 1}, "LOSS_NOT_FINITE", "nan", false});
  Answer(ReportReply::Code::kOk);
  Desire({AssignmentOf("b", "other")});
  Feed(Fetched{{"b", 1}, {"model", "data", "", ""}});
  EXPECT_NE(Find<ShutdownEngine>(), nullptr);
  EXPECT_EQ(Find<StartEngine>(), nullptr);
  Feed(EngineExited{engine, "shut down", false});
  EXPECT_NE(Find<StartEngine>(), nullptr);
}

TEST_F(AgentTest, AResultIsReportedOnlyAfterItsUploadAndListedUntilTheServerHasSeenIt) {
  const int64_t engine = Run("a", {AssignmentOf("a")});
  Feed(EngineFinished{engine, {"a", 1}, 9, "/adapter", "completed"});
  const auto* upload = Find<DoUpload>();
  ASSERT_NE(upload, nullptr);
  EXPECT_TRUE(reports_.empty());
  Feed(Uploaded{upload->id, {{"adapter", "sha", 5}}});
  ASSERT_EQ(reports_.size(), 1u);
  EXPECT_EQ(std::get<FinishedReport>(reports_[0].body).files.size(), 1u);
  Answer(ReportReply::Code::kUnavailable);
  Advance(5 * kSecondUs);
  ASSERT_EQ(reports_.size(), 2u);
  EXPECT_EQ(reports_[1].id, reports_[0].id);  // the same, again
  Answer(ReportReply::Code::kOk);
  EXPECT_EQ(agent_.attempts(), 1u);
  EXPECT_EQ(sync_.attempts[0].phase, Phase::kReleased);
  Desire({});
  EXPECT_EQ(agent_.attempts(), 0u);
  EXPECT_NE(Find<Forget>(), nullptr);
}

// A lease of seconds leaves time to work in.
TEST(AgentLease, ShorterThanTheMargin) {
  Agent agent{AgentOptions{}};
  int64_t now_us = kSecondUs;
  agent.Handle(Start{}, now_us);
  agent.Handle(RegisterReply{true, false, "t1", 1, 8 * kSecondUs}, now_us);
  EXPECT_TRUE(agent.trusted(now_us + 6 * kSecondUs));
  EXPECT_FALSE(agent.trusted(now_us + 8 * kSecondUs));
}

TEST_F(AgentTest, ReleaseSavesUploadsReportsInThatOrder) {
  const int64_t engine = Run("a", {AssignmentOf("a")});
  Desire({AssignmentOf("a", "base", Want::kRelease)});
  const auto* detach = Find<Detach>();
  ASSERT_NE(detach, nullptr);
  EXPECT_TRUE(detach->checkpoint);
  Feed(EngineCheckpoint{engine, {"a", 1}, 4, "/c", "m", 0.5});
  const auto* found = Find<DoUpload>();
  ASSERT_NE(found, nullptr);
  const DoUpload upload = *found;
  Feed(EngineDetached{engine, {"a", 1}, 4});
  EXPECT_TRUE(reports_.empty());
  Feed(Uploaded{upload.id, {{"c", "sha", 5}}});
  EXPECT_TRUE(std::holds_alternative<CheckpointReport>(reports_.back().body));
  Answer(ReportReply::Code::kOk);
  EXPECT_EQ(std::get<ReleasedReport>(reports_.back().body).step, 4);
}

TEST_F(AgentTest, WhatIsNoLongerDesiredIsStoppedWithoutAWord) {
  const int64_t engine = Run("a", {AssignmentOf("a")});
  Feed(StepOf("a", 1));
  Desire({});
  const auto* detach = Find<Detach>();
  ASSERT_NE(detach, nullptr);
  EXPECT_FALSE(detach->checkpoint);
  EXPECT_THAT(Listed(), testing::ElementsAre("a/1"));  // its bytes are still there
  Advance(2 * kSecondUs);
  Feed(EngineDetached{engine, {"a", 1}, 1});
  EXPECT_EQ(agent_.attempts(), 0u);
  EXPECT_TRUE(reports_.empty());
  EXPECT_TRUE(sync_.attempts.empty());
}

TEST_F(AgentTest, AResultWaitsForTheServersDiskAndSaysSo) {
  const int64_t engine = Run("a", {AssignmentOf("a")});
  Feed(EngineNoRoom{engine, {"a", 1}, 8, "no space left"});
  Feed(EngineFinished{engine, {"a", 1}, 9, "/adapter", "completed"});
  const int64_t upload = Find<DoUpload>()->id;
  Feed(UploadFailed{upload, "STORAGE_FULL", "the server's disk has 5 bytes free"});
  Advance(50'000);
  Desire({AssignmentOf("a")});
  Advance(50'000);
  ASSERT_EQ(sync_.attempts.size(), 1u);
  EXPECT_EQ(sync_.attempts[0].phase, Phase::kPausedDisk);
  Advance(31 * kSecondUs);
  const auto* again = Find<DoUpload>();
  ASSERT_NE(again, nullptr);
  EXPECT_EQ(again->dir, "/adapter");
  Feed(Uploaded{again->id, {{"adapter", "sha", 5}}});
  ASSERT_EQ(reports_.size(), 1u);
  EXPECT_TRUE(std::holds_alternative<FinishedReport>(reports_[0].body));
}

// A full disk is said until something was written again, more is free than was, or a while passed.
TEST_F(AgentTest, AFullDiskIsSaidUntilThereIsRoom) {
  const int64_t engine = Run("a", {AssignmentOf("a")});
  Advance(50'000);
  EXPECT_EQ(sync_.no_room, "");
  Feed(EngineNoRoom{engine, {"a", 1}, 8, "no space left"});
  EXPECT_NE(Find<MeasureRoom>(), nullptr);
  EXPECT_EQ(sync_.no_room, "no space left");
  Feed(RoomMeasured{5'000});
  Feed(EngineCheckpoint{engine, {"a", 1}, 8, "/checkpoint", "sum", 1.0});
  EXPECT_EQ(sync_.no_room, "") << "a checkpoint was written";
  Feed(EngineNoRoom{engine, {"a", 1}, 16, "no space left"});
  Feed(RoomMeasured{5'000});
  Advance(31 * kSecondUs);
  ASSERT_NE(Find<MeasureRoom>(), nullptr);
  Feed(RoomMeasured{3'000});
  Advance(31 * kSecondUs);
  ASSERT_NE(Find<MeasureRoom>(), nullptr);
  Feed(RoomMeasured{3'000 + (int64_t{64} << 20)});
  EXPECT_EQ(sync_.no_room, "") << "somebody made room";
  Feed(EngineNoRoom{engine, {"a", 1}, 24, "no space left"});
  EXPECT_NE(sync_.no_room, "");
  Advance(301 * kSecondUs);
  EXPECT_EQ(sync_.no_room, "") << "worth another try";
}

TEST_F(AgentTest, WhatCannotBeFetchedForWantOfRoomIsTriedOnceMoreAndGoesBack) {
  Desire({AssignmentOf("a")});
  Feed(FetchFailed{{"a", 1}, "STORAGE_FULL", "no space left", true, true});
  Advance(50'000);
  EXPECT_EQ(sync_.no_room, "no space left");
  EXPECT_TRUE(reports_.empty());
  Advance(31 * kSecondUs);
  ASSERT_NE(Find<DoFetch>(), nullptr);
  Feed(FetchFailed{{"a", 1}, "STORAGE_FULL", "no space left", true, true});
  ASSERT_EQ(reports_.size(), 1u);
  const auto& failed = std::get<FailedReport>(reports_[0].body);
  EXPECT_EQ(failed.reason, "STORAGE_FULL");
  EXPECT_TRUE(failed.infrastructure);
}

// A worker that was removed and lives all the same lets everything go before it registers as a new one.
TEST_F(AgentTest, WhoWasForgottenLetsGoFirst) {
  const int64_t engine = Run("a", {AssignmentOf("a")});
  Advance(50'000);
  SynchronizeReply reply;
  reply.id = sync_.id;
  reply.code = SynchronizeReply::Code::kRegisterAgain;
  Feed(reply);
  EXPECT_NE(Find<Detach>(), nullptr);
  Advance(2 * kSecondUs);
  EXPECT_EQ(Find<DoRegister>(), nullptr) << "the job's bytes are still in use";
  Feed(EngineDetached{engine, {"a", 1}, 1});
  ASSERT_NE(Find<DoRegister>(), nullptr);
  Feed(RegisterReply{true, false, "t1", 1, 120 * kSecondUs});
  Advance(50'000);
  EXPECT_EQ(sync_.known_revision, 0) << "revisions of a new worker begin anew";
  EXPECT_TRUE(sync_.attempts.empty());
}

TEST_F(AgentTest, AStaleAnswerEndsTheAttempt) {
  Run("a", {AssignmentOf("a")});
  Feed(StepOf("a", 1));
  Advance(2 * kSecondUs);
  ASSERT_EQ(reports_.size(), 1u);
  EXPECT_EQ(reports_[0].metrics.size(), 1u);
  Answer(ReportReply::Code::kStale);
  EXPECT_NE(Find<Detach>(), nullptr);
}

TEST_F(AgentTest, TrustIsAnchoredAtSendTimeAndItsEndSavesAndPauses) {
  Run("a", {AssignmentOf("a")});
  const int64_t sent_us = now_us_;
  Desire({AssignmentOf("a")});  // answers a call that was sent earlier
  now_us_ = sent_us + 104 * kSecondUs;
  Feed(Tick{});
  EXPECT_EQ(Find<PauseAttempt>(), nullptr);
  now_us_ = sent_us + 106 * kSecondUs;
  Feed(Tick{});
  EXPECT_NE(Find<CheckpointAttempt>(), nullptr);
  EXPECT_NE(Find<PauseAttempt>(), nullptr);
  // A call of now, answered: it goes on.
  Feed(SynchronizeReply{sync_.id, SynchronizeReply::Code::kUnavailable, "", 0, 0, {}});
  Advance(10 * kSecondUs);
  Desire({AssignmentOf("a")});
  EXPECT_NE(Find<ResumeAttempt>(), nullptr);
}

// The server gave the attempt up, nobody else had it yet: what is in memory goes on under the next epoch.
TEST_F(AgentTest, AReinstatedAttemptGoesOnWhereItIs) {
  const int64_t engine = Run("a", {AssignmentOf("a")});
  Feed(StepOf("a", 1));
  Advance(2 * kSecondUs);
  ASSERT_EQ(reports_.size(), 1u);  // never answered while the line is dead
  now_us_ += 200 * kSecondUs;
  Feed(Tick{});
  ASSERT_NE(Find<PauseAttempt>(), nullptr);
  Answer(ReportReply::Code::kStale);  // before the set has been asked for
  EXPECT_EQ(Find<Detach>(), nullptr);
  ASSERT_EQ(sync_.attempts.size(), 1u);
  EXPECT_TRUE(sync_.attempts[0].intact);
  Feed(SynchronizeReply{sync_.id, SynchronizeReply::Code::kUnavailable, "", 0, 0, {}});
  Advance(10 * kSecondUs);
  Assignment next = AssignmentOf("a");
  next.key.epoch = 2;
  next.token = "token-2";
  next.continues_epoch = 1;
  Desire({next});
  const auto* resume = Find<ResumeAttempt>();
  ASSERT_NE(resume, nullptr);
  EXPECT_EQ(resume->key.ToString(), "a/1");  // as the engine knows it
  EXPECT_EQ(Find<DoFetch>(), nullptr);
  EXPECT_EQ(reports_.back().key.ToString(), "a/2");  // what was not answered is said again
  EXPECT_EQ(reports_.back().token, "token-2");
  ASSERT_EQ(reports_.back().metrics.size(), 1u);
  Answer(ReportReply::Code::kOk);
  Advance(50'000);
  EXPECT_THAT(Listed(), testing::ElementsAre("a/2"));
  Feed(EngineFinished{engine, {"a", 1}, 9, "/adapter", "completed"});
  const auto* upload = Find<DoUpload>();
  ASSERT_NE(upload, nullptr);
  EXPECT_EQ(upload->key.ToString(), "a/2");
  Feed(Uploaded{upload->id, {{"adapter", "sha", 5}}});
  EXPECT_EQ(reports_.back().key.ToString(), "a/2");
  Answer(ReportReply::Code::kOk);
  Desire({});
  ASSERT_NE(Find<Forget>(), nullptr);
  EXPECT_EQ(Find<Forget>()->key.ToString(), "a/1");
}

// Its memory was given back in the meantime: it begins anew, once the old one has let go of its bytes.
TEST_F(AgentTest, AReinstatedAttemptWithoutItsMemoryBeginsAnew) {
  const int64_t engine = Run("a", {AssignmentOf("a")});
  Advance(105 * kSecondUs + AgentOptions{}.silence_us + kSecondUs);
  ASSERT_NE(Find<Detach>(), nullptr);
  Feed(SynchronizeReply{sync_.id, SynchronizeReply::Code::kUnavailable, "", 0, 0, {}});
  Advance(10 * kSecondUs);
  EXPECT_FALSE(sync_.attempts.at(0).intact);
  Assignment next = AssignmentOf("a");
  next.key.epoch = 2;
  next.continues_epoch = 1;
  Desire({next});
  EXPECT_NE(Find<DoFetch>(), nullptr);
  Feed(Fetched{{"a", 2}, {"model", "data", "", ""}});
  EXPECT_EQ(Find<Attach>(), nullptr);
  Feed(EngineDetached{engine, {"a", 1}, 1});
  ASSERT_NE(Find<Attach>(), nullptr);
  EXPECT_EQ(Find<Attach>()->assignment.key.ToString(), "a/2");
}

// A server that restarts renews leases, so it may still want what was given up in the silence.
TEST_F(AgentTest, WhatWasGivenUpIsNeitherListedNorBegunAgain) {
  const int64_t engine = Run("a", {AssignmentOf("a")});
  Advance(105 * kSecondUs + AgentOptions{}.silence_us + kSecondUs);
  ASSERT_NE(Find<Detach>(), nullptr);
  Feed(SynchronizeReply{sync_.id, SynchronizeReply::Code::kUnavailable, "", 0, 0, {}});
  Advance(10 * kSecondUs);
  Desire({AssignmentOf("a")});
  EXPECT_THAT(Listed(), testing::ElementsAre("a/1"));  // its bytes are still there
  Feed(EngineDetached{engine, {"a", 1}, 1});
  EXPECT_EQ(agent_.attempts(), 0u);
  Advance(2 * kSecondUs);
  EXPECT_TRUE(sync_.attempts.empty());
  Desire({AssignmentOf("a")});  // an answer that was on its way
  EXPECT_EQ(agent_.attempts(), 0u);
  EXPECT_TRUE(reports_.empty());
}

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

TEST_F(AgentTest, ALateAnswerOfAnAbandonedCallIsIgnored) {
  SynchronizeReply late;
  late.id = sync_.id;
  late.timeline = "t1";
  late.revision = 99;
  Feed(Drain{});  // the call is replaced by one that says so
  late.assignments = {AssignmentOf("a")};
  Feed(late);
  EXPECT_EQ(agent_.attempts(), 0u);
  EXPECT_TRUE(sync_.draining);
}

TEST_F(AgentTest, DrainsThenExits) {
  const int64_t engine = Run("a", {AssignmentOf("a")});
  Feed(Drain{});
  Advance(50'000);
  EXPECT_TRUE(sync_.draining);
  Desire({AssignmentOf("a", "base", Want::kRelease)});
  Feed(EngineDetached{engine, {"a", 1}, 0});
  EXPECT_NE(Find<ShutdownEngine>(), nullptr);
  Answer(ReportReply::Code::kOk);
  Desire({});
  EXPECT_EQ(Find<Exit>(), nullptr);
  Feed(EngineExited{engine, "", false});
  ASSERT_NE(Find<Exit>(), nullptr);
  EXPECT_FALSE(Find<Exit>()->superseded);
}

TEST_F(AgentTest, SupersededStopsEverything) {
  Run("a", {AssignmentOf("a")});
  Advance(50'000);
  Feed(SynchronizeReply{sync_.id, SynchronizeReply::Code::kSuperseded, "", 0, 0, {}});
  EXPECT_NE(Find<KillEngine>(), nullptr);
  ASSERT_NE(Find<Exit>(), nullptr);
  EXPECT_TRUE(Find<Exit>()->superseded);
}

TEST_F(AgentTest, AChecksReportGoesUp) {
  Assignment check = AssignmentOf("c");
  check.kind = Kind::kCheck;
  Desire({check});
  Feed(Fetched{{"c", 1}, {"model", "data", "", ""}});
  ASSERT_NE(Find<StartCheck>(), nullptr);
  CheckEnded ended;
  ended.key = {"c", 1};
  ended.ok = true;
  ended.planned_steps = 12;
  Feed(ended);
  EXPECT_EQ(std::get<CheckReport>(reports_.back().body).planned_steps, 12);
}

TEST_F(AgentTest, FetchesAreTriedAgainUntilTheyAreHopeless) {
  Desire({AssignmentOf("a")});
  for (int i = 0; i < 4; ++i) {
    Feed(FetchFailed{{"a", 1}, "STORE_UNAVAILABLE", "", true});
    EXPECT_TRUE(reports_.empty());
    Advance(60 * kSecondUs);
    ASSERT_NE(Find<DoFetch>(), nullptr) << i;
    Desire({AssignmentOf("a")});
  }
  Feed(FetchFailed{{"a", 1}, "STORE_UNAVAILABLE", "", true});
  ASSERT_EQ(reports_.size(), 1u);
  EXPECT_TRUE(std::get<FailedReport>(reports_[0].body).infrastructure);
}

// ---- Devices that a driver may lose

class ProbedDeviceTest : public AgentTest {
 protected:
  void SetUp() override {
    AgentOptions options;
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

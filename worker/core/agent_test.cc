// The agent, one input at a time.
#include "worker/core/agent.h"

#include <utility>

#include "worker/core/testing/agent_fixture.h"

namespace nibble::worker {
namespace {

using ::testing::HasSubstr;

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

TEST_F(AgentTest, TellsTheServerThatNoCheckpointWillDo) {
  const int64_t engine = Run("a", {AssignmentOf("a")});
  Feed(EngineFailed{engine, {"a", 1}, "CHECKPOINT_INVALID", "belongs to another data set", true, true});
  ASSERT_EQ(reports_.size(), 1u);
  EXPECT_TRUE(std::get<FailedReport>(reports_[0].body).all_checkpoints);
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

// A pause or a preemption hangs on it, so the server is told why it does not come up.
TEST_F(AgentTest, WhatDoesNotGoUpIsSaidUntilItDoes) {
  const int64_t engine = Run("a", {AssignmentOf("a")});
  const auto told = [&] {  // by the next call
    Advance(50'000);
    Desire({AssignmentOf("a")});
    Advance(50'000);
    return sync_.attempts.at(0).trouble;
  };
  EXPECT_EQ(told(), "");
  Feed(EngineCheckpoint{engine, {"a", 1}, 8, "/checkpoint", "sum", 1.0});
  Feed(UploadFailed{Find<DoUpload>()->id, "DIGEST_MISMATCH", "blob X has other bytes"});
  EXPECT_EQ(told(), "the checkpoint of step 8 does not go up, and is tried again: blob X has other bytes");
  Advance(2 * kSecondUs);
  ASSERT_NE(Find<DoUpload>(), nullptr);
  Feed(Uploaded{Find<DoUpload>()->id, {{"state", "sha", 5}}});
  EXPECT_EQ(told(), "");
  Answer(ReportReply::Code::kUnavailable);
  EXPECT_EQ(told(), "its reports are not taken, and are sent again: no");
  Advance(6 * kSecondUs);
  Answer(ReportReply::Code::kRefused);
  EXPECT_EQ(told(), "the checkpoint of step 8 was refused, and is lost: no");
  Feed(EngineCheckpoint{engine, {"a", 1}, 9, "/checkpoint", "sum", 1.0});
  Feed(Uploaded{Find<DoUpload>()->id, {{"state", "sha", 5}}});
  Answer(ReportReply::Code::kOk);
  EXPECT_EQ(told(), "");
}

// The call that is outstanding when it begins, or ends, is held for seconds: another goes out at once.
TEST_F(AgentTest, TroubleIsSaidAtOnce) {
  const int64_t engine = Run("a", {AssignmentOf("a")});
  Advance(50'000);
  Feed(EngineCheckpoint{engine, {"a", 1}, 8, "/checkpoint", "sum", 1.0});
  Feed(UploadFailed{Find<DoUpload>()->id, "DIGEST_MISMATCH", "blob X has other bytes"});
  EXPECT_THAT(sync_.attempts.at(0).trouble, HasSubstr("the checkpoint of step 8 does not go up"));
  const int64_t said = sync_.id;
  Advance(2 * kSecondUs);
  Feed(UploadFailed{Find<DoUpload>()->id, "DIGEST_MISMATCH", "blob Y has other bytes"});
  EXPECT_EQ(sync_.id, said) << "a try after that is no news";
  Advance(4 * kSecondUs);
  Feed(Uploaded{Find<DoUpload>()->id, {{"state", "sha", 5}}});
  EXPECT_EQ(sync_.attempts.at(0).trouble, "");
  Answer(ReportReply::Code::kUnavailable);
  EXPECT_THAT(sync_.attempts.at(0).trouble, HasSubstr("its reports are not taken"));
}

TEST_F(AgentTest, FilesThatDoNotComeAreSaidToo) {
  Desire({AssignmentOf("a")});
  Feed(FetchFailed{{"a", 1}, "DIGEST_MISMATCH", "model.safetensors has other bytes"});
  Advance(50'000);
  Desire({AssignmentOf("a")});
  Advance(50'000);
  EXPECT_EQ(sync_.attempts.at(0).trouble,
            "its files do not come here, and are tried again: model.safetensors has other bytes");
}

// A full disk is said until something was written again, more is free than was, or a while passed.
TEST_F(AgentTest, AFullDiskIsSaidUntilThereIsRoom) {
  const int64_t engine = Run("a", {AssignmentOf("a")});
  Advance(50'000);
  EXPECT_EQ(sync_.no_room, "");
  Feed(EngineNoRoom{engine, {"a", 1}, 8, "no space left"});
  EXPECT_NE(Find<MeasureRoom>(), nullptr);
  EXPECT_EQ(sync_.no_room, "no space left");
  EXPECT_EQ(sync_.attempts.at(0).trouble, "the checkpoint of step 8 finds no room here: no space left");
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

TEST_F(AgentTest, APriorityThatChangesReachesTheEngineWithoutLettingGo) {
  Assignment a = AssignmentOf("a"), b = AssignmentOf("b");
  const int64_t engine = Run("a", {a});
  a.priority = 7;
  Desire({a, b});
  const auto* told = Find<SetPriority>();
  ASSERT_NE(told, nullptr);
  EXPECT_EQ(told->engine, engine);
  EXPECT_EQ(told->key.ToString(), "a/1");
  EXPECT_EQ(told->priority, 7);
  EXPECT_EQ(Find<Detach>(), nullptr);
  b.priority = 3;  // it is being fetched, and will be attached with that
  Desire({a, b});
  EXPECT_EQ(Find<SetPriority>(), nullptr) << "said once";
  Feed(Fetched{{"b", 1}, {"model", "data", "", ""}});
  ASSERT_NE(Find<Attach>(), nullptr);
  EXPECT_EQ(Find<Attach>()->assignment.priority, 3);
  a.key.epoch = 2;
  a.continues_epoch = 1;
  a.priority = 0;
  Desire({a, b});
  ASSERT_NE(Find<SetPriority>(), nullptr);
  EXPECT_EQ(Find<SetPriority>()->key.ToString(), "a/1");  // as the engine knows it
  EXPECT_EQ(Find<SetPriority>()->priority, 0);
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

}  // namespace
}  // namespace nibble::worker

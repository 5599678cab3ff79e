// Attempts that fail: whose fault it was, what it costs, and when it ends the job.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "base/error.h"
#include "base/outside_text.h"
#include "server/core/limits.h"
#include "server/core/testing/running_job.h"

namespace nibble::core {
namespace {

using ::testing::HasSubstr;
using testing::Driver;
using testing::kMB;
using testing::RunningTest;

TEST_F(RunningTest, RetriesBackOffAndEnd) {
  d_.core().options.poison_workers = 99;
  int64_t previous_us = 0;
  for (int i = 0; i < d_.core().options.max_infra_retries; ++i) {
    d_.Must(Failed("STORE_UNAVAILABLE", true));
    ASSERT_EQ(state(), JobState::kQueued);
    const int64_t backoff_us = d_.job("j").not_before_us - d_.Now().monotonic_us;
    EXPECT_GE(backoff_us, previous_us);
    previous_us = backoff_us;
    d_.Must(Synchronize(d_.SyncOf("w1")));
    d_.Place();
    EXPECT_EQ(state(), JobState::kQueued);  // not yet
    d_.Advance(backoff_us);
    d_.Must(Synchronize(d_.SyncOf("w1")));
    // The lease ran out in between, which is no attempt's fault.
    d_.Must(Driver::WorkerOf("w1", "i1", 1'000 * kMB));
    d_.Place();
    ASSERT_EQ(state(), JobState::kStarting);
  }
  EXPECT_EQ(previous_us, d_.core().options.backoff_max_us);
  d_.Must(Failed("STORE_UNAVAILABLE", true));
  EXPECT_EQ(state(), JobState::kFailed);
  EXPECT_EQ(d_.job("j").error_reason, "STORE_UNAVAILABLE");
}

TEST_F(RunningTest, ALongMessageIsCutBetweenCharacters) {
  std::string message = "x";  // so that the bound is inside a character
  while (message.size() <= kMaxReportBytes) message += "\xC3\xA4";
  d_.Must(ReportFailed{d_.FenceOf("j"), "TOKENIZER_UNSUPPORTED", message, false, false});
  ASSERT_EQ(state(), JobState::kFailed);
  const std::string& shown = d_.job("j").error_message;
  EXPECT_TRUE(IsValidUtf8(shown));
  EXPECT_GE(shown.size(), kMaxReportBytes);
  EXPECT_LE(shown.size(), kMaxReportBytes + 2);  // the mark in place of half a character
}

TEST_F(RunningTest, AFullDiskIsWaitedForAndSpendsNoRetry) {
  for (int i = 0; i < 2 * d_.core().options.max_infra_retries; ++i) {
    d_.Must(
        ReportFailed{d_.FenceOf("j"), "STORAGE_FULL", "write /data/x: no space left", true, false});
    ASSERT_EQ(state(), JobState::kQueued);
    EXPECT_THAT(d_.Why("j"), ::testing::AllOf(HasSubstr("another try after STORAGE_FULL"),
                                              HasSubstr("/data/x")));
    d_.Must(Synchronize(d_.SyncOf("w1")));
    d_.Place();
    EXPECT_EQ(state(), JobState::kQueued) << "not at once";
    d_.Advance(d_.core().options.backoff_max_us / 2);
    d_.Must(Synchronize(d_.SyncOf("w1")));
    d_.Must(Driver::WorkerOf("w1", "i1", 1'000 * kMB));
    d_.Place();
    ASSERT_EQ(state(), JobState::kStarting);
  }
  EXPECT_EQ(d_.job("j").infra_retries, 0);
}

TEST_F(RunningTest, ARetrySaysWhatItFollows) {
  const std::string killed = "the engine was ended by signal 9";
  d_.Must(ReportFailed{d_.FenceOf("j"), "OUT_OF_MEMORY", killed, true, false});
  EXPECT_THAT(d_.Why("j"), ::testing::AllOf(HasSubstr("retry 1 of 10 after OUT_OF_MEMORY"),
                                            HasSubstr("signal 9")));
}

TEST_F(RunningTest, ANeighboursFaultCostsNothing) {
  d_.Must(ReportFailed{d_.FenceOf("j"), "ENGINE_FAILED", "", true, true});
  EXPECT_EQ(state(), JobState::kQueued);
  EXPECT_EQ(d_.job("j").infra_retries, 0);
  EXPECT_LE(d_.job("j").not_before_us, d_.Now().monotonic_us);
}

TEST_F(RunningTest, TheSecondFaultOfItsOwnMakesItRunAlone) {
  d_.Must(Failed("ENGINE_FAILED", true));
  EXPECT_FALSE(d_.job("j").run_alone);
  d_.Advance(10 * kSecondUs);
  d_.Must(Synchronize(d_.SyncOf("w1")));
  d_.Place();
  d_.Must(Failed("ENGINE_FAILED", true));
  EXPECT_TRUE(d_.job("j").run_alone);
}

TEST(Poison, ThreeDifferentWorkersSoonAfterTheStart) {
  Driver d;
  for (const char* id : {"w1", "w2", "w3"}) d.AddWorker(id);
  d.Must(Driver::JobOf("j"));
  for (int i = 0; i < 3; ++i) {
    for (const char* id : {"w1", "w2", "w3"}) d.Must(Synchronize(d.SyncOf(id)));
    d.Place();
    ASSERT_EQ(d.job("j").state, JobState::kStarting) << i;
    d.Must(ReportFailed{d.FenceOf("j"), "ENGINE_FAILED", "died", true, false});
    d.Advance(20 * kSecondUs);
  }
  EXPECT_EQ(d.job("j").state, JobState::kFailed);
  EXPECT_EQ(d.job("j").error_reason, "POISON");
}

TEST_F(RunningTest, AFaultOfItsOwnMakingIsFinal) {
  d_.Must(Failed("LOSS_NOT_FINITE", false));
  EXPECT_EQ(state(), JobState::kFailed);
  EXPECT_EQ(d_.job("j").error_reason, "LOSS_NOT_FINITE");
  d_.Must(ReportFailed{d_.FenceOf("j"), "LOSS_NOT_FINITE", "", false, false});  // a repeat
}

}  // namespace
}  // namespace nibble::core

#include "server/job_head.h"

#include <gtest/gtest.h>

#include <limits>

#include "base/file.h"
#include "server/control_loop.h"
#include "server/core/testing/driver.h"
#include "server/store/sqlite_store.h"

namespace nibble::server {
namespace {

using core::testing::Driver;

TEST(HeadAfter, CountsEveryStepOnce) {
  core::Progress before;
  before.step = 2;
  before.trained_tokens = 20;
  std::vector<store::StepMetric> metrics(3);
  for (int i = 0; i < 3; ++i) {
    metrics[static_cast<size_t>(i)].step = i + 2;
    metrics[static_cast<size_t>(i)].tokens = 10;
    metrics[static_cast<size_t>(i)].step_time_us = 1'000'000;
    metrics[static_cast<size_t>(i)].loss = 1.0 / (i + 2);
  }
  metrics[2].eval_loss = 0.5;
  metrics[2].gradient_norm = std::numeric_limits<double>::quiet_NaN();
  metrics[1].gradient_norm = 2;
  const core::Progress head = HeadAfter(before, metrics);
  EXPECT_EQ(head.step, 4);
  EXPECT_EQ(head.trained_tokens, 40) << "step 2 was counted before";
  EXPECT_EQ(head.loss, 0.25);
  EXPECT_EQ(head.eval_loss, 0.5);
  EXPECT_EQ(head.gradient_norm, 2) << "the last finite one";
  EXPECT_DOUBLE_EQ(head.tokens_per_second, 10);
}

// With logging_steps above 1 the step of an evaluation may not have been told: no loss, no tokens.
TEST(HeadAfter, AnEvaluationAloneHidesNothing) {
  std::vector<store::StepMetric> metrics(2);
  metrics[0] = {.step = 20, .loss = 1.5, .learning_rate = 1e-4, .tokens = 100, .step_time_us = 1'000'000};
  metrics[1] = {.step = 25, .eval_loss = 2.0};
  const core::Progress head = HeadAfter({}, metrics);
  EXPECT_EQ(head.loss, 1.5);
  EXPECT_EQ(head.learning_rate, 1e-4);
  EXPECT_EQ(head.eval_loss, 2.0);
  EXPECT_DOUBLE_EQ(head.tokens_per_second, 100);
}

// Steps between told ones, left out by logging_steps or dropped for a slow reader, had about as many tokens.
TEST(HeadAfter, StepsThatWereNotToldHadTokensToo) {
  std::vector<store::StepMetric> metrics;
  for (const int64_t step : {1, 10, 20}) metrics.push_back({.step = step, .tokens = 100});
  EXPECT_EQ(HeadAfter({}, metrics).trained_tokens, 2000);
}

// A server over a directory, which is killed and started again.
class CatchUpTest : public testing::Test {
 protected:
  void SetUp() override { Start(); }
  void TearDown() override { loop_.reset(); }
  void Start() {
    loop_.reset();
    metrics_ = store::OpenSqliteMetricStore(directory_.path()).value();
    store_ = store::OpenSqliteStore(directory_.path()).value();
    ControlLoop::Options options;
    options.core.token_secret = "secret";
    options.batch_us = 0;
    options.core.sleep_us = 0;
    options.timeline = "t";
    options.on_load = [this](core::State& state) { CatchUp(*metrics_, state); };
    loop_ = std::make_unique<ControlLoop>(options, core::testing::CheapSpecFunctions(), store_.get(), &hub_,
                                          &clock_);
    ASSERT_TRUE(loop_->Start().ok());
  }
  void Do(core::CommandBody body) {
    ASSERT_TRUE(loop_->Post(std::move(body), [](const absl::Status& status, const ControlLoop::Outcome&) {
      EXPECT_TRUE(status.ok()) << status;
    }));
    loop_->RunOnce(0);
  }
  const core::Job& job() const { return loop_->state().jobs.at("j"); }
  core::Fence FenceOf(const core::Attempt& attempt) const {
    return {"j", attempt.epoch, attempt.worker_id, attempt.incarnation,
            core::AttemptToken(loop_->core().options, loop_->state(), "j", attempt.epoch, attempt.worker_id,
                               attempt.incarnation)};
  }
  // Job "j" on worker "w1".
  void MakeRunningJob() {
    core::RegisterModel model;
    model.model.id = "base";
    model.model.digest = "d";
    model.model.root_path = "/base";
    model.model.config_json = core::testing::kConfigJson;
    model.model.config = spec::ParseModelConfig(core::testing::kConfigJson).value();
    model.model.files = {{"config.json", std::string(64, 'c'), 1}};
    Do(model);
    core::CreateDataset dataset;
    dataset.dataset.id = "data";
    dataset.dataset.path = "/data";
    Do(dataset);
    Do(Driver::WorkerOf("w1", "i1", 1'000 * core::testing::kMB));
    Do(Driver::JobOf("j"));
    ASSERT_NE(job().Current(), nullptr);
  }
  // As a worker's report does.
  void Tell(std::vector<store::StepMetric> metrics) {
    const core::Attempt& attempt = *job().Current();
    for (store::StepMetric& metric : metrics) metric.epoch = attempt.epoch;
    Do(core::ReportProgress{FenceOf(attempt), HeadAfter(job().progress, metrics)});
    ASSERT_TRUE(metrics_->Append("j", metrics).ok());
  }

  TempDir directory_;
  SimClock clock_;
  WatchHub hub_{4, 4};
  std::unique_ptr<store::MetricStore> metrics_;
  std::unique_ptr<store::Store> store_;
  std::unique_ptr<ControlLoop> loop_;
};

TEST_F(CatchUpTest, AJobShowsItsLastStepAfterARestart) {
  MakeRunningJob();
  Tell({{.step = 1, .loss = 3, .tokens = 10, .step_time_us = 1'000}});
  Tell({{.step = 2, .loss = 2.5, .tokens = 10, .step_time_us = 1'000},
        {.step = 3, .loss = 2, .learning_rate = 1e-4, .tokens = 10, .step_time_us = 1'000, .used_bytes = 7}});
  Tell({{.step = 3, .eval_loss = 1.5}});
  // What an earlier attempt had, which was further than its checkpoint.
  ASSERT_TRUE(metrics_->Append("j", {{.step = 9, .epoch = 0, .loss = 9, .tokens = 10}}).ok());
  const core::Progress told = job().progress;
  EXPECT_EQ(told.step, 3);
  Start();
  EXPECT_EQ(job().progress, told);
  EXPECT_EQ(job().progress.trained_tokens, 30);
  EXPECT_EQ(job().progress.eval_loss, 1.5);
  Start();
  EXPECT_EQ(job().progress, told) << "the same again";
}

// All tokens processed are counted, so that what counts them only grows: of three steps the last two come
// again.
TEST_F(CatchUpTest, TokensOfStepsThatAreRepeatedCountAgain) {
  MakeRunningJob();
  Tell({{.step = 1, .tokens = 10}, {.step = 2, .tokens = 10}, {.step = 3, .tokens = 10}});
  const core::Attempt lost = *job().Current();
  Do(core::ReportFailed{FenceOf(lost), "ENGINE_FAILED", "killed", true, false});
  clock_.AdvanceUs(3'600'000'000);
  Do(Driver::WorkerOf("w1", "i2", 1'000 * core::testing::kMB));
  Do(core::Tick{});
  ASSERT_NE(job().Current(), nullptr);
  EXPECT_NE(job().epoch, lost.epoch);
  EXPECT_EQ(job().progress.step, 0) << "there was no checkpoint";
  Tell({{.step = 1, .tokens = 10}, {.step = 2, .tokens = 10}});
  EXPECT_EQ(job().progress.trained_tokens, 50);
}

}  // namespace
}  // namespace nibble::server

// One suite over both stores of step metrics.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "server/store/memory_store.h"
#include "server/store/sqlite_store.h"

namespace nibble::store {
namespace {

struct MetricTwin {
  std::string name;
  std::function<std::shared_ptr<MetricStore>(const std::string& dir)> open;
};

// Without it GoogleTest prints the bytes.
void PrintTo(const MetricTwin& twin, std::ostream* out) { *out << twin.name; }

class MetricStoreTest : public ::testing::TestWithParam<MetricTwin> {
 protected:
  TempDir dir_;
};

TEST_P(MetricStoreTest, MetricsKeepTheHighestEpochAndTakeLateEvaluations) {
  const auto metrics = GetParam().open(dir_.path());
  StepMetric m;
  m.tokens = 10;
  for (int64_t step = 1; step <= 5; ++step) {
    m.step = step;
    m.epoch = 1;
    m.loss = static_cast<double>(step);
    ASSERT_TRUE(metrics->Append("job", {m, m}).ok());
  }
  m.step = 3;
  m.epoch = 2;
  m.loss = 30;
  m.phase_us = {5, 4, 3, 2, 1, 0};
  ASSERT_TRUE(metrics->Append("job", {m}).ok());
  m.loss = 99;  // a repeat changes nothing
  ASSERT_TRUE(metrics->Append("job", {m}).ok());
  StepMetric eval;
  eval.step = 3;
  eval.epoch = 2;
  eval.eval_loss = 0.25;
  ASSERT_TRUE(metrics->Append("job", {eval}).ok());
  StepMetric nan;
  nan.step = 6;
  nan.epoch = 1;
  nan.tokens = 1;
  nan.loss = std::numeric_limits<double>::quiet_NaN();
  ASSERT_TRUE(metrics->Append("job", {nan}).ok());
  const auto rows = metrics->Read("job", 1, 0, 0).value();
  ASSERT_EQ(rows.size(), 5u);
  EXPECT_EQ(rows[1].step, 3);
  EXPECT_EQ(rows[1].epoch, 2);
  EXPECT_EQ(rows[1].loss, 30);
  EXPECT_EQ(rows[1].phase_us, (spec::StepPhaseTimes{5, 4, 3, 2, 1, 0}));
  EXPECT_EQ(rows[0].phase_us, spec::StepPhaseTimes{});
  EXPECT_EQ(rows[1].eval_loss, 0.25);
  EXPECT_TRUE(std::isnan(rows[4].loss));
  EXPECT_EQ(metrics->Read("job", 1, 4, 0).value().size(), 3u);
  for (const char* id : {"a", "z", "m"}) ASSERT_TRUE(metrics->Append(id, {nan}).ok());
  EXPECT_EQ(metrics->JobIds("", 10).value(), (std::vector<std::string>{"a", "job", "m", "z"}));
  EXPECT_EQ(metrics->JobIds("a", 2).value(), (std::vector<std::string>{"job", "m"}));
  EXPECT_TRUE(metrics->JobIds("z", 10).value().empty());
  EXPECT_TRUE(metrics->DeleteJob("job").ok());
  EXPECT_TRUE(metrics->Read("job", 0, 0, 0).value().empty());
}

// An attempt that resumes where an evaluation is due reports it under its own epoch.
TEST_P(MetricStoreTest, AnEvaluationOfALaterAttemptKeepsTheStep) {
  const auto metrics = GetParam().open(dir_.path());
  StepMetric step;
  step.step = 30;
  step.epoch = 1;
  step.tokens = 10;
  step.loss = 0.5;
  StepMetric eval;
  eval.step = 30;
  eval.epoch = 2;
  eval.eval_loss = 0.25;
  ASSERT_TRUE(metrics->Append("job", {step, eval}).ok());
  const auto rows = metrics->Read("job", 0, 0, 0).value();
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].tokens, 10);
  EXPECT_EQ(rows[0].loss, 0.5);
  EXPECT_EQ(rows[0].eval_loss, 0.25);
}

TEST_P(MetricStoreTest, ThinningKeepsTheEndsAndEvaluations) {
  const auto metrics = GetParam().open(dir_.path());
  std::vector<StepMetric> series(1'000);
  for (size_t i = 0; i < series.size(); ++i) {
    series[i].step = static_cast<int64_t>(i) + 1;
    series[i].tokens = 1;
    if (i == 555) series[i].eval_loss = 1;
  }
  ASSERT_TRUE(metrics->Append("job", series).ok());
  const auto rows = metrics->Read("job", 0, 0, 50).value();
  EXPECT_LE(rows.size(), 53u);
  EXPECT_GE(rows.size(), 50u);
  EXPECT_EQ(rows.front().step, 1);
  EXPECT_EQ(rows.back().step, 1'000);
  EXPECT_TRUE(
      std::any_of(rows.begin(), rows.end(), [](const StepMetric& m) { return m.step == 556; }));
}

INSTANTIATE_TEST_SUITE_P(
    Twins, MetricStoreTest,
    ::testing::Values(MetricTwin{"memory",
                                 [](const std::string&) -> std::shared_ptr<MetricStore> {
                                   return std::make_shared<MemoryMetricStore>();
                                 }},
                      MetricTwin{"sqlite",
                                 [](const std::string& dir) -> std::shared_ptr<MetricStore> {
                                   return OpenSqliteMetricStore(dir).value();
                                 }}),
    [](const ::testing::TestParamInfo<MetricTwin>& info) { return info.param.name; });

}  // namespace
}  // namespace nibble::store

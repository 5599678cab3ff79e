// What both stores read back: rows after a commit that failed, and a series thinned.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "server/core/testing/driver.h"
#include "server/store/memory_store.h"
#include "server/store/metric_read.h"
#include "server/store/sqlite.h"
#include "server/store/sqlite_store.h"
#include "server/store/testing/rows.h"

namespace nibble::store {
namespace {

using core::testing::Driver;
using testing::CommitTo;
using testing::ExpectSameRows;

// After a commit that failed: what it was to write is as it is on the disk, and all else as it was.
void CheckReread(Store& store) {
  Driver driver;
  driver.AddWorker("w1");
  core::CreateJob create = Driver::JobOf("a");
  create.request_id = "request-1";
  driver.Must(create);
  driver.Must(Driver::JobOf("b"));
  driver.Place();
  driver.Must(Driver::JobOf("gone"));
  driver.Must(core::CancelJob{"gone"});
  ASSERT_TRUE(CommitTo(store, driver).ok());
  // One of everything.
  driver.Must(core::DeleteJob{"gone"});
  create = Driver::JobOf("gone");
  create.request_id = "request-2";
  driver.Must(create);
  driver.Must(Driver::JobOf("new"));
  driver.Place();
  driver.Must(core::PauseJob{"a"});
  driver.Must(core::ReportFailed{driver.FenceOf("b"), "LOSS_NOT_FINITE", "nan", false, false});
  driver.AddWorker("w2");
  driver.Must(core::DrainWorker{"w1"});
  driver.Must(core::RecordBlob{std::string(64, 'e'), 5});
  driver.RegisterBase("other");
  core::State failed = driver.state();
  ASSERT_TRUE(store.Reread(failed).ok());
  EXPECT_TRUE(failed.touched.Empty());
  failed.BuildIndexes();
  ExpectSameRows(failed, store.Load().value());
  EXPECT_EQ(failed.FindJob("new"), nullptr);
  EXPECT_EQ(failed.jobs.at("gone").state, core::JobState::kCancelled);
  EXPECT_TRUE(failed.CheckInvariants({}).ok()) << failed.CheckInvariants({});
  // The writer goes on from there, and where the commit did take effect that is what is read.
  core::State told_otherwise = driver.state();
  ASSERT_TRUE(CommitTo(store, driver).ok());
  ASSERT_TRUE(store.Reread(told_otherwise).ok());
  told_otherwise.BuildIndexes();
  ExpectSameRows(told_otherwise, driver.state());
  driver.Must(core::CancelJob{"new"});
  driver.Must(core::CancelJob{"gone"});
  ASSERT_TRUE(CommitTo(store, driver).ok());
  ExpectSameRows(driver.state(), store.Load().value());
}

TEST(Reread, UndoesWhatWasNotCommittedInMemory) {
  MemoryStore store;
  CheckReread(store);
}

TEST(Reread, UndoesWhatWasNotCommittedOnDisk) {
  TempDir dir;
  CheckReread(*OpenSqliteStore(dir.path()).value());
}

// As a version wrote them that had neither plans' choices nor when workers were seen.
TEST(SqliteStore, RowsOfAVersionThatKeptLessAreRead) {
  TempDir dir;
  Driver driver;
  driver.AddWorker("w1");
  driver.Must(Driver::JobOf("a"));
  driver.Place();
  core::Job& job = driver.mutable_state().jobs.at("a");
  job.plan.choices = job.attempts.at(1).plan.choices = {spec::Recompute::kFull, spec::BaseCache::kOn, true};
  driver.mutable_state().workers.at("w1").lost_unix_us = 5;
  ASSERT_TRUE(CommitTo(*OpenSqliteStore(dir.path()).value(), driver).ok());
  {
    Database db = Database::Open(dir.Join("state.db"), Database::Mode::kReadWrite).value();
    for (const char* change :
         {"UPDATE jobs SET body=json_remove(body,'$.plan.choices') WHERE body LIKE '%choices%'",
          "UPDATE attempts SET body=json_remove(body,'$.plan.choices') WHERE body LIKE '%choices%'",
          "UPDATE workers SET body=json_remove(body,'$.lost_unix_us','$.last_seen_unix_us') "
          "WHERE body LIKE '%lost_unix_us%' AND body LIKE '%last_seen_unix_us%'"}) {
      ASSERT_TRUE(db.Execute(change).ok());
      EXPECT_EQ(db.QueryText("SELECT changes()").value(), "1") << change;
    }
  }
  const core::State state = OpenSqliteStore(dir.path()).value()->Load().value();
  const core::Job& read = state.jobs.at("a");
  EXPECT_TRUE(read.plan.choices == spec::PlanChoices{});
  EXPECT_TRUE(read.attempts.at(1).plan.choices == spec::PlanChoices{});
  EXPECT_EQ(read.plan.TotalBytes(), job.plan.TotalBytes());
  EXPECT_EQ(state.workers.at("w1").lost_unix_us, 0);
  EXPECT_EQ(state.workers.at("w1").last_seen_unix_us, 0);
}

// All of the series, thinned afterwards: which steps an answer has does not depend on how it is read.
void CheckThinning(MetricStore& metrics) {
  std::mt19937_64 random(5);
  std::vector<StepMetric> rows;
  for (int64_t step = 3; step < 2'000; ++step) {
    if (random() % 4 == 0) continue;  // logged now and then
    for (int64_t epoch = 1; epoch <= 3; ++epoch) {
      if (epoch > 1 && random() % 5 != 0) continue;  // done again by a later attempt
      StepMetric m;
      m.step = step;
      m.epoch = epoch;
      m.tokens = random() % 8 == 0 ? 0 : 7;  // from an evaluation alone
      if (m.tokens == 0 || random() % 50 == 0) m.eval_loss = static_cast<double>(step) / 8;
      m.loss = static_cast<double>(step) + static_cast<double>(epoch) / 8;
      rows.push_back(m);
    }
  }
  ASSERT_TRUE(metrics.Append("job", rows).ok());
  ASSERT_TRUE(metrics.Append("joc", rows).ok());  // next to it
  for (const auto& [after, until] : {std::pair<int64_t, int64_t>{-1, 0}, {3, 0}, {500, 1'500}, {7, 8}}) {
    const std::vector<StepMetric> all = metrics.Read("job", after, until, 0).value();
    const auto count = static_cast<int64_t>(all.size());
    for (const int64_t points : {int64_t{1}, int64_t{2}, int64_t{97}, count - 1, count, count + 1}) {
      const auto stays = [&](int64_t i) {
        const bool ends = (i + 1) * points / count != i * points / count || i + 1 == count;
        return points <= 0 || count <= points || i == 0 || ends;
      };
      int64_t evaluations = 0;  // beside those
      for (int64_t i = 0; i < count; ++i) evaluations += !stays(i) && all[static_cast<size_t>(i)].eval_loss;
      int64_t stride = 1;
      while ((evaluations + stride - 1) / stride > points) stride *= 2;
      std::vector<StepMetric> expected;
      int64_t number = 0;
      for (int64_t i = 0; i < count; ++i) {
        const StepMetric& m = all[static_cast<size_t>(i)];
        if (stays(i)) {
          expected.push_back(m);
        } else if (m.eval_loss) {
          if (number % stride == 0 || number + 1 == evaluations) expected.push_back(m);
          ++number;
        }
      }
      EXPECT_TRUE(metrics.Read("job", after, until, points).value() == expected)
          << after << " " << until << " " << points << " of " << count;
    }
  }
}

TEST(SeriesReader, AThinnedAnswerIsTheWholeSeriesThinned) {
  MemoryMetricStore memory;
  CheckThinning(memory);
  TempDir dir;
  CheckThinning(*OpenSqliteMetricStore(dir.path()).value());
}

TEST(SeriesReader, HoldsNoMoreThanItsAnswer) {
  constexpr int64_t kSteps = 1'000'000;
  SeriesReader series(kSteps, 1'000);
  size_t most = 0;
  for (int64_t step = 1; step <= kSteps; ++step) {
    StepMetric m;
    m.step = step;
    m.tokens = 1;
    series.Add(m);
    most = std::max(most, series.held());
  }
  EXPECT_LE(most, 1'002u);
  EXPECT_EQ(std::move(series).Take().size(), 1'001u);
}

// Evaluated at every step: an answer has a bound all the same, and the newest.
TEST(SeriesReader, EvaluationsWithoutEndAreThinnedToo) {
  constexpr int64_t kSteps = 300'000;
  SeriesReader series(kSteps, 1'000);
  size_t most = 0;
  for (int64_t step = 1; step <= kSteps; ++step) {
    StepMetric m;
    m.step = step;
    m.tokens = 1;
    if (step < kSteps) m.eval_loss = 1;
    series.Add(m);
    most = std::max(most, series.held());
  }
  EXPECT_LE(most, 2'005u);
  const std::vector<StepMetric> taken = std::move(series).Take();
  EXPECT_GE(taken.size(), 1'500u);
  EXPECT_LE(taken.size(), 2'002u);
  EXPECT_EQ(taken.at(taken.size() - 2).step, kSteps - 1);
  EXPECT_TRUE(std::is_sorted(taken.begin(), taken.end(),
                             [](const StepMetric& a, const StepMetric& b) { return a.step < b.step; }));
}

}  // namespace
}  // namespace nibble::store

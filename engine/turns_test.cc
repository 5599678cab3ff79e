#include "engine/turns.h"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "base/random.h"
#include "gtest/gtest.h"

namespace nibble::engine {
namespace {

std::map<std::string, int64_t> RunTurns(TurnQueue& queue, int turns,
                                        const std::map<std::string, int64_t>& cost) {
  std::map<std::string, int64_t> used;
  for (int i = 0; i < turns; ++i) {
    const std::string id = queue.Next();
    queue.Charge(id, cost.at(id));
    used[id] += cost.at(id);
  }
  return used;
}

TEST(TurnQueue, SharesTimeNotTurns) {
  TurnQueue queue;
  EXPECT_EQ(queue.Next(), "");
  queue.Add("a");
  queue.Add("b");
  EXPECT_EQ(queue.Next(), "a");
  const auto used = RunTurns(queue, 400, {{"a", 10}, {"b", 30}});
  EXPECT_NEAR(static_cast<double>(used.at("a")), static_cast<double>(used.at("b")), 30);
}

TEST(TurnQueue, WeightsCount) {
  TurnQueue queue;
  queue.Add("a", 1);
  queue.Add("b", 3);
  const auto used = RunTurns(queue, 400, {{"a", 10}, {"b", 10}});
  EXPECT_NEAR(static_cast<double>(used.at("b")) / static_cast<double>(used.at("a")), 3, 0.1);
}

TEST(TurnQueue, CompanyIsWhoWouldBeNextAnyway) {
  TurnQueue queue;
  EXPECT_TRUE(queue.NextTogether().empty());
  for (const char* id : {"a", "b", "c", "paused"}) queue.Add(id);
  queue.SetPaused("paused", true);
  using Ids = std::vector<std::string>;
  EXPECT_EQ(queue.NextTogether(), (Ids{"a", "b", "c"}));  // level
  queue.Charge("a", 10);
  queue.Charge("b", 25);
  EXPECT_EQ(queue.NextTogether(), Ids{"c"});
  queue.Charge("c", 8);
  EXPECT_EQ(queue.NextTogether(), (Ids{"c", "a"}));  // at 16, c would be behind a; b is at 25
}

// Turns that take whoever may come share time as turns of one do.
TEST(TurnQueue, CompanyDoesNotChangeTheShares) {
  TurnQueue queue;
  queue.Add("a", 1);
  queue.Add("b", 2);
  queue.Add("c", 1);
  const std::map<std::string, int64_t> cost = {{"a", 10}, {"b", 10}, {"c", 30}};
  std::map<std::string, double> used;
  int turns = 0, together = 0;
  for (; turns < 1000; ++turns) {
    const std::vector<std::string> ids = queue.NextTogether();
    together += ids.size() > 1;
    for (const std::string& id : ids) {
      queue.Charge(id, cost.at(id));
      used[id] += static_cast<double>(cost.at(id));
    }
  }
  EXPECT_GT(together, turns / 4);
  EXPECT_NEAR(used["b"] / used["a"], 2, 0.05);
  EXPECT_NEAR(used["c"] / used["a"], 1, 0.05);
}

// Whoever takes the most steps in its share of time is in each turn; all others come along. So there are as
// few turns, and weights are decoded as few times, as shares of time allow: one for each of its steps.
TEST(TurnQueue, JobsOfUnequalCostAreTogetherAsOftenAsTheirSharesAllow) {
  Random random(5);
  for (int trial = 0; trial < 50; ++trial) {
    TurnQueue queue;
    std::map<std::string, int64_t> cost, steps;
    std::map<std::string, double> weight;
    const int64_t jobs = random.Between(2, 8);
    for (int64_t i = 0; i < jobs; ++i) {
      const std::string id(1, static_cast<char>('a' + i));
      cost[id] = random.Chance(0.3) ? 1'000 : random.Between(1'000, 4'000);
      weight[id] = TurnWeight(random.Chance(0.5) ? 0 : random.Between(-10, 10));
      queue.Add(id, weight[id]);
    }
    constexpr int kTurns = 2'000;
    for (int turn = 0; turn < kTurns; ++turn) {
      for (const std::string& id : queue.NextTogether()) {
        queue.Charge(id, cost[id] * random.Between(900, 1'100) / 1'000);
        ++steps[id];
      }
    }
    int64_t most = 0;
    for (const auto& [id, count] : steps) most = std::max(most, count);
    EXPECT_GE(most, kTurns * 98 / 100) << "trial " << trial;
    const auto time_of = [&](const std::string& id) {
      return static_cast<double>(steps[id] * cost[id]) / weight[id];
    };
    for (const auto& [id, unused] : cost)
      EXPECT_NEAR(time_of(id) / time_of("a"), 1, 0.05) << "trial " << trial;
  }
}

TEST(TurnQueue, ANewcomerNeitherWaitsNorTakesOver) {
  TurnQueue queue;
  queue.Add("a");
  RunTurns(queue, 100, {{"a", 10}});
  queue.Add("b");
  const auto used = RunTurns(queue, 10, {{"a", 10}, {"b", 10}});
  EXPECT_EQ(used.at("a"), 50);
  EXPECT_EQ(used.at("b"), 50);
}

TEST(TurnQueue, PriorityIsAShareOfTimeAndNobodyStarves) {
  EXPECT_EQ(TurnWeight(0), 1);
  EXPECT_EQ(TurnWeight(10), 2);
  EXPECT_EQ(TurnWeight(-10), 0.5);
  EXPECT_EQ(TurnWeight(1000), 16);
  EXPECT_EQ(TurnWeight(-1000), 1.0 / 16);
  TurnQueue queue;
  queue.Add("low", TurnWeight(-1000));
  queue.Add("usual", TurnWeight(0));
  queue.Add("high", TurnWeight(20));
  const auto used = RunTurns(queue, 8100, {{"low", 10}, {"usual", 10}, {"high", 10}});
  EXPECT_NEAR(static_cast<double>(used.at("high")) / static_cast<double>(used.at("usual")), 4, 0.05);
  EXPECT_NEAR(static_cast<double>(used.at("usual")) / static_cast<double>(used.at("low")), 16, 0.3);
}

// What one had before stays as it was weighed then: nobody makes up for it, and nobody starts anew.
TEST(TurnQueue, AChangedWeightCountsFromTheNextTurnOn) {
  TurnQueue queue;
  queue.Add("a");
  queue.Add("b");
  const std::map<std::string, int64_t> cost = {{"a", 10}, {"b", 10}};
  RunTurns(queue, 100, cost);
  queue.SetWeight("b", 3);
  const auto used = RunTurns(queue, 400, cost);
  EXPECT_EQ(used.at("b"), 3000);
  EXPECT_EQ(used.at("a"), 1000);
  queue.SetWeight("b", 1);
  EXPECT_EQ(RunTurns(queue, 100, cost).at("a"), 500);
}

// One waits for room on its disk while another comes: nothing of its past is held against it.
TEST(TurnQueue, WhoComesWhileNobodyCanRunStartsLevelWithWhoComesBack) {
  TurnQueue queue;
  queue.Add("a");
  RunTurns(queue, 100, {{"a", 10}});
  queue.SetPaused("a", true);
  queue.Add("b");
  EXPECT_EQ(queue.Next(), "b");
  queue.SetPaused("a", false);
  auto used = RunTurns(queue, 10, {{"a", 10}, {"b", 10}});
  EXPECT_EQ(used["a"], 50);
  EXPECT_EQ(used["b"], 50);
  queue.SetPaused("a", true);
  RunTurns(queue, 100, {{"b", 10}});
  queue.Remove("b");  // while "a" waits
  queue.Add("c");
  queue.SetPaused("a", false);
  used = RunTurns(queue, 10, {{"a", 10}, {"c", 10}});
  EXPECT_EQ(used["a"], 50);
  EXPECT_EQ(used["c"], 50);
}

TEST(TurnQueue, PausedJobsSitOut) {
  TurnQueue queue;
  queue.Add("a");
  queue.Add("b");
  queue.SetPaused("a", true);
  RunTurns(queue, 10, {{"b", 10}});
  queue.SetPaused("a", false);
  const auto used = RunTurns(queue, 10, {{"a", 10}, {"b", 10}});
  EXPECT_EQ(used.at("a"), 50);
  queue.Remove("a");
  queue.SetPaused("b", true);
  EXPECT_EQ(queue.Next(), "");
}

}  // namespace
}  // namespace nibble::engine

// An agent that is registered, and the worker's edges and the server played by hand.
#pragma once

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/core/agent.h"

namespace nibble::worker {

inline constexpr int64_t kSecondUs = 1'000'000;

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

  // Minutes pass between two inputs of most tests.
  static AgentOptions Options() {
    AgentOptions options;
    options.sleep_us = 0;
    return options;
  }

  Agent agent_{Options()};
  int64_t now_us_ = 1'000 * kSecondUs;
  std::vector<Action> last_;
  SynchronizeRequest sync_;
  std::vector<Report> reports_;
  int64_t answered_ = 0;
  int64_t revision_ = 0;
  int64_t engine_ = 0;
};

}  // namespace nibble::worker

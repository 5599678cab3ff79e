#include "worker/engine_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

namespace nibble::worker {
namespace {

using nlohmann::json;

template <typename T>
T Parsed(const std::string& line) {
  auto input = ParseEngineLine(7, line);
  EXPECT_TRUE(input.ok()) << input.status();
  EXPECT_TRUE(input.ok() && input->has_value());
  return std::get<T>(**input);
}

TEST(EngineLineTest, EachTypeBecomesItsInput) {
  EXPECT_EQ(Parsed<EngineHello>(R"({"type":"hello","version":1,"numerics_id":"n"})").numerics_id,
            "n");
  EXPECT_EQ(Parsed<EngineBase>(R"({"type":"base","bytes":12})").bytes, 12);
  EXPECT_EQ(Parsed<EnginePhase>(R"({"type":"phase","attempt":"a/2","phase":"TOKENIZING"})").phase,
            Phase::kTokenizing);
  const auto plan = Parsed<EnginePlan>(
      R"({"type":"plan","attempt":"a/2","plan":{"x":1},"planned_steps":9,"report":{"rows":3},
          "numerics_id":"n"})");
  EXPECT_EQ(plan.planned_steps, 9);
  EXPECT_EQ(json::parse(plan.plan_json), json::parse(R"({"rows":3,"plan":{"x":1}})"));
  const auto step = Parsed<EngineStep>(
      R"({"type":"step","attempt":"a-b/12","step":3,"loss":1.5,"grad_norm":"inf",
          "learning_rate":1e-4,"tokens":10,
          "target_tokens":5,"step_time_us":7,"phase_us":{"linear":3,"data":2},"time_us":8,"epoch":0.5,
          "used_bytes":9,"jobs":4})");
  EXPECT_EQ(step.key, (AttemptKey{"a-b", 12}));
  EXPECT_EQ(step.metric.step, 3);
  EXPECT_EQ(step.metric.loss, 1.5);
  EXPECT_TRUE(std::isinf(step.metric.gradient_norm));
  EXPECT_EQ(step.metric.used_bytes, 9);
  EXPECT_EQ(step.metric.jobs, 4);
  EXPECT_EQ(step.metric.phase_us, (spec::StepPhaseTimes{3, 0, 0, 0, 0, 2}));
  EXPECT_TRUE(std::isnan(
      Parsed<EngineEval>(R"({"type":"eval","attempt":"a/1","step":3,"loss":"nan"})").loss));
  EXPECT_EQ(Parsed<EngineCheckpoint>(
                R"({"type":"checkpoint","attempt":"a/1","step":4,"dir":"/d","loss":1})")
                .dir,
            "/d");
  EXPECT_EQ(Parsed<EngineFinished>(
                R"({"type":"finished","attempt":"a/1","step":4,"dir":"/d","stop_reason":"s"})")
                .stop_reason,
            "s");
  EXPECT_EQ(Parsed<EngineDetached>(R"({"type":"detached","attempt":"a/1","step":4})").step, 4);
  EXPECT_TRUE(
      Parsed<EngineFailed>(
          R"({"type":"failed","attempt":"a/1","reason":"PLAN_EXCEEDED","message":"m","infrastructure":true})")
          .infrastructure);
  EXPECT_TRUE(
      Parsed<EngineFailed>(
          R"({"type":"failed","attempt":"a/1","reason":"CHECKPOINT_INVALID","all_checkpoints":true})")
          .all_checkpoints);
  EXPECT_EQ(Parsed<EngineStep>(R"({"type":"step","attempt":"a/1"})").engine, 7);
}

TEST(EngineLineTest, CountsAreWholeNumbers) {
  const auto step = Parsed<EngineStep>(
      R"({"type":"step","attempt":"a/1","step":1e300,"tokens":-1e19,"loss":1e300,"phase_us":{"linear":0.5}})");
  EXPECT_EQ(step.metric.step, 0);
  EXPECT_EQ(step.metric.tokens, 0);
  EXPECT_EQ(step.metric.loss, 1e300);
  EXPECT_EQ(step.metric.phase_us, spec::StepPhaseTimes{});
}

TEST(EngineLineTest, LinesThatOnlyInform) {
  for (const char* line :
       {R"({"type":"paused","attempt":"a/1","step":1})", R"({"type":"dropped","count":3})"}) {
    const auto input = ParseEngineLine(1, line);
    ASSERT_TRUE(input.ok());
    EXPECT_FALSE(input->has_value());
  }
}

TEST(EngineLineTest, NonsenseIsRefused) {
  for (const std::string& line :
       {std::string("hello"), std::string("[]"), std::string(R"({"type":"what"})"),
        std::string(R"({"type":"step"})"), std::string(R"({"type":"step","attempt":"a"})"),
        std::string(R"({"type":"step","attempt":"/1"})"),
        std::string(R"({"type":"hello","version":2})"), std::string(70'000, ' ')}) {
    EXPECT_FALSE(ParseEngineLine(1, line).ok()) << line.substr(0, 60);
  }
}

TEST(EngineLineTest, Commands) {
  Assignment a;
  a.key = {"job", 3};
  a.spec_json = R"({"lora_r":8})";
  a.planned_base_bytes = 1;
  a.planned_persistent_bytes = 2;
  a.planned_step_bytes = 3;
  a.base_display_name = "tiny";
  a.priority = -7;
  const json attach = json::parse(AttachLine(a, {"/m", "/d.jsonl", "", "/r"}, "/dir"));
  EXPECT_EQ(attach["type"], "attach");
  EXPECT_EQ(attach["attempt"], "job/3");
  EXPECT_EQ(attach["spec"]["lora_r"], 8);
  EXPECT_EQ(attach["resume"], "/r");
  EXPECT_EQ(attach["priority"], -7);
  EXPECT_EQ(attach["planned"]["step_bytes"], 3);
  EXPECT_EQ(json::parse(DetachLine(a.key, true))["checkpoint"], true);
  EXPECT_EQ(json::parse(CommandLine("pause", a.key))["attempt"], "job/3");
  EXPECT_EQ(json::parse(PriorityLine(a.key, -3)),
            json::parse(R"({"type":"priority","attempt":"job/3","priority":-3})"));
  for (const std::string& line :
       {AttachLine(a, {}, ""), CommandLine("pause", a.key), PriorityLine(a.key, 1), ShutdownLine()}) {
    EXPECT_EQ(line.find('\n'), line.size() - 1);
  }
}

}  // namespace
}  // namespace nibble::worker

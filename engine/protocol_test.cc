#include "engine/protocol.h"

#include <cmath>

#include "base/error.h"
#include "engine/line.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace nibble::engine {
namespace {

using nlohmann::json;

json AttachObject() {
  return {{"type", "attach"},
          {"attempt", "j/1"},
          {"dir", "/d"},
          {"spec", json::parse(spec::TrainSpecToJson({.lora_r = 4}))},
          {"dataset", "/x.jsonl"},
          {"eval_dataset", ""},
          {"resume", "/c"},
          {"numerics_id", "n"},
          {"base_name", "b"},
          {"display_name", "name"},
          {"planned", {{"base_bytes", 1}, {"persistent_bytes", 2}, {"step_bytes", 3}}}};
}

TEST(ParseCommand, ReadsAttach) {
  std::string attempt;
  const auto command = ParseCommand(AttachObject().dump(), attempt);
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(command->type, CommandType::kAttach);
  EXPECT_EQ(command->attempt, "j/1");
  EXPECT_EQ(command->job.spec.lora_r, 4);
  EXPECT_EQ(command->job.resume, "/c");
  EXPECT_EQ(command->planned_step_bytes, 3);
}

TEST(ParseCommand, ReadsTheShortOnes) {
  std::string attempt;
  EXPECT_EQ(ParseCommand(R"({"type":"pause","attempt":"a/1"})", attempt)->type,
            CommandType::kPause);
  EXPECT_EQ(attempt, "a/1");
  EXPECT_TRUE(
      ParseCommand(R"({"type":"detach","attempt":"a/1","checkpoint":true})", attempt)->checkpoint);
  EXPECT_EQ(ParseCommand(R"({"type":"shutdown"})", attempt)->type, CommandType::kShutdown);
}

TEST(ParseCommand, ABadAttachStillNamesItsAttempt) {
  for (const char* key : {"dir", "spec", "dataset", "planned"}) {
    json object = AttachObject();
    object.erase(key);
    std::string attempt;
    EXPECT_FALSE(ParseCommand(object.dump(), attempt).ok()) << key;
    EXPECT_EQ(attempt, "j/1");
  }
  json object = AttachObject();
  object["spec"]["lora_rank"] = 3;
  std::string attempt;
  EXPECT_EQ(StatusReason(ParseCommand(object.dump(), attempt).status()), Reason::kUnknownField);
}

TEST(ParseCommand, RefusesGarbage) {
  std::string attempt;
  for (const char* line : {"", "x", "[]", "{}", R"({"type":"fly","attempt":"a"})",
                           R"({"type":"pause"})", R"({"type":"pause","attempt":""})", R"({"type":3})"}) {
    EXPECT_FALSE(ParseCommand(line, attempt).ok()) << line;
  }
}

TEST(Lines, AreJsonAndRoundTrip) {
  MetricRow row{.step = 3, .loss = 0.1 + 0.2, .grad_norm = std::nan(""), .learning_rate = 1e-5};
  const json step = json::parse(StepLine("a/1", row, 17, 99, 3));
  EXPECT_EQ(step["type"], "step");
  EXPECT_EQ(step["loss"].get<double>(), 0.1 + 0.2);
  EXPECT_EQ(step["grad_norm"], "nan");
  EXPECT_EQ(step["jobs"], 3);
  EXPECT_EQ(step["used_bytes"], 99);
  const json failed = json::parse(
      FailedLine("a/1", Error(Reason::kStorageFull, "disk \"full\"\n" + std::string(100000, 'x'))));
  EXPECT_EQ(failed["reason"], "STORAGE_FULL");
  EXPECT_EQ(failed["infrastructure"], true);
  EXPECT_LT(failed.dump().size(), kMaxLineBytes);
  EXPECT_EQ(json::parse(FailedLine("a/1", Error(Reason::kLossNotFinite, "")))["infrastructure"],
            false);
  EXPECT_FALSE(failed.contains("all_checkpoints"));
  const json stranger =
      json::parse(FailedLine("a/1", Error(Reason::kCheckpointInvalid, "").With(kAllCheckpoints, "true")));
  EXPECT_EQ(stranger["all_checkpoints"], true);
  FinishDone done{5, "/d", {{"a", 1, "h"}, {"b", 2, "i"}}};
  const json finished = json::parse(FinishedLine("a/1", done));
  EXPECT_EQ(finished["files"].size(), 2u);
  EXPECT_EQ(finished["files"][1]["name"], "b");
}

TEST(JsonNumber, IsTheShortestThatComesBack) {
  EXPECT_EQ(JsonNumber(0.1), "0.1");
  EXPECT_EQ(JsonNumber(-INFINITY), "\"-inf\"");
  EXPECT_EQ(std::stod(JsonNumber(1.0 / 3)), 1.0 / 3);
}

}  // namespace
}  // namespace nibble::engine

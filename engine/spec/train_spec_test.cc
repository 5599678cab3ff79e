#include "engine/spec/train_spec.h"

#include <cmath>
#include <limits>

#include "base/error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::spec {
namespace {

ModelConfig Model() {
  ModelConfig model;
  model.max_positions = 512;
  return model;
}

TEST(ResolveTrainSpec, FillsInTargetsAndSortsThem) {
  TrainSpec spec{.sequence_len = 256};
  EXPECT_EQ(ResolveTrainSpec(spec, Model())->target_modules.size(), 7u);
  spec.target_modules = {Module::kV, Module::kQ, Module::kV};
  EXPECT_THAT(ResolveTrainSpec(spec, Model())->target_modules,
              testing::ElementsAre(Module::kQ, Module::kV));
  spec.quant = QuantKind::kINT8;
  EXPECT_FALSE(ResolveTrainSpec(spec, Model())->double_quant);
}

TEST(ResolveTrainSpec, ReportsEveryViolationByPath) {
  TrainSpec spec;
  spec.lora_r = 0;
  spec.sequence_len = 1024;
  spec.learning_rate = std::numeric_limits<double>::quiet_NaN();
  spec.micro_batch_size = -1;
  spec.format = "xml";
  spec.chat_template = std::string(70'000, 'x');  // longer than a line to the engine may be
  const absl::Status status = ResolveTrainSpec(spec, Model()).status();
  EXPECT_EQ(StatusReason(status), Reason::kSpecInvalid);
  std::vector<std::string> fields;
  for (const FieldViolation& v : StatusViolations(status)) fields.push_back(v.field);
  EXPECT_THAT(fields, testing::UnorderedElementsAre("lora.r", "data.sequence_len", "data.format",
                                                    "data.chat_template",
                                                    "optimizer.learning_rate",
                                                    "training.micro_batch_size"));
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("lora.r is 0"));
  for (const FieldViolation& v : StatusViolations(status)) EXPECT_LT(v.description.size(), 300u);
}

TEST(ResolveTrainSpec, LengthNotSaidStaysWithinTheModel) {
  EXPECT_EQ(ResolveTrainSpec({.sequence_len = -1}, Model())->sequence_len, 512);
  ModelConfig model;
  model.max_positions = 32768;
  EXPECT_EQ(ResolveTrainSpec({.sequence_len = -1}, model)->sequence_len, 2048);
  EXPECT_FALSE(ResolveTrainSpec({.sequence_len = 0}, model).ok());
}

TEST(ResolveTrainSpec, TimesAnEpochInsteadOfSteps) {
  TrainSpec spec{.sequence_len = 256};
  spec.evals_per_epoch = 2;
  spec.saves_per_epoch = 0;
  EXPECT_TRUE(ResolveTrainSpec(spec, Model()).ok());
  spec.eval_steps = 10;
  spec.saves_per_epoch = -2;
  std::vector<std::string> fields;
  for (const FieldViolation& v : StatusViolations(ResolveTrainSpec(spec, Model()).status()))
    fields.push_back(v.field);
  EXPECT_THAT(fields,
              testing::ElementsAre("training.evals_per_epoch", "training.saves_per_epoch"));
}

TEST(TrainSpecJson, RoundTripsAndRefusesUnknownKeys) {
  TrainSpec spec;
  spec.target_modules = {Module::kQ, Module::kDown};
  spec.learning_rate = 1.0 / 3;
  spec.seed = std::numeric_limits<uint64_t>::max();
  spec.quant = QuantKind::kFP4;
  spec.lr_schedule = LrSchedule::kLinear;
  spec.excess_length = ExcessLength::kTruncate;
  const auto back = TrainSpecFromJson(TrainSpecToJson(spec));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(*back, spec);
  EXPECT_EQ(StatusReason(TrainSpecFromJson(R"({"lora_rank":3})").status()), Reason::kUnknownField);
  EXPECT_EQ(StatusReason(TrainSpecFromJson(R"({"lora_r":"3"})").status()), Reason::kSpecInvalid);
  EXPECT_EQ(StatusReason(TrainSpecFromJson(R"({"lora_r":99999999999})").status()),
            Reason::kSpecInvalid);
  EXPECT_FALSE(TrainSpecFromJson(R"({"warmup_steps":18446744073709551615})").ok());
  EXPECT_FALSE(TrainSpecFromJson(R"({"quant":"nf5"})").ok());
  EXPECT_FALSE(TrainSpecFromJson("null").ok());
}

TEST(TrainSpec, ScaleIsAlphaOverRankOrItsRoot) {
  TrainSpec spec;
  EXPECT_DOUBLE_EQ(spec.LoraScale(), 2);
  spec.use_rslora = true;
  EXPECT_DOUBLE_EQ(spec.LoraScale(), 8);
}

// get_*_schedule_with_warmup of transformers, as lambda(current_step); optimizer step s runs with
// lambda(s - 1).
TEST(LearningRateAt, IsTransformersSchedule) {
  TrainSpec spec;
  spec.learning_rate = 1e-3;
  spec.warmup_ratio = 0.1;
  const int64_t total = 105;
  const int64_t warmup = 11;  // ceil
  for (const LrSchedule kind : {LrSchedule::kConstant, LrSchedule::kLinear, LrSchedule::kCosine}) {
    spec.lr_schedule = kind;
    for (int64_t step = 1; step <= total; ++step) {
      const double c = static_cast<double>(step - 1);
      double lambda = 1;
      if (step - 1 < warmup) {
        lambda = c / warmup;
      } else if (kind == LrSchedule::kLinear) {
        lambda = (total - c) / (total - warmup);
      } else if (kind == LrSchedule::kCosine) {
        lambda = 0.5 * (1 + std::cos(M_PI * (c - warmup) / (total - warmup)));
      }
      EXPECT_NEAR(LearningRateAt(spec, step, total), 1e-3 * lambda, 1e-15);
    }
  }
  spec.warmup_steps = 0;
  EXPECT_EQ(LearningRateAt(spec, 1, total), 1e-3);
}

}  // namespace
}  // namespace nibble::spec

#include "engine/spec/train_spec.h"

#include <cmath>
#include <limits>
#include <set>

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
  ModelConfig fused = Model();
  fused.fused = true;
  EXPECT_THAT(ResolveTrainSpec(spec, fused)->target_modules,
              testing::ElementsAre(Module::kQkv, Module::kO, Module::kGateUp, Module::kDown));
  spec.target_modules = {Module::kV, Module::kQ, Module::kV};
  EXPECT_THAT(ResolveTrainSpec(spec, Model())->target_modules,
              testing::ElementsAre(Module::kQ, Module::kV));
  spec.quant = QuantKind::kINT8;
  EXPECT_FALSE(ResolveTrainSpec(spec, Model())->double_quant);
}

// What a checkpoint of an older version was keyed by stays; random numbers of two modules never meet.
TEST(Modules, HaveNumbersOfTheirOwnInEveryModel) {
  ModelConfig model = Model();
  for (const size_t linears : {7u, 4u}) {
    std::set<int> numbers;
    for (const Module module : ModulesOf(model)) {
      EXPECT_EQ(*ModuleFromName(ModuleName(module)), module);
      numbers.insert(NumberOf(module));
    }
    EXPECT_EQ(numbers.size(), linears);
    EXPECT_LT(*numbers.rbegin(), 8);  // three bits
    model.fused = true;
  }
  EXPECT_EQ(NumberOf(Module::kO), 3);
  EXPECT_EQ(NumberOf(Module::kDown), 6);
}

TEST(Modules, OfAnotherModelAreRefusedByName) {
  TrainSpec spec{.sequence_len = 256};
  spec.target_modules = {Module::kO, Module::kQkv};
  ModelConfig llama = Model();
  llama.model_type = "llama";
  EXPECT_THAT(std::string(ResolveTrainSpec(spec, llama).status().message()),
              testing::HasSubstr("lora.target_modules has qkv_proj, which a llama model does not; its "
                                 "linears are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, "
                                 "down_proj"));
  ModelConfig fused = Model();
  fused.fused = true;
  fused.model_type = "phi3";
  ASSERT_TRUE(ResolveTrainSpec(spec, fused).ok());
  spec.target_modules = {Module::kQ};
  EXPECT_THAT(std::string(ResolveTrainSpec(spec, fused).status().message()),
              testing::HasSubstr("has q_proj, which a phi3 model does not; its linears are qkv_proj, o_proj, "
                                 "gate_up_proj, down_proj"));
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

// The last number that is taken and the first that is not, on either side; nothing that is no number.
TEST(ResolveTrainSpec, EveryNumberHasItsBounds) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInf = std::numeric_limits<double>::infinity();
  struct Case {
    const char* field;
    void (*set)(TrainSpec&, double);
    std::vector<double> good, bad;
  };
  const double below_one = std::nextafter(1.0, 0.0), tiny = 1e-300;
#define NIBBLE_SETS(member) [](TrainSpec& s, double v) { s.member = static_cast<decltype(s.member)>(v); }
  const Case cases[] = {
      {"lora.r", NIBBLE_SETS(lora_r), {1, 256}, {0, -1, 257}},
      {"lora.alpha", NIBBLE_SETS(lora_alpha), {tiny, 65536}, {0, -1, 65537, kNan, kInf}},
      {"lora.dropout", NIBBLE_SETS(lora_dropout), {0, below_one}, {1, -1e-9, kNan}},
      {"data.sequence_len", NIBBLE_SETS(sequence_len), {8, 512}, {7, 0, -2, 513}},
      {"data.val_set_size", NIBBLE_SETS(val_set_size), {-1, 0, 0.9}, {-0.5, 0.91, kNan}},
      {"optimizer.learning_rate", NIBBLE_SETS(learning_rate), {tiny, 1}, {0, -1e-9, 1.01, kNan, kInf}},
      {"optimizer.warmup_ratio", NIBBLE_SETS(warmup_ratio), {0, 1}, {-1e-9, 1.01, kNan}},
      {"optimizer.warmup_steps", NIBBLE_SETS(warmup_steps), {-1, 0, 1e9}, {-2, 1e9 + 1}},
      {"optimizer.weight_decay", NIBBLE_SETS(weight_decay), {0, 10}, {-1e-9, 10.1, kNan}},
      {"optimizer.adam_beta1", NIBBLE_SETS(adam_beta1), {0, below_one}, {1, -1e-9, kNan}},
      {"optimizer.adam_beta2", NIBBLE_SETS(adam_beta2), {0, below_one}, {1, -1e-9, kNan}},
      {"optimizer.adam_epsilon", NIBBLE_SETS(adam_epsilon), {tiny, 1}, {0, -1e-9, 1.1, kNan}},
      {"optimizer.max_grad_norm", NIBBLE_SETS(max_grad_norm), {0, 1e9}, {-1e-9, 1.1e9, kNan, kInf}},
      {"training.micro_batch_size", NIBBLE_SETS(micro_batch_size), {1, 4096}, {0, -1, 4097}},
      {"training.gradient_accumulation_steps",
       NIBBLE_SETS(gradient_accumulation_steps), {1, 65536}, {0, 65537}},
      {"training.num_epochs", NIBBLE_SETS(num_epochs), {tiny, 10000}, {0, -1, 10001, kNan, kInf}},
      {"training.max_steps", NIBBLE_SETS(max_steps), {-1, 1, 1e9}, {0, -2, 1e9 + 1}},
      {"training.eval_steps", NIBBLE_SETS(eval_steps), {-1, 1, 1e9}, {0, -2, 1e9 + 1}},
      {"training.save_steps", NIBBLE_SETS(save_steps), {-1, 1, 1e9}, {0, -2, 1e9 + 1}},
      {"training.evals_per_epoch", NIBBLE_SETS(evals_per_epoch), {-1, 0, 1000}, {-2, -0.5, 1001, kNan}},
      {"training.saves_per_epoch", NIBBLE_SETS(saves_per_epoch), {-1, 0, 1000}, {-2, -0.5, 1001, kNan}},
      {"training.logging_steps", NIBBLE_SETS(logging_steps), {1, 1e9}, {0, -1, 1e9 + 1}},
      {"training.save_interval_seconds", NIBBLE_SETS(save_interval_seconds), {0, 1e9}, {-1, 1e9 + 1}},
      {"training.save_total_limit", NIBBLE_SETS(save_total_limit), {1, 1000}, {0, 1001}},
  };
#undef NIBBLE_SETS
  for (const Case& c : cases) {
    const auto fields = [&](double value) {
      TrainSpec spec{.sequence_len = 256};
      c.set(spec, value);
      std::vector<std::string> found;
      for (const FieldViolation& v : StatusViolations(ResolveTrainSpec(spec, Model()).status()))
        found.push_back(v.field);
      return found;
    };
    for (const double value : c.good)
      EXPECT_THAT(fields(value), testing::IsEmpty()) << c.field << " = " << value;
    for (const double value : c.bad) {
      EXPECT_THAT(fields(value), testing::ElementsAre(c.field)) << c.field << " = " << value;
    }
  }
}

// Each within its bound, and together too much.
TEST(ResolveTrainSpec, TokensOfAMicroBatchAreBounded) {
  ModelConfig model;
  model.max_positions = 8192;
  EXPECT_TRUE(ResolveTrainSpec({.sequence_len = 4096, .micro_batch_size = 4096}, model).ok());
  const auto refused = ResolveTrainSpec({.sequence_len = 4097, .micro_batch_size = 4096}, model);
  ASSERT_EQ(StatusViolations(refused.status()).size(), 1u);
  EXPECT_EQ(StatusViolations(refused.status())[0].field, "training.micro_batch_size");
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

TEST(ResolveTrainSpec, KeepsProductsOfBlocksWithFullRecomputationOnly) {
  ModelConfig model = Model();
  model.layers = 3;
  const auto refusal = [&](Recompute recompute, int32_t keep_blocks, bool offloads = false) {
    const auto spec = ResolveTrainSpec({.sequence_len = 64,
                                        .offload_activations = offloads,
                                        .recompute = recompute,
                                        .keep_blocks = keep_blocks},
                                       model);
    if (spec.ok()) return std::string();
    EXPECT_EQ(StatusViolations(spec.status()).at(0).field, "training.keep_blocks");
    return std::string(spec.status().message());
  };
  EXPECT_EQ(refusal(Recompute::kFull, 2), "");
  EXPECT_THAT(refusal(Recompute::kFull, 3), testing::HasSubstr("outside 0 to"));
  EXPECT_THAT(refusal(Recompute::kFull, -1), testing::HasSubstr("outside 0 to"));
  EXPECT_THAT(refusal(Recompute::kAuto, 1), testing::HasSubstr("training.recompute is auto; make that full"));
  EXPECT_THAT(refusal(Recompute::kNone, 1), testing::HasSubstr("training.recompute is none"));
  EXPECT_THAT(refusal(Recompute::kFull, 1, true), testing::HasSubstr("offload_activations"));
  EXPECT_EQ(refusal(Recompute::kNone, 0), "");
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

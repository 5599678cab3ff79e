// Where jobs fit, what would make them fit, and the methods side by side: with the real planner where
// bytes matter.
#include "server/core/plan_fit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "server/core/plan_methods.h"
#include "server/core/testing/driver.h"

namespace nibble::core {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::Driver;
using testing::kMB;

Model Llama(int64_t hidden, int64_t intermediate, int64_t layers, int64_t heads, int64_t kv_heads) {
  Model model;
  model.id = "m";
  model.config_json = absl::StrFormat(
      R"({"model_type":"llama","vocab_size":32000,"hidden_size":%d,"intermediate_size":%d,)"
      R"("num_hidden_layers":%d,"num_attention_heads":%d,"num_key_value_heads":%d,)"
      R"("max_position_embeddings":4096})",
      hidden, intermediate, layers, heads, kv_heads);
  model.config = spec::ParseModelConfig(model.config_json).value();
  model.digest = model.config_json;
  return model;
}

Model SevenB() { return Llama(4096, 11008, 32, 32, 32); }

spec::TrainSpec Resolved(const Model& model, spec::TrainSpec spec = {}) {
  if (spec.recompute == spec::Recompute::kAuto) spec.recompute = spec::Recompute::kFull;
  return spec::ResolveTrainSpec(spec, model.config).value();
}

std::vector<std::string> Fields(const Suggestion& suggestion) {
  std::vector<std::string> fields;
  for (const SpecChange& change : suggestion.changes) fields.push_back(change.field);
  return fields;
}

constexpr spec::DeviceProfile kProfile{.threads = 1, .fixed_bytes = 500 << 20};

TEST(Fits, SaysPerDeviceHowMuchAndWhatWouldFit) {
  Driver d;
  d.AddWorker("large", 500 * kMB);
  d.AddWorker("small", 118 * kMB);
  const Model& model = d.state().models.at("base");
  const FitReport report =
      FitsOf(d.state(), model, {.spec = Driver::JobOf("x").spec, .now_us = 7}, d.core()).value();
  ASSERT_EQ(report.fits.size(), 2u);
  EXPECT_EQ(report.fits[0].verdict, DeviceFit::Verdict::kFitsNow);
  EXPECT_EQ(report.fits[0].largest_micro_batch_size, 256);
  EXPECT_EQ(report.fits[0].largest_sequence_len, 4096);
  EXPECT_EQ(report.fits[0].expected_start_us, 7);
  EXPECT_EQ(report.fits[0].expected_end_us, 0) << "nobody has measured a step";
  EXPECT_TRUE(report.fits[0].suggestions.empty());
  EXPECT_EQ(report.fits[1].verdict, DeviceFit::Verdict::kNever);
  EXPECT_EQ(report.fits[1].shortfall_bytes, 3 * kMB);
  EXPECT_EQ(report.fits[1].expected_start_us, 0);
  ASSERT_FALSE(report.fits[1].suggestions.empty());
  EXPECT_TRUE(report.suggestions.empty());
}

TEST(ChooseBaseCache, IsOnWhereEveryGpuThatCanRunTheJobHasRoom) {
  const Model model = SevenB();
  Planner planner(RealSpecFunctions());
  const auto gpu = [](int64_t capacity_gib) {
    return spec::DeviceProfile{
        .backend = "cuda", .fixed_bytes = 600 << 20, .capacity_bytes = capacity_gib << 30};
  };
  spec::TrainSpec spec = Resolved(model, {.sequence_len = 512});
  const auto choice = [&](const std::vector<spec::DeviceProfile>& devices) {
    return planner.ChooseBaseCache(model, spec, devices).value();
  };
  EXPECT_EQ(choice({gpu(140)}), spec::BaseCache::kOn);
  EXPECT_EQ(choice({gpu(140), kProfile, gpu(2)}), spec::BaseCache::kOn) << "2 GiB run nothing of this";
  EXPECT_EQ(choice({gpu(140), gpu(20)}), spec::BaseCache::kOff);
  EXPECT_EQ(choice({kProfile}), spec::BaseCache::kOff);
  EXPECT_EQ(choice({}), spec::BaseCache::kOff);
  spec.base_cache = spec::BaseCache::kOn;
  EXPECT_EQ(choice({gpu(20)}), spec::BaseCache::kOn) << "what the spec says stands";
}

TEST(Suggest, OffersTheMildestOfEachKindAndPlansItAgain) {
  const Model model = SevenB();
  Planner planner(RealSpecFunctions());
  spec::TrainSpec spec = Resolved(model, {.double_quant = false,
                                          .micro_batch_size = 8,
                                          .recompute = spec::Recompute::kNone});
  const int64_t capacity_bytes = int64_t{16} << 30;
  const int64_t now_bytes = planner.Plan(model, spec, kProfile)->TotalBytes();
  ASSERT_GT(now_bytes, capacity_bytes);
  const auto suggestions = planner.Suggest(model, spec, kProfile, capacity_bytes);
  ASSERT_GE(suggestions.size(), 2u);
  EXPECT_EQ(Fields(suggestions[0])[0], "training.recompute") << "the same result costs the least";
  for (const Suggestion& s : suggestions) {
    EXPECT_EQ(s.total_bytes, planner.Plan(model, s.spec, kProfile)->TotalBytes()) << s.description;
    EXPECT_LE(s.total_bytes, capacity_bytes) << s.description;
    EXPECT_EQ(s.saved_bytes, now_bytes - s.total_bytes) << s.description;
    EXPECT_EQ(s.spec.micro_batch_size * s.spec.gradient_accumulation_steps, 32) << s.description;
  }
}

TEST(Suggest, OffersHalfOfTheBlocksBeforeAllOfThemAreRecomputed) {
  const Model model = SevenB();
  Planner planner(RealSpecFunctions());
  const auto bytes = [&](spec::Recomputation what) {
    spec::TrainSpec spec = Resolved(model);
    what.SetIn(spec);
    return planner.Plan(model, spec, kProfile)->TotalBytes();
  };
  const auto offered = [&](spec::Recomputation given, int64_t capacity_bytes) {
    spec::TrainSpec spec = Resolved(model);
    given.SetIn(spec);
    const auto suggestions = planner.Suggest(model, spec, kProfile, capacity_bytes);
    EXPECT_FALSE(suggestions.empty());
    std::vector<std::string> changes;
    for (const SpecChange& change : suggestions.at(0).changes) {
      changes.push_back(absl::StrCat(change.field, "=", change.value));
    }
    const Suggestion& first = suggestions.at(0);
    EXPECT_EQ(first.total_bytes, planner.Plan(model, first.spec, kProfile)->TotalBytes());
    return absl::StrJoin(changes, " ");
  };
  using spec::Recompute;
  const spec::Recomputation outputs{Recompute::kKeepGemmOutputs}, half{Recompute::kFull, 16};
  EXPECT_EQ(offered({Recompute::kNone}, bytes(outputs)), "training.recompute=keep_gemm_outputs");
  EXPECT_EQ(offered({Recompute::kNone}, bytes(half)), "training.recompute=full training.keep_blocks=16");
  EXPECT_EQ(offered(outputs, bytes(half) - 1), "training.recompute=full");
  EXPECT_EQ(offered(half, bytes({Recompute::kFull, 8})), "training.keep_blocks=8");
  EXPECT_EQ(offered(half, bytes({Recompute::kFull})), "training.keep_blocks=0");
}

TEST(Suggest, JoinsChangesWhenNoneAloneIsEnoughAndLeavesOutWhatIsNotNeeded) {
  const Model model = SevenB();
  Planner planner(RealSpecFunctions());
  const spec::TrainSpec spec = Resolved(
      model, {.double_quant = false, .micro_batch_size = 8, .recompute = spec::Recompute::kNone});
  const int64_t capacity_bytes = int64_t{5600} << 20;
  const auto suggestions = planner.Suggest(model, spec, kProfile, capacity_bytes);
  ASSERT_EQ(suggestions.size(), 1u);
  const Suggestion& s = suggestions[0];
  EXPECT_LE(s.total_bytes, capacity_bytes);
  EXPECT_GT(s.changes.size(), 1u);
  EXPECT_THAT(s.description, HasSubstr(", and "));
  // Taking any one kind back, it no longer fits.
  const auto too_big = [&](spec::TrainSpec without) {
    return planner.Plan(model, without, kProfile)->TotalBytes() > capacity_bytes;
  };
  spec::TrainSpec back = s.spec;
  back.recompute = spec.recompute;
  EXPECT_TRUE(back == s.spec || too_big(back));
  back = s.spec;
  back.double_quant = false;
  EXPECT_TRUE(back == s.spec || too_big(back));
  back = s.spec;
  back.micro_batch_size = spec.micro_batch_size;
  EXPECT_TRUE(back == s.spec || too_big(back));
  // What nothing can mend has no remedy.
  EXPECT_TRUE(planner.Suggest(model, spec, kProfile, int64_t{1} << 30).empty());
}

TEST(Suggest, TurnsA16BitBaseIntoQlora) {
  const Model model = SevenB();
  Planner planner(RealSpecFunctions());
  const spec::TrainSpec spec = Resolved(model, {.quant = spec::QuantKind::kBF16});
  const auto suggestions = planner.Suggest(model, spec, kProfile, int64_t{10} << 30);
  ASSERT_EQ(suggestions.size(), 1u);
  EXPECT_THAT(Fields(suggestions[0]),
              ElementsAre("quantization.type", "quantization.double_quant"));
}

// Decide with what was planned on another thread compiles nothing and decides the same.
TEST(PlanAhead, TheCoreCompilesNothingAndAnswersTheSame) {
  int compiled = 0;
  SpecFunctions functions = testing::CheapSpecFunctions();
  functions.plan = [&compiled, plan = functions.plan](const spec::ModelConfig& config,
                                                      const spec::TrainSpec& spec,
                                                      const spec::DeviceProfile& device) {
    ++compiled;
    return plan(config, spec, device);
  };
  Driver d, inside;
  d.core().planner = Planner(functions);
  for (Driver* driver : {&d, &inside}) {
    driver->AddWorker("w1", 500 * kMB);
    driver->AddWorker("w2", 120 * kMB);
    CreateDataset big;  // plans depend on the rows
    big.dataset = {"big", "default", "", std::string(64, 'e'), 1, 5'000'000, "text", "/big.jsonl", 0};
    driver->Must(big);
  }
  for (const int32_t length : {1'000, 2'000'000}) {
    CreateJob create = Driver::JobOf(absl::StrFormat("job-%d", length));
    create.dataset_id = "big";
    create.spec.sequence_len = length;
    create.spec.micro_batch_size = 2;
    const absl::Status plain = inside.Do(create).status();
    create.plan_elsewhere = true;
    EXPECT_TRUE(IsNotPlanned(d.Do(create).status()));
    EXPECT_EQ(d.state().FindJob(create.job_id), nullptr);
    EXPECT_EQ(compiled, 0);
    create.ahead = std::make_shared<const PlannedAhead>(
        PlanAhead(functions, d.state().models.at("base"), create.spec, DataRows(d.state(), create),
                  KnownDevices(d.state())));
    EXPECT_GT(std::exchange(compiled, 0), 0);
    EXPECT_EQ(d.Do(create).status(), plain);
    EXPECT_EQ(compiled, 0);
  }
  EXPECT_NE(d.state().FindJob("job-1000"), nullptr);
  EXPECT_EQ(d.state().FindJob("job-2000000"), nullptr);
}

TEST(Methods, AddUpAndStandInOrder) {
  const Model model = SevenB();
  Planner planner(RealSpecFunctions());
  const spec::TrainSpec spec = Resolved(model, {.sequence_len = 512});
  const auto methods = CompareMethods(model, spec, kProfile, planner).value();
  ASSERT_EQ(methods.size(), 4u);
  EXPECT_EQ(methods[0].TotalBytes(), planner.Plan(model, spec, kProfile)->TotalBytes());
  const int64_t parameters = model.config.TotalParameters();
  EXPECT_EQ(parameters, 6'738'415'616);  // as published for Llama 2 7B
  EXPECT_EQ(methods[0].trained_parameters, 39'976'960);
  EXPECT_EQ(methods[2].gradients_bytes + methods[2].optimizer_bytes, 6 * parameters);
  EXPECT_EQ(methods[3].gradients_bytes + methods[3].optimizer_bytes, 14 * parameters);
  for (size_t i = 1; i < methods.size(); ++i) {
    EXPECT_GT(methods[i].TotalBytes(), methods[i - 1].TotalBytes()) << methods[i].name;
  }
  // The first step of any of them holds the weights in 16 bits or fewer.
  EXPECT_NEAR(static_cast<double>(methods[1].weights_bytes) / static_cast<double>(parameters), 2,
              0.001);
}

}  // namespace
}  // namespace nibble::core

// The generator against the trainer: the same adapter over the same base means the same
// probabilities.
#include "engine/decoder.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "engine/flags.h"
#include "engine/job.h"
#include "engine/testing/tiny_directory.h"
#include "gtest/gtest.h"
#include "kernels/tables.h"

namespace nibble::engine {
namespace {

struct Which {
  const char* device;
  const char* kind;
};

class DecoderTest : public ::testing::TestWithParam<Which> {
 protected:
  void SetUp() override {
    testing::WriteTinyDirectory(dir_.Join("model"), 3, 32, GetParam().kind);
    testing::WriteTinyDataset(dir_.Join("train.jsonl"), 40, 4);
    testing::WriteTinyDataset(dir_.Join("eval.jsonl"), 10, 5);
    DeviceOptions options;
    options.device = GetParam().device;
    options.base.model_dir = dir_.Join("model");
    options.base.cache_dir = dir_.path();
    backend_ = *OpenBackend(options.device, 1);
    auto device = Device::Open(options, *backend_, MeasureProfile(*backend_));
    CHECK_OK(device.status());
    device_ = *std::move(device);
  }
  // Relative to how coarse the activations are.
  double Tolerance() const { return std::string(GetParam().device) == "ref" ? 1e-5 : 2e-2; }

  TempDir dir_;
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<Device> device_;
};

double LossSum(std::span<const float> logits, const Example& example, int64_t vocab) {
  double sum = 0;
  for (size_t i = 0; i < example.ids.size(); ++i) {
    if (example.labels[i] == kNoLabel) continue;
    const auto row = logits.subspan(i * static_cast<size_t>(vocab), static_cast<size_t>(vocab));
    double total = 0;
    for (const float x : row) total += std::exp(static_cast<double>(x));
    sum += std::log(total) - row[static_cast<size_t>(example.labels[i])];
  }
  return sum;
}

TEST_P(DecoderTest, GivesTheTrainersLoss) {
  if (std::string(GetParam().device) == "cuda-emulated" && !testing::FullRun()) {
    GTEST_SKIP() << "the emulation is slow: --full runs this";
  }
  JobInput input;
  input.attempt = "job/1";
  input.dir = dir_.Join("job");
  input.dataset = dir_.Join("train.jsonl");
  input.eval_dataset = dir_.Join("eval.jsonl");
  input.spec.lora_r = 4;
  input.spec.sequence_len = 64;
  input.spec.learning_rate = 1e-2;
  input.spec.max_steps = 10;
  auto job = Job::Open(*device_, input, RealClock::Get());
  CHECK_OK(job.status());
  CHECK_OK((*job)->Start());
  CHECK_OK(device_->ResizeStep((*job)->plan().step_bytes));
  while (!(*job)->finished()) CHECK_OK((*job)->Advance().status());
  const double trainers = (*job)->history().back().loss;
  ASSERT_TRUE((*job)->history().back().is_eval);

  const auto adapter = ImportAdapter(JoinPath(input.dir, "adapter"), device_->model());
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  const auto data =
      LoadDataset(input.dataset, input.eval_dataset, device_->tokenizer(), (*job)->spec());
  ASSERT_TRUE(data.ok());
  const auto made = *Decoder::Make(*device_, &*adapter, 64, 64);
  Decoder& decoder = *made;
  const auto made_bare = *Decoder::Make(*device_, nullptr, 64, 64);
  Decoder& bare = *made_bare;
  double sum = 0, bare_sum = 0;
  int64_t targets = 0;
  for (const int32_t number : data->eval) {
    Example example;
    ASSERT_TRUE(data->tokens.Read(number, example).ok());
    const int64_t vocab = device_->model().vocab_size;
    sum += LossSum(decoder.AllLogits(example.ids), example, vocab);
    bare_sum += LossSum(bare.AllLogits(example.ids), example, vocab);
    for (const int32_t label : example.labels) targets += label != kNoLabel;
  }
  EXPECT_NEAR(sum / static_cast<double>(targets), trainers, Tolerance());
  EXPECT_GT(bare_sum, sum);
}

TEST_P(DecoderTest, TokenByTokenIsTheSameAsAtOnce) {
  std::vector<int32_t> ids = {0, 70, 81, 90, 100, 75, 70, 70, 99};
  if (std::string(GetParam().device) == "cuda-emulated") ids.resize(3);
  const int64_t vocab = device_->model().vocab_size;
  const auto made = *Decoder::Make(*device_, nullptr, 16, 16);
  Decoder& decoder = *made;
  const std::vector<float> at_once = decoder.AllLogits(ids);
  decoder.Reset();
  for (size_t i = 0; i < ids.size(); ++i) {
    const auto logits = decoder.Feed(std::span(&ids[i], 1));
    double difference = 0, norm = 0;
    for (int64_t v = 0; v < vocab; ++v) {
      const double wanted = at_once[i * static_cast<size_t>(vocab) + static_cast<size_t>(v)];
      difference += std::pow(logits[static_cast<size_t>(v)] - wanted, 2);
      norm += wanted * wanted;
    }
    EXPECT_LT(std::sqrt(difference / norm), Tolerance());
  }
}

// Logits [ids, vocab] of a body: of each token fed alone, and all at once.
struct BodyLogits {
  std::vector<float> one, many;
};

BodyLogits LogitsOf(const std::string& name, const BaseModelOptions& base, std::span<const int32_t> ids) {
  const auto backend = *OpenBackend(name, 1);
  const auto device =
      *Device::Open({.device = name, .threads = 1, .base = base}, *backend, MeasureProfile(*backend));
  const auto count = static_cast<int64_t>(ids.size());
  const auto decoder = *Decoder::Make(*device, nullptr, count, count);
  BodyLogits logits{.one = {}, .many = decoder->AllLogits(ids)};
  decoder->Reset();
  for (const int32_t& id : ids) {
    const auto row = decoder->Feed(std::span(&id, 1));
    logits.one.insert(logits.one.end(), row.begin(), row.end());
  }
  return logits;
}

double Distance(const std::vector<float>& from, const std::vector<float>& to) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < to.size(); ++i) {
    difference += std::pow(static_cast<double>(from[i]) - to[i], 2);
    norm += std::pow(static_cast<double>(to[i]), 2);
  }
  return std::sqrt(difference / norm);
}

// A token alone goes through kernels of its own, with 4-bit weights as integers: rows here have whole blocks
// of them, as real models' have. Both ways are off by the same roundings of activations to bf16, and weights
// are rounded no coarser for one token, so that one is no farther from fp32 than many, but for chance.
TEST(DecoderBodiesTest, OneTokenIsAsNearToFp32AsMany) {
  const TempDir dir;
  testing::WriteTinyDirectory(dir.Join("model"), 3, 128);
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 60; ++i) ids.push_back(3 + i * i * 37 % 256);
  using spec::QuantKind;
  for (const QuantKind quant :
       {QuantKind::kNF4, QuantKind::kFP4, QuantKind::kINT4, QuantKind::kINT8, QuantKind::kBF16}) {
    BaseModelOptions base;
    base.model_dir = dir.Join("model");
    base.cache_dir = dir.path();
    base.quant = quant;
    const std::vector<float> wanted = LogitsOf("ref", base, ids).many;
    for (const std::string_view body : kernels::CpuBodies()) {
      const BodyLogits logits = LogitsOf("cpu:" + std::string(body), base, ids);
      const double one = Distance(logits.one, wanted), many = Distance(logits.many, wanted);
      const std::string which = absl::StrCat(std::string(body), ", base ", static_cast<int>(quant));
      EXPECT_LT(many, 0.03) << which;
      EXPECT_LT(one, 1.1 * many) << which;
    }
  }
}

// The kernels of a GPU end the process for what they were not made for, so it must not come so far.
TEST(DecoderLimitsTest, WhatAGpuDoesNotTakeIsRefusedBeforeAnyWork) {
  const TempDir dir;
  testing::WriteTinyDirectory(dir.Join("model"), 3);
  const std::unique_ptr<kernels::Backend> backend = *OpenBackend("cuda-emulated", 1);
  DeviceOptions options;
  options.device = "cuda-emulated";
  options.base.model_dir = dir.Join("model");
  options.base.cache_dir = dir.Join("cache");
  const spec::DeviceProfile profile = MeasureProfile(*backend);
  const auto device = *Device::Open(options, *backend, profile);
  const absl::Status prompt = Decoder::Make(*device, nullptr, int64_t{1} << 32, int64_t{1} << 32).status();
  EXPECT_EQ(StatusReason(prompt), Reason::kSpecInvalid) << prompt;
  EXPECT_NE(prompt.message().find("4294967296 tokens; a GPU takes at most"), std::string::npos) << prompt;

  const std::string path = JoinPath(options.base.model_dir, "config.json");
  std::string config = *ReadFile(path, 1 << 20);
  for (const auto& [key, wide] : {std::pair{"hidden_size", 16400}, {"head_dim", 258}}) {
    const size_t at = config.find(absl::StrCat("\"", key, "\""));
    ASSERT_NE(at, std::string::npos) << key;
    const size_t value = config.find_first_of("0123456789", at);
    const size_t end = config.find_first_not_of("0123456789", value);
    std::string changed = config;
    changed.replace(value, end - value, absl::StrCat(wide));
    ASSERT_TRUE(WriteFileAtomic(path, changed).ok());
    options.base.cache_dir = dir.Join(key);
    const absl::Status refused = Device::Open(options, *backend, profile).status();
    EXPECT_EQ(StatusReason(refused), Reason::kUnsupportedArchitecture) << refused;
    EXPECT_NE(refused.message().find(absl::StrCat(wide, " wide")), std::string::npos) << refused;
    EXPECT_NE(refused.message().find("use a processor"), std::string::npos) << refused;
    EXPECT_FALSE(FileExists(options.base.cache_dir));
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, DecoderTest,
                         ::testing::Values(Which{"ref", "llama"}, Which{"cpu", "llama"},
                                           Which{"cuda-emulated", "llama"}, Which{"ref", "longrope"},
                                           Which{"cpu", "longrope"}, Which{"ref", "gemma"},
                                           Which{"ref", "gemma2"}, Which{"cpu", "gemma2"},
                                           Which{"ref", "gemma3_text"}, Which{"cpu", "gemma3_text"},
                                           Which{"ref", "gemma3"}, Which{"ref", "smollm3"},
                                           Which{"cuda-emulated", "gemma3_text"}, Which{"ref", "phi3"},
                                           Which{"cpu", "phi3"}, Which{"cuda-emulated", "phi3"}),
                         [](const auto& info) {
                           const std::string kind = info.param.kind;
                           return testing::TestName(info.param.device) + (kind == "llama" ? "" : "_" + kind);
                         });

TEST(Flags, ReadValuesSwitchesAndPlainArguments) {
  const auto flags =
      Flags::Parse({"--a", "1", "text", "--b=x=y", "--s", "--", "--c"}, {"a", "b"}, {"s"});
  ASSERT_TRUE(flags.ok()) << flags.status();
  EXPECT_EQ(*flags->Integer("a", 7), 1);
  EXPECT_EQ(*flags->Integer("missing", 7), 7);
  EXPECT_EQ(flags->Text("b"), "x=y");
  EXPECT_TRUE(flags->Has("s"));
  EXPECT_EQ(flags->plain(), (std::vector<std::string>{"text", "--c"}));
  EXPECT_FALSE(flags->Integer("b", 0).ok());
  EXPECT_FALSE(flags->Needed("c").ok());
  EXPECT_FALSE(Flags::Parse({"--unknown", "1"}, {"a"}).ok());
  EXPECT_FALSE(Flags::Parse({"--a"}, {"a"}).ok());
  // As all commands end: wrong words are 2, wrong files are not.
  EXPECT_EQ(ExitCodeOf(Flags::Parse({"--a"}, {"a"}).status()), 2);
  EXPECT_EQ(ExitCodeOf(flags->Needed("c").status()), 2);
  EXPECT_EQ(ExitCodeOf(flags->Integer("b", 0).status()), 2);
  EXPECT_EQ(ExitCodeOf(Error(Reason::kDatasetSchemaMismatch, "line 3")), 5);
  EXPECT_EQ(ExitCodeOf(Error(Reason::kModelFileInvalid, "no config.json")), 5);
  EXPECT_EQ(ExitCodeOf(absl::NotFoundError("no file")), 3);
  EXPECT_EQ(ExitCodeOf(Error(Reason::kOutOfMemory, "full")), 1);
  EXPECT_EQ(ExitCodeOf(absl::OkStatus()), 0);
}

}  // namespace
}  // namespace nibble::engine

// Real checkpoints: logits, losses and greedy text against what an independent forward pass
// computed.
#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "base/file.h"
#include "base/status.h"
#include "engine/generate.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace nibble::engine {
namespace {

using nlohmann::json;

struct Case {
  const char* model;
  const char* device;
  double logits_tolerance;  // relative L2
  double loss_tolerance;    // mean per token
  bool greedy;              // text must be the same
};

class ReferenceModel : public ::testing::TestWithParam<Case> {};

double LossOf(const std::vector<float>& logits, const std::vector<int32_t>& ids, int64_t vocab) {
  double sum = 0;
  for (size_t i = 0; i + 1 < ids.size(); ++i) {
    const float* row = logits.data() + i * static_cast<size_t>(vocab);
    double total = 0;
    for (int64_t v = 0; v < vocab; ++v) total += std::exp(static_cast<double>(row[v]));
    sum += std::log(total) - row[ids[i + 1]];
  }
  return sum / static_cast<double>(ids.size() - 1);
}

TEST_P(ReferenceModel, AgreesWithTheIndependentForwardPass) {
  const char* data = std::getenv("NIBBLE_TEST_DATA");
  if (data == nullptr) GTEST_SKIP() << "NIBBLE_TEST_DATA is not set";
  const Case& c = GetParam();
  TempDir cache;
  DeviceOptions options;
  options.device = c.device;
  options.threads = 1;
  options.base.model_dir = JoinPath(JoinPath(data, "models"), c.model);
  options.base.cache_dir = cache.path();
  options.base.quant = spec::QuantKind::kBF16;
  options.base.exact = std::string(c.device) == "ref";
  const auto backend = OpenBackend(c.device, 1);
  ASSERT_TRUE(backend.ok()) << backend.status();
  const auto opened = Device::Open(options, **backend, MeasureProfile(**backend));
  ASSERT_TRUE(opened.ok()) << opened.status();
  Device& device = **opened;
  const auto text = ReadFile(JoinPath(options.base.model_dir, "expected.json"));
  ASSERT_TRUE(text.ok());
  const json expected = json::parse(*text);
  const int64_t vocab = device.model().vocab_size;
  const auto made =
      *Decoder::Make(device, nullptr, device.model().max_positions, device.model().max_positions);
  Decoder& decoder = *made;

  const std::vector<int32_t> ids = expected["logits"]["ids"];
  const std::vector<double> wanted = expected["logits"]["last_position_logits"];
  decoder.Reset();
  const auto logits = decoder.Feed(ids);
  double difference = 0, norm = 0;
  for (size_t v = 0; v < wanted.size(); ++v) {
    difference += std::pow(logits[v] - wanted[v], 2);
    norm += wanted[v] * wanted[v];
  }
  EXPECT_LT(std::sqrt(difference / norm), c.logits_tolerance);

  for (const json& story : expected["nll"]) {
    const std::vector<int32_t> tokens = story["ids"];
    const double loss = LossOf(decoder.AllLogits(tokens), tokens, vocab);
    EXPECT_NEAR(loss, story["mean_nll"].get<double>(), c.loss_tolerance);
  }

  if (!c.greedy) return;
  const std::vector<int32_t> stops = expected["stop_ids"];
  const std::set<int32_t> stop_ids(stops.begin(), stops.end());
  for (const json& row : expected["greedy"]) {
    const std::vector<int32_t> prompt = row["prompt_ids"];
    const std::vector<int32_t> answer = row["new_ids"];
    const SamplingOptions sampling{.max_tokens = static_cast<int64_t>(answer.size())};
    EXPECT_EQ(Generate(decoder, prompt, stop_ids, sampling, device.model().max_positions), answer);
    EXPECT_EQ(device.tokenizer().Encode(row["prompt"].get<std::string>(), true), prompt);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, ReferenceModel,
    ::testing::Values(Case{"stories260K", "ref", 1e-4, 1e-5, true},
                      Case{"stories260K", "cpu", 2e-2, 1e-2, false},
                      Case{"stories260K-bf16-sharded", "ref", 1e-4, 1e-5, true},
                      Case{"stories260K-bf16-sharded", "cpu", 2e-2, 1e-2, false},
                      Case{"babyllama-105", "ref", 1e-4, 1e-5, true},
                      Case{"babyllama-105", "cpu", 2e-2, 1e-2, false}),
    [](const auto& info) {
      std::string name = std::string(info.param.model) + "_" + info.param.device;
      std::replace(name.begin(), name.end(), '-', '_');
      return name;
    });

}  // namespace
}  // namespace nibble::engine

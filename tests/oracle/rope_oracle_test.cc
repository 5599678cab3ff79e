// What RoPE turns by, against transformers' own tables (fixtures/rope.json, made by make_rope_fixtures.py).

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/spec/rope.h"
#include "engine/spec/rope_config.h"
#include "tests/oracle/fixture.h"

namespace nibble::oracle {
namespace {

using nlohmann::json;

// Another file of the same kind, of models that are not here, can be named.
std::string CasesPath() {
  const char* named = std::getenv("NIBBLE_ROPE_CASES");
  return named != nullptr ? named : FixturePath("rope.json");
}

spec::ModelConfig Read(const json& config) {
  spec::ModelConfig model;
  model.model_type = config["model_type"];
  model.head_dim = config["hidden_size"].get<int64_t>() / config["num_attention_heads"].get<int64_t>();
  model.max_positions = config["max_position_embeddings"];
  const absl::Status status = spec::ReadRope(config, model);
  EXPECT_TRUE(status.ok()) << status;
  return model;
}

// Powers are rounded a little differently by every library, so a frequency may be a neighbour of a neighbour.
constexpr double kUlps = 2.5 * 0x1p-23;

void ExpectTable(const spec::ModelConfig& model, const json& theirs, int64_t tokens) {
  const auto frequencies = theirs["frequencies"].get<std::vector<float>>();
  const std::vector<float> ours = spec::RopeFrequencies(model, tokens);
  ASSERT_EQ(ours.size(), frequencies.size());
  for (size_t i = 0; i < ours.size(); ++i)
    EXPECT_NEAR(ours[i], frequencies[i], kUlps * frequencies[i]) << "frequency " << i;
  EXPECT_NEAR(model.rope_scale, theirs["scale"].get<double>(), 1e-12);

  const std::vector<float> table = spec::RopeTable(model, tokens);
  const size_t width = ours.size() * 2, first = static_cast<size_t>(spec::RopeFirstRow(model, tokens));
  for (size_t p = 0; p < theirs["positions"].size(); ++p) {
    const auto position = theirs["positions"][p].get<size_t>();
    for (size_t i = 0; i < ours.size(); ++i) {
      const float* entry = &table[(first + position) * width + 2 * i];
      const double angle = static_cast<double>(position) * frequencies[i];
      const double tolerance = (1e-6 + kUlps * angle) * model.rope_scale;
      EXPECT_NEAR(entry[0], theirs["cos"][p][i].get<double>(), tolerance) << position << ", " << i;
      EXPECT_NEAR(entry[1], theirs["sin"][p][i].get<double>(), tolerance) << position << ", " << i;
    }
  }
}

TEST(RopeOracle, TablesAreThoseOfTransformers) {
  const json cases = json::parse(ReadFileOrDie(CasesPath()));
  ASSERT_FALSE(cases.empty());
  for (const json& one : cases) {
    SCOPED_TRACE(one["name"].get<std::string>());
    const spec::ModelConfig model = Read(one["config"]);
    const int64_t short_tokens = one["short"]["positions"].back().get<int64_t>() + 1;
    const int64_t long_tokens = one["long"]["positions"].back().get<int64_t>() + 1;
    ExpectTable(model, one["short"], short_tokens);
    ExpectTable(model, one["long"], long_tokens);
    // The same rows in a table that has both.
    const std::vector<float> both = spec::RopeTable(model, long_tokens);
    const std::vector<float> alone = spec::RopeTable(model, short_tokens);
    EXPECT_EQ(std::vector<float>(both.begin(), both.begin() + static_cast<int64_t>(alone.size())), alone);
  }
}

}  // namespace
}  // namespace nibble::oracle

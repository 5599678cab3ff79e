#include "engine/generate.h"

#include <cmath>
#include <map>

#include "gtest/gtest.h"
#include "kernels/counter.h"

namespace nibble::engine {
namespace {

TEST(Sample, ZeroTemperatureIsTheLikeliest) {
  const std::vector<float> logits = {0, 3, -1, 3};
  EXPECT_EQ(Sample(logits, 0, 1, 0.99), 1);
}

TEST(Sample, DrawsByTheSoftmax) {
  const std::vector<float> logits = {0, std::log(2.0f), std::log(5.0f)};
  std::map<int32_t, int> counts;
  constexpr int kDraws = 8000;
  for (int i = 0; i < kDraws; ++i) {
    ++counts[Sample(logits, 1, 1, kernels::CounterUniform(1, 2, static_cast<uint64_t>(i)))];
  }
  EXPECT_NEAR(counts[0], kDraws / 8, 100);
  EXPECT_NEAR(counts[1], kDraws / 4, 150);
  EXPECT_NEAR(counts[2], kDraws * 5 / 8, 150);
}

TEST(Sample, TheNucleusLeavesTheTailOut) {
  const std::vector<float> logits = {0, std::log(2.0f), std::log(5.0f)};
  for (const double draw : {0.0, 0.3, 0.999999}) {
    EXPECT_EQ(Sample(logits, 1, 0.5, draw), 2);
    EXPECT_NE(Sample(logits, 1, 0.8, draw), 0);
  }
}

}  // namespace
}  // namespace nibble::engine

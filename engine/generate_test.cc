#include "engine/generate.h"

#include <cmath>
#include <cstdlib>
#include <map>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/counter.h"

namespace nibble::engine {
namespace {

using ::testing::ElementsAre;

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

TEST(StopIds, AreThoseOfTheFilesAndOfTheTemplate) {
  const char* root = std::getenv("NIBBLE_SOURCE_DIR");
  const auto file = ReadFile(
      absl::StrCat(root ? root : ".", "/engine/testdata/tokenizers/gemma3/tokenizer.json"));
  ASSERT_TRUE(file.ok()) << file.status();
  const auto tokenizer = Tokenizer::FromJson(*file, R"({"eos_token":"<eos>"})");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const int32_t end_of_turn = *tokenizer->TokenId("<end_of_turn>");
  TempDir dir;
  EXPECT_THAT(StopIds(dir.path(), *tokenizer, std::nullopt), ElementsAre(1, 2));
  // A tuned model names its end of turn, a base does not: its template says it.
  CHECK_OK(WriteFileAtomic(dir.Join("config.json"), R"({"eos_token_id":1})"));
  const auto chat = ChatTemplate::Select("gemma", *tokenizer);
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_THAT(StopIds(dir.path(), *tokenizer, *chat), ElementsAre(1, 2, end_of_turn));
  CHECK_OK(WriteFileAtomic(dir.Join("generation_config.json"), R"({"eos_token_id":[1,9]})"));
  EXPECT_THAT(StopIds(dir.path(), *tokenizer, std::nullopt), ElementsAre(1, 2, 9));
}

}  // namespace
}  // namespace nibble::engine

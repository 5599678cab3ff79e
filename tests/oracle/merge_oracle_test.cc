// Merging against PEFT's merge_and_unload (fixtures/ten-steps/merged.safetensors).

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/status.h"
#include "engine/model/merge.h"
#include "engine/model/safetensors.h"
#include "tests/oracle/fixture.h"

namespace nibble::oracle {
namespace {

void ExpectPeftsWeights(engine::MergeOnto onto, const std::string& prefix) {
  const TempDir dir;
  const std::string adapter = dir.Join("adapter");
  CHECK_OK(MakeDirs(adapter));
  CHECK_OK(WriteFileAtomic(JoinPath(adapter, "adapter_config.json"),
                           ReadFileOrDie(FixturePath("ten-steps/adapter_config.json"))));
  CHECK_OK(WriteFileAtomic(JoinPath(adapter, "adapter_model.safetensors"),
                           ReadFileOrDie(FixturePath("ten-steps/final.safetensors"))));
  engine::MergeOptions options;
  options.base.model_dir = FixturePath("tiny-llama");
  options.base.cache_dir = dir.Join("cache");
  options.adapter_dir = adapter;
  options.out_dir = dir.Join("merged");
  options.onto = onto;
  const auto report = engine::MergeAdapter(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_FALSE(report->base_known);  // PEFT does not write it down

  const auto theirs = Fixture::Open(FixturePath("ten-steps/merged.safetensors"));
  const auto ours = Fixture::Open(JoinPath(options.out_dir, "model.safetensors"));
  int64_t values = 0, apart = 0;
  for (const std::string& name : theirs.Names()) {
    if (!name.starts_with(prefix)) continue;
    const std::vector<uint16_t> expected = theirs.BF16Bits(name);
    const std::vector<uint16_t> actual = ours.BF16Bits(name.substr(prefix.size()));
    ASSERT_EQ(actual.size(), expected.size()) << name;
    for (size_t i = 0; i < actual.size(); ++i) {
      ++values;
      if (actual[i] == expected[i]) continue;
      ++apart;
      // Sums in another order, rounded at a tie: the neighbour, no more.
      EXPECT_LE(std::abs(static_cast<int>(actual[i]) - static_cast<int>(expected[i])), 1) << name << " " << i;
    }
  }
  EXPECT_GT(values, 25000);
  EXPECT_LE(apart, values / 1000);
  std::printf("%s%lld of %lld values are PEFT's to the bit\n", prefix.c_str(),
              static_cast<long long>(values - apart), static_cast<long long>(values));
}

TEST(MergeOracle, OntoOriginal) { ExpectPeftsWeights(engine::MergeOnto::kOriginal, "original."); }
TEST(MergeOracle, OntoQuantized) { ExpectPeftsWeights(engine::MergeOnto::kQuantized, "quantized."); }

}  // namespace
}  // namespace nibble::oracle

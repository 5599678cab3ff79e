#include "engine/model/merge.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "base/status.h"
#include "engine/model/base_cache.h"
#include "engine/model/floats.h"
#include "engine/model/safetensors.h"
#include "engine/model/safetensors_write.h"
#include "engine/spec/base_layout.h"
#include "engine/spec/checkpoint_tensors.h"
#include "engine/text/tokenizer.h"
#include "engine/testing/bnb_checkpoint.h"
#include "engine/testing/tiny_directory.h"

namespace nibble::engine {
namespace {

using nlohmann::json;
using spec::Module;
using ::testing::HasSubstr;

constexpr int64_t kRank = 3;

// A tiny base of fp32 weights and an adapter of two of its modules.
class MergeTest : public ::testing::Test {
 protected:
  explicit MergeTest(const std::string& kind = "llama") : model_(testing::TinyDirectoryConfig(32, kind)) {
    testing::WriteTinyDirectory(Base(), 7, 32, kind);
    Random random(3);
    for (int64_t layer = 0; layer < model_.layers; ++layer) {
      for (const Module module : {Module::kQ, Module::kDown}) {
        const spec::LinearShape shape = spec::ShapeOf(model_, module);
        AdapterPair& pair = adapter_.pairs.emplace_back();
        pair.layer = layer;
        pair.module = module;
        for (int64_t i = 0; i < kRank * shape.k; ++i)
          pair.a.push_back(static_cast<float>(random.Unit() - 0.5));
        for (int64_t i = 0; i < kRank * shape.n; ++i)
          pair.b.push_back(static_cast<float>(random.Unit() - 0.5));
      }
    }
    const auto checkpoint = Checkpoint::Open(Base());
    CHECK_OK(checkpoint.status());
    CHECK_OK(MakeDirs(dir_.Join("cache")));
    const auto digest = WeightsDigest(dir_.Join("cache"), **checkpoint);
    CHECK_OK(digest.status());
    SaveAdapter(*digest);
  }

  std::string Base() const { return dir_.Join("base"); }
  void SaveAdapter(const std::string& weights_digest) {
    AdapterExport out;
    out.config = {kRank, 6, 0, false, {Module::kQ, Module::kDown}, "org/base"};
    out.model = model_;
    out.weights_digest = weights_digest;
    for (const AdapterPair& pair : adapter_.pairs) {
      out.pairs.push_back({pair.layer, pair.module, pair.a.data(), pair.b.data()});
    }
    CHECK_OK(ExportAdapter(dir_.Join("adapter"), out).status());
  }
  MergeOptions Options(MergeOnto onto = MergeOnto::kOriginal) {
    MergeOptions options;
    options.base.model_dir = Base();
    options.base.cache_dir = dir_.Join("cache");
    options.base.threads = 2;
    options.adapter_dir = dir_.Join("adapter");
    options.out_dir = dir_.Join(absl::StrCat("out", ++merges_));
    options.onto = onto;
    return options;
  }
  static std::vector<float> Values(const std::string& directory, const std::string& name) {
    const auto checkpoint = Checkpoint::Open(directory);
    CHECK_OK(checkpoint.status());
    const TensorInfo* const tensor = (*checkpoint)->Find(name);
    CHECK(tensor != nullptr);
    std::vector<float> values(static_cast<size_t>(tensor->Elements()));
    CHECK_OK((*checkpoint)->ReadF32(*tensor, values.data()));
    return values;
  }
  // In double what the pair adds.
  static double Delta(const AdapterPair& pair, int64_t row, int64_t column, int64_t k) {
    double sum = 0;
    for (int64_t j = 0; j < kRank; ++j) {
      sum += static_cast<double>(pair.b[static_cast<size_t>(row * kRank + j)]) *
             static_cast<double>(pair.a[static_cast<size_t>(j * k + column)]);
    }
    return 6.0 / kRank * sum;
  }
  // Rewrites the base's tensors, each as `change` says.
  void Rewrite(const std::function<void(TensorToWrite&, std::string&)>& change) {
    const auto checkpoint = Checkpoint::Open(Base());
    CHECK_OK(checkpoint.status());
    std::deque<std::string> bytes;
    std::vector<TensorToWrite> tensors;
    for (const std::string& name : (*checkpoint)->Names()) {
      const TensorInfo* const tensor = (*checkpoint)->Find(name);
      bytes.emplace_back(static_cast<size_t>(tensor->size_bytes), '\0');
      CHECK_OK((*checkpoint)->Read(*tensor, 0, tensor->size_bytes, bytes.back().data()));
      TensorToWrite out{name, tensor->type, tensor->shape, nullptr, {}};
      change(out, bytes.back());
      out.data = bytes.back().data();
      tensors.push_back(std::move(out));
    }
    CHECK_OK(WriteFileAtomic(JoinPath(Base(), "model.safetensors"), SerializeSafetensors(tensors, {})));
  }

  TempDir dir_;
  const spec::ModelConfig model_;
  Adapter adapter_;
  int merges_ = 0;
};

class MergeVisionTest : public MergeTest {
 protected:
  MergeVisionTest() : MergeTest("gemma3") {}
};

TEST_F(MergeVisionTest, KeepsWhatSeesPictures) {
  const MergeOptions options = Options();
  ASSERT_TRUE(MergeAdapter(options).ok());
  const auto base = Checkpoint::Open(Base());
  std::set<std::string> changed;
  for (const std::string& name : (*base)->Names()) {
    if (Values(Base(), name) != Values(options.out_dir, name)) changed.insert(name);
  }
  EXPECT_EQ(changed, (std::set<std::string>{"language_model.model.layers.0.self_attn.q_proj.weight",
                                            "language_model.model.layers.0.mlp.down_proj.weight",
                                            "language_model.model.layers.1.self_attn.q_proj.weight",
                                            "language_model.model.layers.1.mlp.down_proj.weight"}));
  EXPECT_EQ(*ReadFile(JoinPath(options.out_dir, "config.json")), *ReadFile(JoinPath(Base(), "config.json")));
}

// As it is it could not stand beside a config.json without quantization_config.
TEST_F(MergeVisionTest, RefusesWhatSeesPicturesInFourBits) {
  MergeOptions options = Options();
  options.any_base = true;
  Rewrite([](TensorToWrite& tensor, std::string&) {
    if (tensor.name.starts_with("vision_tower.")) tensor.name += ".quant_state.bitsandbytes__nf4";
  });
  const absl::Status status = MergeAdapter(options).status();
  EXPECT_EQ(StatusReason(status), Reason::kModelFileInvalid) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("what sees pictures is stored in four bits"));
  EXPECT_FALSE(FileExists(options.out_dir));
}

TEST_F(MergeTest, AddsTheProductAndLeavesTheRest) {
  const MergeOptions options = Options();
  const auto report = MergeAdapter(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->matrices, 4);
  EXPECT_TRUE(report->base_known);
  std::set<std::string> changed;
  for (const AdapterPair& pair : adapter_.pairs) {
    const std::string name = spec::ModulePath(model_, pair.layer, pair.module) + ".weight";
    changed.insert(name);
    const spec::LinearShape shape = spec::ShapeOf(model_, pair.module);
    const std::vector<float> before = Values(Base(), name), after = Values(options.out_dir, name);
    ASSERT_EQ(before.size(), after.size());
    for (int64_t i = 0; i < shape.n * shape.k; ++i) {
      const auto at = static_cast<size_t>(i);
      EXPECT_NEAR(after[at], before[at] + Delta(pair, i / shape.k, i % shape.k, shape.k), 1e-6)
          << name << " " << i;
    }
  }
  const auto base = Checkpoint::Open(Base());
  for (const std::string& name : (*base)->Names()) {
    if (changed.contains(name)) continue;
    EXPECT_EQ(Values(Base(), name), Values(options.out_dir, name)) << name;
  }
  for (const char* file : {"config.json", "tokenizer.json", "tokenizer_config.json"}) {
    EXPECT_EQ(*ReadFile(JoinPath(options.out_dir, file)), *ReadFile(JoinPath(Base(), file))) << file;
  }
  const std::string sums = *ReadFile(JoinPath(options.out_dir, "checksums.txt"));
  EXPECT_THAT(sums, HasSubstr(absl::StrCat(*Sha256HexOfFile(JoinPath(options.out_dir, "model.safetensors")),
                                           "  model.safetensors\n")));
  // The same bytes for any number of threads.
  MergeOptions single = Options();
  single.base.threads = 1;
  ASSERT_TRUE(MergeAdapter(single).ok());
  EXPECT_EQ(*ReadFile(JoinPath(single.out_dir, "model.safetensors")),
            *ReadFile(JoinPath(options.out_dir, "model.safetensors")));
}

TEST_F(MergeTest, OntoQuantizedIsOntoWhatTheEngineMultiplies) {
  const MergeOptions options = Options(MergeOnto::kQuantized);
  const auto report = MergeAdapter(options);
  ASSERT_TRUE(report.ok()) << report.status();
  BaseModelOptions base = options.base;
  base.tiles = false;
  base.cache_dir = dir_.Join("flat");
  const auto quantized = BaseModel::Open(base);
  ASSERT_TRUE(quantized.ok()) << quantized.status();
  // Stored by bitsandbytes, the base has no other weights than these: merging gives the same, in BF16.
  const testing::BnbLinears linears(**quantized);
  std::vector<TensorToWrite> stored = linears.tensors;
  std::deque<std::string> others;
  const auto checkpoint = Checkpoint::Open(Base());
  for (const std::string& name : (*checkpoint)->Names()) {
    if (name.find("_proj.") != std::string::npos) continue;
    const TensorInfo* const tensor = (*checkpoint)->Find(name);
    others.emplace_back(static_cast<size_t>(tensor->size_bytes), '\0');
    CHECK_OK((*checkpoint)->Read(*tensor, 0, tensor->size_bytes, others.back().data()));
    stored.push_back({name, tensor->type, tensor->shape, others.back().data(), {}});
  }
  CHECK_OK(WriteFileAtomic(JoinPath(Base(), "model.safetensors"), SerializeSafetensors(stored, {})));
  json config = json::parse(*ReadFile(JoinPath(Base(), "config.json")));
  config["quantization_config"] = {{"quant_method", "bitsandbytes"}, {"load_in_4bit", true}};
  CHECK_OK(WriteFileAtomic(JoinPath(Base(), "config.json"), config.dump()));
  MergeOptions onto_codes = Options();
  onto_codes.any_base = true;
  const auto merged = MergeAdapter(onto_codes);
  ASSERT_TRUE(merged.ok()) << merged.status();
  int checked = 0;
  for (int64_t layer = 0; layer < model_.layers; ++layer) {
    for (const Module module : spec::ModulesOf(model_)) {
      const std::string name = spec::ModulePath(model_, layer, module) + ".weight";
      std::vector<float> expected = Values(options.out_dir, name);
      for (float& value : expected) value = FloatFromBf16(Bf16FromFloat(value));
      EXPECT_EQ(Values(onto_codes.out_dir, name), expected) << name;
      checked += expected != Values(dir_.Join("out1"), name);
    }
  }
  EXPECT_GT(checked, 0);
  const json after = json::parse(*ReadFile(JoinPath(onto_codes.out_dir, "config.json")));
  EXPECT_FALSE(after.contains("quantization_config"));
  const auto result = Checkpoint::Open(onto_codes.out_dir);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ((*result)->Names(), (*checkpoint)->Names());
}

TEST_F(MergeTest, ShardsKeepTheirNames) {
  const auto checkpoint = Checkpoint::Open(Base());
  std::map<std::string, std::vector<TensorToWrite>> shards;
  std::deque<std::string> bytes;
  json index = {{"metadata", {{"total_size", 0}}}, {"weight_map", json::object()}};
  for (const std::string& name : (*checkpoint)->Names()) {
    const TensorInfo* const tensor = (*checkpoint)->Find(name);
    const std::string shard = name.find("layers.1") == std::string::npos ? "model-00001-of-00002.safetensors"
                                                                         : "model-00002-of-00002.safetensors";
    bytes.emplace_back(static_cast<size_t>(tensor->size_bytes), '\0');
    CHECK_OK((*checkpoint)->Read(*tensor, 0, tensor->size_bytes, bytes.back().data()));
    shards[shard].push_back({name, tensor->type, tensor->shape, bytes.back().data(), {}});
    index["weight_map"][name] = shard;
  }
  MergeOptions whole = Options();
  ASSERT_TRUE(MergeAdapter(whole).ok());
  CHECK_OK(RemoveFile(JoinPath(Base(), "model.safetensors")));
  for (const auto& [name, tensors] : shards) {
    CHECK_OK(WriteFileAtomic(JoinPath(Base(), name), SerializeSafetensors(tensors, {})));
  }
  CHECK_OK(WriteFileAtomic(JoinPath(Base(), "model.safetensors.index.json"), index.dump()));
  MergeOptions options = Options();
  const auto refused = MergeAdapter(options);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("--any-base"));
  options.any_base = true;
  const auto report = MergeAdapter(options);
  ASSERT_TRUE(report.ok()) << report.status();
  const auto merged = Checkpoint::Open(options.out_dir);
  ASSERT_TRUE(merged.ok()) << merged.status();
  EXPECT_EQ((*merged)->Paths().size(), 2u);
  for (const std::string& name : (*merged)->Names()) {
    EXPECT_EQ(Values(options.out_dir, name), Values(whole.out_dir, name)) << name;
  }
  const json made = json::parse(*ReadFile(JoinPath(options.out_dir, "model.safetensors.index.json")));
  EXPECT_EQ(made["weight_map"], index["weight_map"]);
  EXPECT_GT(made["metadata"]["total_size"].get<int64_t>(), 0);
}

TEST_F(MergeTest, AnAdapterOfOtherWeightsIsRefused) {
  SaveAdapter(Sha256Hex("others"));
  MergeOptions options = Options();
  const auto refused = MergeAdapter(options);
  EXPECT_EQ(StatusReason(refused.status()), Reason::kModelFileInvalid);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("org/base"));
  EXPECT_FALSE(FileExists(options.out_dir));
  options.any_base = true;
  EXPECT_TRUE(MergeAdapter(options).ok());
  // One that does not say is taken, and the report says so.
  SaveAdapter("");
  const auto report = MergeAdapter(Options());
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_FALSE(report->base_known);
}

// A base that was never tuned names no end of turns; an adapter trained in a template has learned one.
TEST_F(MergeTest, WhatEndsATurnEndsAnAnswer) {
  const auto merged = [&](const char* chat_template) {
    CHECK_OK(WriteFileAtomic(JoinPath(dir_.Join("adapter"), "nibble_job.yaml"),
                             absl::StrCat("# recipe\nchat_template: ", chat_template, "\nseed: 1\n")));
    const MergeOptions options = Options();
    const auto report = MergeAdapter(options);
    CHECK_OK(report.status());
    const auto text = ReadFile(JoinPath(options.out_dir, "generation_config.json"), 1 << 20);
    return std::pair(report->end_of_turn, text.ok() ? json::parse(*text) : json());
  };
  const char* root = std::getenv("NIBBLE_SOURCE_DIR");
  const auto tokenizer =
      ReadFile(absl::StrCat(root ? root : ".", "/engine/testdata/tokenizers/gemma3/tokenizer.json"), 1 << 26);
  CHECK_OK(tokenizer.status());
  CHECK_OK(WriteFileAtomic(JoinPath(Base(), "tokenizer.json"), *tokenizer));
  const auto read = Tokenizer::Load(Base());
  CHECK_OK(read.status());
  const int32_t end = *read->TokenId("<end_of_turn>");
  // The base has no such file: it is made of its config.json.
  json config = json::parse(*ReadFile(JoinPath(Base(), "config.json"), 1 << 20));
  config["eos_token_id"] = 2;
  config["bos_token_id"] = 3;
  CHECK_OK(WriteFileAtomic(JoinPath(Base(), "config.json"), config.dump()));
  EXPECT_EQ(merged("\"gemma\"").first, "<end_of_turn>");
  EXPECT_EQ(merged("\"gemma\"").second, (json{{"bos_token_id", 3}, {"eos_token_id", {2, end}}}));
  for (const char* unknown : {"\"chatml\"", "\"none\"", "7", "gemma", "\"tokenizer_default\""})
    EXPECT_TRUE(merged(unknown).second.is_null()) << unknown;
  // What else is there stays.
  const auto with = [&](const char* text) {
    CHECK_OK(WriteFileAtomic(JoinPath(Base(), "generation_config.json"), text));
    return merged("\"gemma\"").second;
  };
  EXPECT_EQ(with(R"({"eos_token_id":1,"top_k":64})"), (json{{"eos_token_id", {1, end}}, {"top_k", 64}}));
  EXPECT_EQ(with(R"({"top_k":64})"), (json{{"eos_token_id", {2, end}}, {"top_k", 64}}));
  const json names_it = {{"eos_token_id", {end, 1}}};
  EXPECT_EQ(with(names_it.dump().c_str()), names_it);
  EXPECT_EQ(merged("\"gemma\"").first, "");
}

TEST_F(MergeTest, WhatIsThereStays) {
  const MergeOptions options = Options();
  CHECK_OK(MakeDirs(options.out_dir));
  CHECK_OK(WriteFileAtomic(JoinPath(options.out_dir, "notes.txt"), "mine"));
  const auto refused = MergeAdapter(options);
  EXPECT_EQ(StatusReason(refused.status()), Reason::kSpecInvalid) << refused.status();
  EXPECT_EQ(*ListDir(options.out_dir), std::vector<std::string>{"notes.txt"});
}

TEST(Halves, RoundToTheNearestOfTheirs) {
  for (int bits = 0; bits < 0x7C00; ++bits) {  // every finite one, and the one above it
    const auto half = static_cast<uint16_t>(bits), next = static_cast<uint16_t>(bits + 1);
    const float value = FloatFromF16(half);
    const float above = next == 0x7C00 ? 65536.0f : FloatFromF16(next);
    const float middle = 0.5f * value + 0.5f * above;  // exact
    ASSERT_EQ(F16FromFloat(value), half);
    ASSERT_EQ(F16FromFloat(-value), half | 0x8000);
    ASSERT_EQ(F16FromFloat(middle), bits % 2 == 0 ? half : next) << middle;
    ASSERT_EQ(F16FromFloat(std::nextafter(middle, 0.0f)), half) << middle;
    ASSERT_EQ(F16FromFloat(std::nextafter(middle, INFINITY)), next) << middle;
  }
  EXPECT_EQ(F16FromFloat(INFINITY), 0x7C00);
  EXPECT_EQ(F16FromFloat(1e30f), 0x7C00);
  EXPECT_TRUE(std::isnan(FloatFromF16(F16FromFloat(NAN))));
}

TEST_F(MergeTest, HalvesThatOverflowAreRefused) {
  Rewrite([](TensorToWrite& tensor, std::string& bytes) {
    tensor.type = TensorType::kF16;
    bytes.assign(bytes.size() / 2, '\0');
    if (tensor.name.find("q_proj") == std::string::npos) return;
    for (size_t i = 0; i < bytes.size(); i += 2) {  // 65,504, the largest half
      bytes[i] = '\xFF';
      bytes[i + 1] = '\x7B';
    }
  });
  for (AdapterPair& pair : adapter_.pairs) {
    std::fill(pair.a.begin(), pair.a.end(), 1.0f);
    std::fill(pair.b.begin(), pair.b.end(), 100.0f);
  }
  SaveAdapter("");
  const MergeOptions options = Options();
  const auto refused = MergeAdapter(options);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("model.layers.0.self_attn.q_proj row 0"));
  EXPECT_FALSE(FileExists(options.out_dir));
  EXPECT_FALSE(FileExists(options.out_dir + ".partial"));
}

}  // namespace
}  // namespace nibble::engine

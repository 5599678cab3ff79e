#include "engine/model/adapter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "base/status.h"
#include "engine/model/safetensors.h"
#include "engine/model/safetensors_write.h"
#include "engine/spec/base_layout.h"
#include "engine/testing/full_disk.h"

namespace nibble::engine {
namespace {

using nlohmann::json;
using spec::Module;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class AdapterTest : public ::testing::Test {
 protected:
  AdapterTest() {
    export_.model.model_type = "llama";
    export_.model.layers = 2;
    export_.model.hidden_size = 8;
    export_.model.intermediate_size = 12;
    export_.model.heads = 2;
    export_.model.kv_heads = 1;
    export_.model.head_dim = 4;
    export_.config = {4, 8, 0.05, false, {Module::kQ, Module::kV, Module::kDown}, "org/model"};
    export_.spec.lora_r = 4;
    export_.job_name = "extract";
    export_.step = 2;
    export_.total_steps = 2;
    export_.metrics = rows_;
    Random random(2);
    for (int64_t layer = 0; layer < 2; ++layer) {
      for (const Module module : export_.config.target_modules) {
        const spec::LinearShape shape = spec::ShapeOf(export_.model, module);
        auto& a = values_.emplace_back();
        auto& b = values_.emplace_back();
        for (int64_t i = 0; i < 4 * shape.k; ++i) a.push_back(static_cast<float>(random.Unit()));
        for (int64_t i = 0; i < 4 * shape.n; ++i) b.push_back(static_cast<float>(random.Unit()));
      }
    }
    size_t next = 0;
    for (int64_t layer = 0; layer < 2; ++layer) {
      for (const Module module : export_.config.target_modules) {
        export_.pairs.push_back({layer, module, values_[next].data(), values_[next + 1].data()});
        next += 2;
      }
    }
  }
  json ReadJson(const std::string& name) { return json::parse(*ReadFile(dir_.Join(name))); }
  // Imports after an edit of adapter_config.json; the error's text.
  std::string RefusedWith(const char* key, const json& value) {
    CHECK_OK(ExportAdapter(dir_.path(), export_).status());
    json config = ReadJson("adapter_config.json");
    config[key] = value;
    CHECK_OK(WriteFileAtomic(dir_.Join("adapter_config.json"), config.dump()));
    const auto status = ImportAdapter(dir_.path(), export_.model).status();
    EXPECT_EQ(StatusReason(status), Reason::kModelFileInvalid) << status;
    return std::string(status.message());
  }

  TempDir dir_;
  AdapterExport export_;
  std::deque<std::vector<float>> values_;
  const std::vector<MetricRow> rows_ = {{1, 0.5, false, 3.25, 1.5, 1e-4, 100, 40, 2000},
                                        {2, 1.0, false, NAN, INFINITY, 2e-4, 90, 30, 1000},
                                        {2, 1.0, true, 2.5, 0, 0, 50, 50, 10}};
};

TEST_F(AdapterTest, WhatIsExportedIsImported) {
  const auto files = ExportAdapter(dir_.path(), export_);
  ASSERT_TRUE(files.ok()) << files.status();
  const auto adapter = ImportAdapter(dir_.path(), export_.model);
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  EXPECT_EQ(adapter->config.r, 4);
  EXPECT_EQ(adapter->config.alpha, 8);
  EXPECT_EQ(adapter->config.Scale(), 2);
  EXPECT_EQ(adapter->config.target_modules, export_.config.target_modules);
  EXPECT_EQ(adapter->config.base_model_name, "org/model");
  ASSERT_EQ(adapter->pairs.size(), export_.pairs.size());
  for (size_t i = 0; i < adapter->pairs.size(); ++i) {
    EXPECT_EQ(adapter->pairs[i].layer, export_.pairs[i].layer);
    EXPECT_EQ(adapter->pairs[i].module, export_.pairs[i].module);
    EXPECT_EQ(adapter->pairs[i].a, values_[2 * i]);
    EXPECT_EQ(adapter->pairs[i].b, values_[2 * i + 1]);
  }
}

// One A and one B of a fused linear, under its own name.
TEST_F(AdapterTest, FusedLinearsHaveOnePair) {
  export_.model.fused = true;
  export_.config.target_modules = {Module::kQkv, Module::kGateUp};
  export_.pairs.clear();
  for (int64_t layer = 0; layer < 2; ++layer) {
    for (const Module module : export_.config.target_modules) {
      const spec::LinearShape shape = spec::ShapeOf(export_.model, module);
      const auto& a = values_.emplace_back(static_cast<size_t>(4 * shape.k), 0.5f);
      const auto& b = values_.emplace_back(static_cast<size_t>(4 * shape.n), 0.25f);
      export_.pairs.push_back({layer, module, a.data(), b.data()});
    }
  }
  ASSERT_TRUE(ExportAdapter(dir_.path(), export_).ok());
  EXPECT_EQ(ReadJson("adapter_config.json")["target_modules"], json({"qkv_proj", "gate_up_proj"}));
  const auto weights = SafetensorsFile::Open(dir_.Join("adapter_model.safetensors"));
  const TensorInfo* b = (*weights)->Find("base_model.model.model.layers.1.self_attn.qkv_proj.lora_B.weight");
  ASSERT_NE(b, nullptr);
  EXPECT_THAT(b->shape, ElementsAre(8 + 2 * 4, 4));
  ASSERT_NE((*weights)->Find("base_model.model.model.layers.1.mlp.gate_up_proj.lora_A.weight"), nullptr);
  const auto adapter = ImportAdapter(dir_.path(), export_.model);
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  EXPECT_EQ(adapter->config.target_modules, export_.config.target_modules);
  EXPECT_EQ(adapter->pairs.size(), 4u);
}

TEST_F(AdapterTest, ModulesOfAnotherKindOfBaseAreRefusedByName) {
  EXPECT_THAT(RefusedWith("target_modules", {"qkv_proj"}),
              HasSubstr("target_modules has qkv_proj, which a llama model does not"));
  export_.model.model_type = "phi3";
  export_.model.fused = true;
  EXPECT_THAT(RefusedWith("r", 4), HasSubstr("target_modules has q_proj, which a phi3 model does not"));
}

// PEFT takes a string for a pattern of modules: those that have matrices.
TEST_F(AdapterTest, ReadsThePatternsOfOthers) {
  CHECK_OK(ExportAdapter(dir_.path(), export_).status());
  json config = ReadJson("adapter_config.json");
  config["target_modules"] = ".*layers.*(q_proj|v_proj|down_proj)";
  CHECK_OK(WriteFileAtomic(dir_.Join("adapter_config.json"), config.dump()));
  const auto adapter = ImportAdapter(dir_.path(), export_.model);
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  EXPECT_EQ(adapter->config.target_modules, export_.config.target_modules);
  EXPECT_EQ(adapter->pairs.size(), export_.pairs.size());
  // Some layers only.
  export_.pairs.pop_back();
  EXPECT_THAT(RefusedWith("target_modules", ".*proj"), HasSubstr("layers.1.mlp.down_proj is missing"));
  // Of a base with other linears, whose shapes may be the same.
  export_.pairs.clear();
  for (const int64_t layer : {0, 1}) {
    const spec::LinearShape shape = spec::ShapeOf(export_.model, Module::kQkv);
    const auto& a = values_.emplace_back(static_cast<size_t>(4 * shape.k), 0.5f);
    const auto& b = values_.emplace_back(static_cast<size_t>(4 * shape.n), 0.25f);
    export_.pairs.push_back({layer, Module::kQkv, a.data(), b.data()});
  }
  EXPECT_THAT(RefusedWith("target_modules", ".*proj"),
              HasSubstr("adapter_model.safetensors has qkv_proj, which a llama model does not"));
}

// Of a model that sees pictures the text part alone has an adapter, under that part's names.
TEST_F(AdapterTest, OfAModelWithPicturesIsOfItsTextPart) {
  export_.model.model_type = "gemma3";
  CHECK_OK(ExportAdapter(dir_.path(), export_).status());
  EXPECT_EQ(ReadJson("adapter_config.json")["target_modules"],
            R"(.*language_model\..*\.(q_proj|v_proj|down_proj))");
  const auto adapter = ImportAdapter(dir_.path(), export_.model);
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  EXPECT_EQ(adapter->config.target_modules, export_.config.target_modules);
  ASSERT_EQ(adapter->pairs.size(), export_.pairs.size());
  EXPECT_EQ(adapter->pairs[5].b, values_[11]);

  const std::string weights = *ReadFile(dir_.Join("adapter_model.safetensors"));
  const auto renamed = [&](const std::string& to) {
    const std::string from = "model.language_model.layers";
    CHECK(to.size() == from.size());  // the file says how long its names are
    CHECK_OK(
        WriteFileAtomic(dir_.Join("adapter_model.safetensors"), absl::StrReplaceAll(weights, {{from, to}})));
    return ImportAdapter(dir_.path(), export_.model).status();
  };
  EXPECT_TRUE(renamed("language_model.model.layers").ok()) << "as before transformers 4.52";
  EXPECT_THAT(std::string(renamed("vision_tower.x_encod.layers").message()), HasSubstr("none Nibble knows"));
  export_.model.model_type = "llama";
  EXPECT_THAT(std::string(renamed("model.language_model.layers").message()),
              HasSubstr("none Nibble knows of a llama model; the adapter may belong to another base model"));
}

TEST_F(AdapterTest, SaysWhichBaseItBelongsTo) {
  export_.weights_digest = Sha256Hex("weights");
  export_.spec.quant = spec::QuantKind::kINT8;
  export_.spec.double_quant = false;
  ASSERT_TRUE(ExportAdapter(dir_.path(), export_).ok());
  const auto base = BaseOfAdapter(dir_.path());
  ASSERT_TRUE(base.ok()) << base.status();
  EXPECT_EQ(base->weights_digest, export_.weights_digest);
  EXPECT_EQ(base->quant, spec::QuantKind::kINT8);
  EXPECT_FALSE(base->double_quant);
  EXPECT_EQ(ImportAdapter(dir_.path(), export_.model)->base.weights_digest, export_.weights_digest);
}

TEST_F(AdapterTest, FilesHaveTheFormOthersRead) {
  const auto files = ExportAdapter(dir_.path(), export_);
  ASSERT_TRUE(files.ok()) << files.status();
  std::vector<std::string> names;
  for (const ExportedFile& file : *files) {
    names.push_back(file.name);
    EXPECT_EQ(file.sha256, *Sha256HexOfFile(dir_.Join(file.name)));
    EXPECT_EQ(file.size_bytes, *FileSizeBytes(dir_.Join(file.name)));
  }
  EXPECT_THAT(names, ElementsAre("README.md", "adapter_config.json", "adapter_model.safetensors",
                                 "metrics.jsonl", "nibble_job.yaml", "trainer_state.json",
                                 "checksums.txt"));
  const std::string text = *ReadFile(dir_.Join("adapter_config.json"));
  EXPECT_THAT(text, HasSubstr("{\n  \"alpha_pattern\": {},\n  \"auto_mapping\": null,\n"));
  EXPECT_THAT(text, HasSubstr("\"lora_alpha\": 8,\n  \"lora_dropout\": 0.05,"));
  EXPECT_THAT(
      text,
      HasSubstr("\"target_modules\": [\n    \"q_proj\",\n    \"v_proj\",\n    \"down_proj\"\n  ]"));
  const auto weights = SafetensorsFile::Open(dir_.Join("adapter_model.safetensors"));
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ((*weights)->metadata().at("format"), "pt");
  const TensorInfo* b =
      (*weights)->Find("base_model.model.model.layers.1.mlp.down_proj.lora_B.weight");
  ASSERT_NE(b, nullptr);
  EXPECT_THAT(b->shape, ElementsAre(8, 4));
  const json state = ReadJson("trainer_state.json");
  EXPECT_EQ(state["global_step"], 2);
  EXPECT_EQ(state["log_history"][0]["loss"], 3.25);
  EXPECT_EQ(state["log_history"][2]["eval_loss"], 2.5);
  EXPECT_EQ(state["num_input_tokens_seen"], 190);
  EXPECT_THAT(*ReadFile(dir_.Join("metrics.jsonl")), HasSubstr("\"loss\":\"nan\""));
  EXPECT_THAT(*ReadFile(dir_.Join("README.md")), HasSubstr("base_model: \"org/model\""));
  EXPECT_THAT(*ReadFile(dir_.Join("nibble_job.yaml")), HasSubstr("lora_r: 4\n"));
  EXPECT_THAT(*ReadFile(dir_.Join("nibble_job.yaml")), HasSubstr("base_model=DIR datasets=FILE\n"));
  // Held-out rows came from a file of their own: none of the other's are to be held out.
  export_.has_eval_dataset = true;
  ASSERT_TRUE(ExportAdapter(dir_.path(), export_).ok());
  EXPECT_THAT(*ReadFile(dir_.Join("nibble_job.yaml")),
              AllOf(HasSubstr("datasets=FILE test_datasets=FILE\n"), HasSubstr("\nval_set_size: 0.0\n")));
  EXPECT_THAT(*ReadFile(dir_.Join("checksums.txt")), HasSubstr("  adapter_model.safetensors\n"));
}

// The rows are written one by one, in the form the whole would have.
TEST_F(AdapterTest, TheCourseOfTheRunIsJsonHoweverLongItWas) {
  for (const size_t steps : {0, 1, 3'000}) {
    std::vector<MetricRow> rows;
    for (size_t i = 1; i <= steps; ++i)
      rows.push_back({static_cast<int64_t>(i), 0.5, false, 2.5, 1, 1e-4, 7});
    export_.metrics = rows;
    ASSERT_TRUE(ExportAdapter(dir_.path(), export_).ok());
    const std::string text = *ReadFile(dir_.Join("trainer_state.json"));
    const json state = json::parse(text);
    EXPECT_EQ(state["log_history"].size(), steps);
    EXPECT_EQ(state["num_input_tokens_seen"], 7 * steps);
    EXPECT_EQ(state.dump(2) + "\n", text);
    const std::string lines = *ReadFile(dir_.Join("metrics.jsonl"));
    EXPECT_EQ(static_cast<size_t>(std::count(lines.begin(), lines.end(), '\n')), steps);
  }
}

TEST_F(AdapterTest, WeightsAndConfigDependOnNothingElse) {
  const auto first = ExportAdapter(dir_.Join("a"), export_);
  export_.metrics = {};
  export_.job_name = "other";
  const auto second = ExportAdapter(dir_.Join("b"), export_);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ((*first)[1].sha256, (*second)[1].sha256);
  EXPECT_EQ((*first)[2].sha256, (*second)[2].sha256);
}

TEST_F(AdapterTest, AFullDiskLeavesWholeFilesOnly) {
  const auto before = ExportAdapter(dir_.path(), export_);
  ASSERT_TRUE(before.ok()) << before.status();
  for (const int64_t bytes : {0, 100, 900, 1500}) {
    const FullDisk full(bytes);
    const auto files = ExportAdapter(dir_.path(), export_);
    EXPECT_EQ(StatusReason(files.status()), Reason::kStorageFull) << bytes << ": " << files.status();
    EXPECT_EQ(ListDir(dir_.path())->size(), before->size());
    for (const ExportedFile& file : *before) EXPECT_EQ(file.sha256, *Sha256HexOfFile(dir_.Join(file.name)));
  }
}

TEST_F(AdapterTest, WhatWeDoNotCarryOutIsRefused) {
  EXPECT_THAT(RefusedWith("use_dora", true), HasSubstr("use_dora"));
  EXPECT_THAT(RefusedWith("modules_to_save", {"lm_head"}), HasSubstr("modules_to_save"));
  EXPECT_THAT(RefusedWith("rank_pattern", {{"q_proj", 2}}), HasSubstr("rank_pattern"));
  EXPECT_THAT(RefusedWith("bias", "all"), HasSubstr("bias"));
  // These change the base, or are used otherwise than by adding scale * B A.
  for (const char* init : {"pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"})
    EXPECT_THAT(RefusedWith("init_lora_weights", init), HasSubstr("init_lora_weights")) << init;
  EXPECT_THAT(RefusedWith("alora_invocation_tokens", {1, 2}), HasSubstr("alora_invocation_tokens"));
  for (const char* variant : {"use_bdlora", "arrow_config", "kasa_config", "monteclora_config"})
    EXPECT_THAT(RefusedWith(variant, {{"beta", 1}}), HasSubstr(variant));
  EXPECT_THAT(RefusedWith("peft_type", "IA3"), HasSubstr("LORA"));
  EXPECT_THAT(RefusedWith("r", 0), HasSubstr("r is 0"));
  EXPECT_THAT(RefusedWith("r", 8), HasSubstr("another base model or rank"));
  EXPECT_THAT(RefusedWith("lora_alpha", "x"), HasSubstr("lora_alpha"));
  EXPECT_THAT(RefusedWith("target_modules", ""), HasSubstr("target_modules"));
  EXPECT_THAT(RefusedWith("target_modules", {"q_proj", "k_proj"}), HasSubstr("k_proj is missing"));
  EXPECT_THAT(RefusedWith("target_modules", {"q_proj"}), HasSubstr("does not name"));
  CHECK_OK(ExportAdapter(dir_.path(), export_).status());
  const float one = 1;
  CHECK_OK(
      WriteFileAtomic(dir_.Join("adapter_model.safetensors"),
                      SerializeSafetensors(
                          {{"base_model.model.lm_head.weight", TensorType::kF32, {1}, &one}}, {})));
  EXPECT_THAT(std::string(ImportAdapter(dir_.path(), export_.model).status().message()),
              HasSubstr("none Nibble knows"));
  EXPECT_EQ(StatusReason(ImportAdapter(dir_.Join("none"), export_.model).status()),
            Reason::kAdapterNotFound);
}

TEST_F(AdapterTest, WhatIsNotThereIsNamed) {
  const auto says = [this](const std::string& folder) {
    return std::string(ImportAdapter(folder, export_.model).status().message());
  };
  EXPECT_EQ(says(dir_.Join("none")), absl::StrCat("adapter ", dir_.Join("none"), ": no such directory"));
  EXPECT_THAT(std::string(BaseOfAdapter(dir_.Join("none")).status().message()),
              HasSubstr("no such directory"));
  EXPECT_THAT(says(dir_.path()), HasSubstr("adapter_config.json is missing; an adapter is the folder"));
  CHECK_OK(ExportAdapter(dir_.path(), export_).status());
  CHECK_OK(RemoveFile(dir_.Join("adapter_model.safetensors")));
  EXPECT_THAT(says(dir_.path()), HasSubstr("adapter_model.safetensors is missing; an adapter is the folder"));
  CHECK_OK(WriteFileAtomic(dir_.Join("adapter_model.bin"), "x"));
  EXPECT_THAT(says(dir_.path()), HasSubstr("adapter_model.bin must be converted"));
}

TEST_F(AdapterTest, DamagedAdaptersNeverBreakTheReader) {
  CHECK_OK(ExportAdapter(dir_.path(), export_).status());
  const std::string config = *ReadFile(dir_.Join("adapter_config.json"));
  Random random(8);
  for (int round = 0; round < 200; ++round) {
    std::string bytes = config;
    for (uint64_t edits = 1 + random.Below(3); edits > 0; --edits) {
      bytes[random.Below(bytes.size())] = static_cast<char>(random.Below(256));
    }
    std::ofstream(dir_.Join("adapter_config.json"), std::ios::binary)
        << bytes;  // hundreds: no fsync
    const auto adapter = ImportAdapter(dir_.path(), export_.model);
    if (!adapter.ok()) {
      EXPECT_EQ(StatusReason(adapter.status()), Reason::kModelFileInvalid);
    }
  }
}

}  // namespace
}  // namespace nibble::engine

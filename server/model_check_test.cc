#include "server/model_check.h"

#include <gtest/gtest.h>

#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/error.h"

namespace nibble::server {
namespace {

std::string Shard(const std::string& header, int64_t data_bytes) {
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(header.size() >> (8 * i));
  return file + header + std::string(static_cast<size_t>(data_bytes), '\0');
}

using Tensors = std::vector<std::pair<std::string, std::vector<int64_t>>>;

int64_t Bytes(const std::vector<int64_t>& shape) {
  int64_t bytes = 4;
  for (const int64_t size : shape) bytes *= size;
  return bytes;
}

// A file of zeros in F32.
std::string FileOf(const Tensors& tensors) {
  std::string header = "{\"__metadata__\":{\"format\":\"pt\"}";
  int64_t at = 0;
  for (const auto& [name, shape] : tensors) {
    absl::StrAppend(&header, ",\"", name, "\":{\"dtype\":\"F32\",\"shape\":[", absl::StrJoin(shape, ","),
                    "],\"data_offsets\":[", at, ",", at + Bytes(shape), "]}");
    at += Bytes(shape);
  }
  return Shard(header + "}", at);
}

// A model of one layer.
class ModelCheck : public testing::Test {
 protected:
  void SetUp() override {
    files_["config.json"] = R"({"architectures":["LlamaForCausalLM"],"model_type":"llama",
        "vocab_size":32,"hidden_size":8,"intermediate_size":16,"num_hidden_layers":1,
        "num_attention_heads":2,"num_key_value_heads":1,"max_position_embeddings":64,
        "rms_norm_eps":1e-5,"tie_word_embeddings":true,"hidden_act":"silu"})";
    files_["tokenizer.json"] = R"({"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}})";
    files_["model.safetensors"] = FileOf(All());
  }

  static Tensors All() {
    const std::string layer = "model.layers.0.";
    return {{"model.embed_tokens.weight", {32, 8}},
            {"model.norm.weight", {8}},
            {layer + "input_layernorm.weight", {8}},
            {layer + "post_attention_layernorm.weight", {8}},
            {layer + "self_attn.q_proj.weight", {8, 8}},
            {layer + "self_attn.k_proj.weight", {4, 8}},
            {layer + "self_attn.v_proj.weight", {4, 8}},
            {layer + "self_attn.o_proj.weight", {8, 8}},
            {layer + "mlp.gate_proj.weight", {16, 8}},
            {layer + "mlp.up_proj.weight", {16, 8}},
            {layer + "mlp.down_proj.weight", {8, 16}}};
  }

  absl::Status Check() {
    ModelFiles model;
    for (const auto& [name, data] : files_) {
      model.files.push_back({name, "", static_cast<int64_t>(data.size())});
    }
    model.read = [this](const core::FileRef& file, int64_t offset, int64_t max_bytes) {
      return absl::StatusOr<std::string>(
          files_.at(file.name).substr(static_cast<size_t>(offset), static_cast<size_t>(max_bytes)));
    };
    return CheckModel(model).status();
  }
  void ExpectRefused(Reason reason, std::string_view says) {
    const absl::Status status = Check();
    EXPECT_EQ(StatusReason(status), reason) << status;
    EXPECT_NE(std::string(status.message()).find(says), std::string::npos) << status;
  }

  std::map<std::string, std::string> files_;
};

TEST_F(ModelCheck, AcceptsAWholeModel) { EXPECT_TRUE(Check().ok()) << Check(); }

// Gemma 2 has a norm more on both sides, under names that mean something else in a Llama.
TEST_F(ModelCheck, KnowsTheNormsOfGemma2) {
  files_["config.json"] = R"({"model_type":"gemma2","vocab_size":32,"hidden_size":8,"intermediate_size":16,
      "num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1,"head_dim":4})";
  ExpectRefused(Reason::kModelFileInvalid, "model.layers.0.pre_feedforward_layernorm.weight");
  Tensors tensors = All();
  tensors.push_back({"model.layers.0.pre_feedforward_layernorm.weight", {8}});
  tensors.push_back({"model.layers.0.post_feedforward_layernorm.weight", {8}});
  files_["model.safetensors"] = FileOf(tensors);
  EXPECT_TRUE(Check().ok()) << Check();
}

// Phi's linears of one input are one tensor.
TEST_F(ModelCheck, KnowsTheFusedLinearsOfPhi) {
  files_["config.json"] = R"({"model_type":"phi3","vocab_size":32,"hidden_size":8,"intermediate_size":16,
      "num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1,"tie_word_embeddings":true})";
  ExpectRefused(Reason::kModelFileInvalid, "model.layers.0.self_attn.qkv_proj.weight");
  const std::string layer = "model.layers.0.";
  Tensors tensors = {{"model.embed_tokens.weight", {32, 8}},
                     {"model.norm.weight", {8}},
                     {layer + "input_layernorm.weight", {8}},
                     {layer + "post_attention_layernorm.weight", {8}},
                     {layer + "self_attn.qkv_proj.weight", {16, 8}},
                     {layer + "self_attn.o_proj.weight", {8, 8}},
                     {layer + "mlp.gate_up_proj.weight", {32, 8}},
                     {layer + "mlp.down_proj.weight", {8, 16}}};
  files_["model.safetensors"] = FileOf(tensors);
  EXPECT_TRUE(Check().ok()) << Check();
  tensors.push_back({layer + "self_attn.q_proj.weight", {8, 8}});
  files_["model.safetensors"] = FileOf(tensors);
  ExpectRefused(Reason::kModelFileInvalid, "q_proj.weight has no place in a phi3 model");
}

// What sees pictures is left out by name, and nothing else is.
TEST_F(ModelCheck, KnowsTheTextPartOfGemma3WithPictures) {
  files_["config.json"] = R"({"model_type":"gemma3","text_config":{"vocab_size":32,"hidden_size":8,
      "intermediate_size":16,"num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1,
      "head_dim":4}})";
  Tensors text = All();
  for (const char* norm : {"pre_feedforward_layernorm", "post_feedforward_layernorm"})
    text.push_back({absl::StrCat("model.layers.0.", norm, ".weight"), {8}});
  for (const char* norm : {"self_attn.q_norm", "self_attn.k_norm"})
    text.push_back({absl::StrCat("model.layers.0.", norm, ".weight"), {4}});
  // On the hub, and as transformers 4.52 to 4.57 saved it.
  for (const auto& [of_text, of_pictures] :
       {std::pair{"language_model.model.", ""}, {"model.language_model.", "model."}}) {
    Tensors tensors;
    for (const auto& [name, shape] : text) tensors.push_back({of_text + name.substr(6), shape});
    files_["model.safetensors"] = FileOf(tensors);
    EXPECT_TRUE(Check().ok()) << Check();
    for (const char* name : {"vision_tower.encoder.layers.0.self_attn.q_proj.weight",
                             "multi_modal_projector.mm_soft_emb_norm.weight"})
      tensors.push_back({absl::StrCat(of_pictures, name), {3}});
    tensors.push_back({"lm_head.weight", {32, 8}});
    files_["model.safetensors"] = FileOf(tensors);
    EXPECT_TRUE(Check().ok()) << Check();
    tensors.push_back({absl::StrCat(of_pictures, "audio_tower.weight"), {3}});
    files_["model.safetensors"] = FileOf(tensors);
    ExpectRefused(Reason::kModelFileInvalid, "audio_tower.weight has no place in a gemma3 model");
  }
  text.push_back({"vision_tower.probe", {3}});
  files_["model.safetensors"] = FileOf(text);
  ExpectRefused(Reason::kModelFileInvalid, "no shard holds language_model.model.embed_tokens.weight");
}

TEST_F(ModelCheck, AcceptsShards) {
  Tensors tensors = All();
  const std::string last = tensors.back().first;
  files_.erase("model.safetensors");
  files_["b.safetensors"] = FileOf({tensors.back()});
  tensors.pop_back();
  files_["a.safetensors"] = FileOf(tensors);
  std::string map;
  for (const auto& [name, shape] : tensors) absl::StrAppend(&map, "\"", name, "\":\"a.safetensors\",");
  files_["model.safetensors.index.json"] =
      absl::StrCat("{\"weight_map\":{", map, "\"", last, "\":\"b.safetensors\"}}");
  EXPECT_TRUE(Check().ok()) << Check();
  const std::string shard = files_["b.safetensors"];
  files_.erase("b.safetensors");
  ExpectRefused(Reason::kModelFileInvalid, "b.safetensors: is missing");
  files_["b.safetensors"] = FileOf({{"other", {1}}});
  ExpectRefused(Reason::kModelFileInvalid, "does not hold");
  files_["b.safetensors"] = shard;
  files_["model.safetensors.index.json"] = R"({"weight_map":{"x":"../../etc/passwd"}})";
  ExpectRefused(Reason::kModelFileInvalid, "no plain file name");
}

TEST_F(ModelCheck, OfATextModelLeavesOutNoPictures) {
  Tensors tensors = All();
  tensors.push_back({"vision_tower.probe", {3}});
  files_["model.safetensors"] = FileOf(tensors);
  ExpectRefused(Reason::kModelFileInvalid, "vision_tower.probe has no place in a llama model");
}

TEST_F(ModelCheck, NamesWhatIsMissing) {
  for (const auto& [name, reason] : {std::pair{"config.json", Reason::kModelFileInvalid},
                                     {"model.safetensors", Reason::kModelFileInvalid},
                                     {"tokenizer.json", Reason::kTokenizerUnsupported}}) {
    const std::string data = files_[name];
    files_.erase(name);
    ExpectRefused(reason, name);
    files_[name] = data;
  }
  Tensors tensors = All();
  tensors.pop_back();
  files_["model.safetensors"] = FileOf(tensors);
  ExpectRefused(Reason::kModelFileInvalid, "model.layers.0.mlp.down_proj.weight");
}

TEST_F(ModelCheck, RefusesTypesThatCannotBeTrainedOn) {
  std::string& file = files_["model.safetensors"];
  const size_t at = file.find("\"F32\"");
  ASSERT_NE(at, std::string::npos);
  file.replace(at, 5, "\"I32\"");
  ExpectRefused(Reason::kModelFileInvalid,
                "has type I32; a base must be given in F32, F16 or BF16");
}

// config.json of one model beside the weights of another: said before a worker has fetched anything.
TEST_F(ModelCheck, RefusesShapesThatConfigJsonDoesNotAskFor) {
  const std::string config = files_["config.json"];
  const auto with = [&](const char* from, const char* to) {
    std::string changed = config;
    const size_t at = changed.find(from);
    ASSERT_NE(at, std::string::npos);
    files_["config.json"] = changed.replace(at, std::string(from).size(), to);
  };
  with("\"hidden_size\":8", "\"hidden_size\":16");
  ExpectRefused(Reason::kModelFileInvalid,
                "model.embed_tokens.weight has shape [32, 8], config.json asks for [32, 16]");
  with("\"intermediate_size\":16", "\"intermediate_size\":24");
  ExpectRefused(Reason::kModelFileInvalid,
                "mlp.gate_proj.weight has shape [16, 8], config.json asks for [24, 8]");
  with("\"num_key_value_heads\":1", "\"num_key_value_heads\":2");
  ExpectRefused(Reason::kModelFileInvalid, "k_proj.weight has shape [4, 8], config.json asks for [8, 8]");
  with("\"vocab_size\":32", "\"vocab_size\":33");
  ExpectRefused(Reason::kModelFileInvalid, "[32, 8], config.json asks for [33, 8]");
  files_["config.json"] = config;
  Tensors tensors = All();
  tensors.push_back({"model.layers.1.mlp.up_proj.weight", {16, 8}});
  files_["model.safetensors"] = FileOf(tensors);
  ExpectRefused(Reason::kModelFileInvalid,
                "model.layers.1.mlp.up_proj.weight has no place in a llama model with 1 layers");
}

TEST_F(ModelCheck, TakesInnerModelsTiedHeadsAndFourBits) {
  Tensors tensors = All();
  for (auto& [name, shape] : tensors) name = name.substr(6);
  tensors.push_back({"lm_head.weight", {32, 8}});
  files_["model.safetensors"] = FileOf(tensors);
  EXPECT_TRUE(Check().ok()) << Check();
  const std::string four_bits = "model.layers.0.mlp.up_proj.weight";
  std::map<std::string, TensorFacts> facts;
  for (const auto& [name, shape] : All()) facts[name] = {"BF16", shape};
  facts[four_bits] = {"U8", {64, 1}};
  facts[four_bits + ".absmax"] = {"F32", {2}};
  facts[four_bits + ".quant_state.bitsandbytes__nf4"] = {"U8", {90}};
  const spec::ModelConfig config = spec::ParseModelConfig(files_["config.json"]).value();
  EXPECT_TRUE(CheckTensors(facts, config).ok()) << CheckTensors(facts, config);
  facts[four_bits].shape = {63, 1};
  EXPECT_FALSE(CheckTensors(facts, config).ok());
}

TEST_F(ModelCheck, RefusesATokenizerOfALargerVocabulary) {
  files_["tokenizer.json"] = R"({"model":{"type":"BPE","vocab":{"a":0,"b":32,"ab":2},"merges":["a b"]}})";
  ExpectRefused(Reason::kTokenizerUnsupported, "has tokens up to id 32, config.json a vocabulary of 32");
}

TEST_F(ModelCheck, RefusesUnknownArchitectures) {
  files_["config.json"] = R"({"model_type":"mamba","architectures":["MambaForCausalLM"]})";
  ExpectRefused(Reason::kUnsupportedArchitecture, "");
}

TEST_F(ModelCheck, SingleCharactersNeedNoMerges) {
  files_["tokenizer.json"] =
      R"({"model":{"type":"BPE","vocab":{"<unk>":0,"\u2581":1,"a":2},"merges":[]}})";
  EXPECT_TRUE(Check().ok()) << Check();
}

TEST_F(ModelCheck, RefusesTokenizersWithoutMerges) {
  for (const char* text : {R"({"model":{"type":"BPE","vocab":{"a":0}}})",
                           R"({"model":{"type":"BPE","vocab":{"a":0,"ab":1},"merges":[]}})"}) {
    files_["tokenizer.json"] = text;
    ExpectRefused(Reason::kTokenizerUnsupported, "merges");
  }
  files_["tokenizer.json"] = R"({"model":{"type":"Unigram","vocab":[["a",0]]}})";
  ExpectRefused(Reason::kTokenizerUnsupported, "another type");
  files_["tokenizer.json"] = "not json";
  ExpectRefused(Reason::kTokenizerUnsupported, "JSON");
}

TEST_F(ModelCheck, RefusesTruncatedAndLyingShards) {
  const std::string good = files_["model.safetensors"];
  for (size_t size : {size_t{0}, size_t{7}, size_t{8}, size_t{100}, good.size() - 1}) {
    files_["model.safetensors"] = good.substr(0, size);
    ExpectRefused(Reason::kModelFileInvalid, "model.safetensors");
  }
  files_["model.safetensors"] = good + "x";
  ExpectRefused(Reason::kModelFileInvalid, "truncated or its header is wrong");
  files_["model.safetensors"] = std::string(7, '\xff') + '\x7f' + good.substr(8);
  ExpectRefused(Reason::kModelFileInvalid, "announces a header");
}

TEST(CheckSafetensorsHeader, RefusesWhatDoesNotAddUp) {
  const std::pair<const char*, const char*> cases[] = {
      {"[]", "no JSON object"},
      {"{\"a\":7}", "no object"},
      {R"({"a":{"dtype":"F32","shape":[1]}})", "lacks"},
      {R"({"a":{"dtype":"X","shape":[1],"data_offsets":[0,4]}})", "data type"},
      {R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", "natural number"},
      {R"({"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}})", "natural number"},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4]}})",
       "larger"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", "larger"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,3]}})", "match its shape"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", "truncated"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})", "truncated"},
      {R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}})", "dimensions"},
      {R"({"a":{"dtype":"F32","shape":[2],"shape":[1],"data_offsets":[0,4]}})", "same key twice"},
      {R"( {"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "first byte"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
           "b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
       "overlap"},
      {R"({"a":[[[[[1]]]]]})", "deep"},
      {R"({"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})", "truncated"},
  };
  for (const auto& [header, says] : cases) {
    const auto names = CheckSafetensorsHeader("f", header, 4);
    ASSERT_FALSE(names.ok()) << header;
    EXPECT_EQ(StatusReason(names.status()), Reason::kModelFileInvalid);
    EXPECT_NE(std::string(names.status().message()).find(says), std::string::npos) << names.status();
  }
  EXPECT_TRUE(
      CheckSafetensorsHeader("f", R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", 4)
          .ok());
}

TEST(IsModelFileName, RefusesPaths) {
  for (const char* good : {"config.json", "model-00001-of-00002.safetensors", "c++.txt"}) {
    EXPECT_TRUE(IsModelFileName(good)) << good;
  }
  for (const char* bad : {"", ".", "..", "../x", "a/b", "a..b", ".hidden", "a b", "a\n"}) {
    EXPECT_FALSE(IsModelFileName(bad)) << bad;
  }
}

TEST(ManifestDigest, DependsOnContentNotOrder) {
  const std::vector<core::FileRef> a = {{"x", "1", 1}, {"y", "2", 2}}, b = {{"y", "2", 2}, {"x", "1", 1}};
  EXPECT_EQ(ManifestDigest(a), ManifestDigest(b));
  EXPECT_NE(ManifestDigest(a), ManifestDigest({{"x", "1", 1}, {"y", "3", 2}}));
}

}  // namespace
}  // namespace nibble::server

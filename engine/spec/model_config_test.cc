#include "engine/spec/model_config.h"

#include <cmath>

#include "base/error.h"
#include "engine/spec/rope.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::spec {
namespace {

using ::testing::HasSubstr;

constexpr char kBase[] = R"({"model_type":"llama","vocab_size":512,"hidden_size":64,
  "intermediate_size":172,"num_hidden_layers":5,"num_attention_heads":8,"num_key_value_heads":4,
  "max_position_embeddings":512,"rms_norm_eps":1e-5,"tie_word_embeddings":true)";

std::string With(const std::string& more) { return std::string(kBase) + more + "}"; }

TEST(ParseModelConfig, ReadsALlama) {
  const auto model = ParseModelConfig(With(R"(,"rope_scaling":null,"torch_dtype":"float32")"));
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->head_dim, 8);
  EXPECT_EQ(model->QueryWidth(), 64);
  EXPECT_EQ(model->KeyValueWidth(), 32);
  EXPECT_EQ(model->rope, RopeKind::kDefault);
  EXPECT_EQ(model->TotalParameters(), 260032);
}

TEST(ParseModelConfig, ReadsBothSpellingsOfRope) {
  const auto old_form =
      ParseModelConfig(With(R"(,"rope_theta":500000.0,"rope_scaling":{"factor":8.0,
      "low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192,
      "type":"llama3"})"));
  const auto new_form = ParseModelConfig(With(R"(,"dtype":"bfloat16","rope_parameters":{
      "rope_theta":500000.0,"factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,
      "original_max_position_embeddings":8192,"rope_type":"llama3"})"));
  ASSERT_TRUE(old_form.ok() && new_form.ok()) << old_form.status() << new_form.status();
  EXPECT_EQ(*old_form, *new_form);
  EXPECT_EQ(new_form->rope, RopeKind::kLlama3);
  EXPECT_EQ(new_form->rope_theta, 500000);
}

// A null stands for nothing, wherever it stands.
TEST(ParseModelConfig, ANullHidesNoRope) {
  const auto model = ParseModelConfig(
      With(R"(,"rope_parameters":null,"rope_scaling":{"type":"linear","factor":4.0})"));
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->rope, RopeKind::kLinear);
  EXPECT_EQ(model->rope_factor, 4);
}

// As transformers takes a file that has both spellings: rope_scaling is the rope, unless it says nothing.
TEST(ParseModelConfig, RopeScalingGoesBeforeRopeParameters) {
  const auto both = [](const std::string& scaling) {
    return ParseModelConfig(With(R"(,"rope_theta":200000.0,"rope_parameters":{"rope_theta":500000.0,
        "rope_type":"default"},"rope_scaling":)" + scaling));
  };
  const auto scaled = both(R"({"type":"linear","factor":4.0})");
  ASSERT_TRUE(scaled.ok()) << scaled.status();
  EXPECT_EQ(scaled->rope, RopeKind::kLinear);
  EXPECT_EQ(scaled->rope_factor, 4);
  EXPECT_EQ(scaled->rope_theta, 200000);
  EXPECT_EQ(both("{}")->rope_theta, 500000);
  EXPECT_EQ(both("null")->rope_theta, 500000);
  EXPECT_THAT(std::string(both("[1]").status().message()), HasSubstr("rope_scaling is no object"));
}

TEST(ParseModelConfig, RefusesByName) {
  const auto why = [](const std::string& json) {
    return std::string(ParseModelConfig(json).status().message());
  };
  EXPECT_THAT(why(R"({"model_type":"phimoe"})"), HasSubstr("phimoe"));
  EXPECT_THAT(why(With(R"(,"rope_scaling":{"rope_type":"dynamic","factor":4})")), HasSubstr("whole batch"));
  EXPECT_THAT(why(With(R"(,"hidden_act":"gelu")")), HasSubstr("gelu"));
  EXPECT_THAT(why(With(R"(,"attention_bias":true)")), HasSubstr("attention_bias"));
  EXPECT_THAT(why(With(R"(,"mlp_bias":true)")), HasSubstr("mlp_bias"));
  EXPECT_THAT(why(With(R"(,"rope_parameters":{"rope_theta":1e4,"partial_rotary_factor":0.5})")),
              HasSubstr("rope_parameters.partial_rotary_factor 0.5 is not supported in a llama model"));
  EXPECT_THAT(why(With(R"(,"partial_rotary_factor":0.5)")), HasSubstr("partial_rotary_factor 0.5"));
  EXPECT_THAT(why(With(R"(,"quantization_config":{})")), HasSubstr("quantization_config"));
  EXPECT_TRUE(ParseModelConfig(With(R"(,"quantization_config":{"quant_method":"bitsandbytes",)"
                                    R"("load_in_4bit":true})"))
                  .ok());
  EXPECT_THAT(why(With(R"(,"torch_dtype":"float8")")), HasSubstr("float8"));
  EXPECT_EQ(StatusReason(ParseModelConfig(R"({"model_type":"phimoe"})").status()),
            Reason::kUnsupportedArchitecture);
}

TEST(ParseModelConfig, RefusesBadFiles) {
  const auto reason = [](const std::string& json) {
    return StatusReason(ParseModelConfig(json).status());
  };
  EXPECT_EQ(reason("{"), Reason::kModelFileInvalid);
  EXPECT_EQ(reason("[]"), Reason::kModelFileInvalid);
  EXPECT_EQ(reason(R"({"model_type":"llama"})"), Reason::kModelFileInvalid);
  EXPECT_EQ(reason(R"({"model_type":"llama","vocab_size":-5})"), Reason::kModelFileInvalid);
  EXPECT_EQ(reason(With(R"(,"rope_theta":"x")")), Reason::kModelFileInvalid);
  EXPECT_EQ(reason(With(R"(,"head_dim":1e99)")), Reason::kModelFileInvalid);
  // Kernels and tables have them in single precision.
  EXPECT_EQ(reason(With(R"(,"rope_theta":1e300)")), Reason::kModelFileInvalid);
  EXPECT_EQ(reason(With(R"(,"rope_scaling":{"type":"linear","factor":1e-300})")), Reason::kModelFileInvalid);
}

// Printing or copying what is nested half a million levels deep would overflow the stack.
TEST(ParseModelConfig, RefusesWhatIsNestedDeep) {
  constexpr size_t kLevels = 500'000;
  const std::string deep = std::string(kLevels, '[') + std::string(kLevels, ']');
  for (const std::string& json : {R"({"model_type":"llama","vocab_size":)" + deep + "}",
                                  With(R"(,"dtype":)" + deep),
                                  With(R"(,"quantization_config":{"quant_method":)" + deep + "}"), deep}) {
    EXPECT_THAT(std::string(ParseModelConfig(json).status().message()), HasSubstr("nested deeper"));
  }
  EXPECT_TRUE(ParseModelConfig(With(R"(,"auto_map":[[[["[[["]]]])")).ok());
}

TEST(ParseModelConfig, HeadsThatFollowAreBoundedToo) {
  const auto why = ParseModelConfig(R"({"model_type":"llama","vocab_size":512,"hidden_size":4096,
      "intermediate_size":64,"num_hidden_layers":1,"num_attention_heads":2})").status();
  EXPECT_THAT(std::string(why.message()), HasSubstr("heads are 2048 wide"));
}

TEST(ParseModelConfig, FamiliesDiffer) {
  std::string qwen = With("");
  qwen.replace(qwen.find("llama"), 5, "qwen2");
  EXPECT_TRUE(ParseModelConfig(qwen)->qkv_bias);
  qwen.replace(qwen.find("qwen2"), 5, "qwen3");
  EXPECT_TRUE(ParseModelConfig(qwen)->qk_norm);
  EXPECT_EQ(ParseModelConfig(qwen)->head_dim, 128);
  std::string mistral = With(R"(,"sliding_window":128)");
  mistral.replace(mistral.find("llama"), 5, "mistral");
  EXPECT_EQ(ParseModelConfig(mistral)->sliding_window, 128);
  mistral.replace(mistral.find("128"), 3, "null");
  EXPECT_EQ(ParseModelConfig(mistral)->sliding_window, 0);
  mistral.erase(mistral.find(R"(,"sliding_window")"));
  EXPECT_EQ(ParseModelConfig(mistral + "}")->sliding_window, 4096) << "what transformers takes";
}

// As published; what is absent there is so here.
constexpr char kGemma2[] = R"({"model_type":"gemma2","vocab_size":256000,"hidden_size":2304,
  "intermediate_size":9216,"num_hidden_layers":4,"num_attention_heads":8,"num_key_value_heads":4,
  "head_dim":256,"hidden_act":"gelu_pytorch_tanh","hidden_activation":"gelu_pytorch_tanh",
  "attn_logit_softcapping":50.0,
  "final_logit_softcapping":30.0,"query_pre_attn_scalar":224,"sliding_window":4096,"rms_norm_eps":1e-6})";
constexpr char kGemma3[] = R"({"model_type":"gemma3_text","vocab_size":262144,"hidden_size":1152,
  "intermediate_size":6912,"num_hidden_layers":7,"num_attention_heads":4,"num_key_value_heads":1,
  "head_dim":256,"hidden_activation":"gelu_pytorch_tanh","attn_logit_softcapping":null,
  "final_logit_softcapping":null,
  "query_pre_attn_scalar":256,"sliding_window":512,"sliding_window_pattern":6,"rope_theta":1000000,
  "rope_local_base_freq":10000,"rope_scaling":null,"rms_norm_eps":1e-6})";

std::string Changed(std::string json, const std::string& from, const std::string& to) {
  const size_t at = json.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return json.replace(at, from.size(), to);
}

TEST(ParseModelConfig, ReadsGemma2) {
  const auto model = ParseModelConfig(kGemma2);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_TRUE(model->gelu && model->unit_norms && model->post_norms && model->scaled_embedding);
  EXPECT_TRUE(model->tie_word_embeddings);
  EXPECT_FALSE(model->qk_norm);
  EXPECT_EQ(model->attention_soft_cap, 50);
  EXPECT_EQ(model->logit_soft_cap, 30);
  EXPECT_FLOAT_EQ(model->ScoreScale(), 1 / std::sqrt(224.0f));
  EXPECT_EQ(model->WindowOf(0), 4096);
  EXPECT_EQ(model->WindowOf(1), 0);
  EXPECT_EQ(model->RopeTables(), 1);
  // A null is no cap, an absent key the usual one.
  EXPECT_EQ(ParseModelConfig(Changed(kGemma2, ":30.0", ":null"))->logit_soft_cap, 0);
  EXPECT_EQ(*ParseModelConfig(Changed(kGemma2, R"("final_logit_softcapping":30.0,)", "")), *model);
  EXPECT_EQ(ParseModelConfig(Changed(kGemma2, ":4096", ":null"))->WindowOf(0), 0);
}

TEST(ParseModelConfig, ReadsGemma3) {
  const auto model = ParseModelConfig(kGemma3);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_TRUE(model->gelu && model->unit_norms && model->post_norms && model->qk_norm &&
              model->scaled_embedding);
  EXPECT_EQ(model->attention_soft_cap, 0);
  EXPECT_EQ(model->logit_soft_cap, 0);
  EXPECT_EQ(model->WindowOf(4), 512);
  EXPECT_EQ(model->WindowOf(5), 0);
  EXPECT_EQ(model->WindowOf(6), 512);
  EXPECT_EQ(model->RopeTables(), 2);
  EXPECT_EQ(model->RopeTableOf(4), 1);
  EXPECT_EQ(model->RopeTableOf(5), 0);
  EXPECT_EQ(model->rope_theta, 1e6);
  EXPECT_EQ(model->local_rope_theta, 1e4);
  // Scaling is of layers without a window.
  const auto scaled = ParseModelConfig(
      Changed(kGemma3, R"("rope_scaling":null)", R"("rope_scaling":{"rope_type":"linear","factor":8.0})"));
  EXPECT_EQ(scaled->rope, RopeKind::kLinear);
  const auto tables = RopeTable(*scaled, 2);
  ASSERT_EQ(tables.size(), 2u * 2 * 128 * 2);
  EXPECT_NEAR(tables[128 * 2], std::cos(1.0 / 8), 1e-6);
  EXPECT_NEAR(tables[(2 + 1) * 128 * 2], std::cos(1.0), 1e-6);
}

TEST(ParseModelConfig, ReadsGemma3AsTransformers5WritesIt) {
  std::string json =
      Changed(kGemma3, R"("rope_theta":1000000,
  "rope_local_base_freq":10000,"rope_scaling":null)",
              R"("rope_parameters":{"full_attention":{"rope_type":"default","rope_theta":1000000.0},
      "sliding_attention":{"rope_type":"default","rope_theta":10000.0}})");
  json = Changed(
      json, R"("sliding_window_pattern":6)",
      R"("layer_types":["sliding_attention","sliding_attention","sliding_attention","sliding_attention",
      "sliding_attention","full_attention","sliding_attention"])");
  const auto model = ParseModelConfig(json);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(*model, *ParseModelConfig(kGemma3));
  // rope_scaling beside it changes what is said of layers without a window.
  const auto both = ParseModelConfig(Changed(
      json, R"("rope_parameters")", R"("rope_scaling":{"rope_type":"linear","factor":8.0},"rope_parameters")"));
  ASSERT_TRUE(both.ok()) << both.status();
  EXPECT_EQ(both->rope, RopeKind::kLinear);
  EXPECT_EQ(both->rope_factor, 8);
  EXPECT_EQ(both->rope_theta, 1e6);
}

// As on the hub: the text model's numbers lie apart, and most are its class's defaults.
constexpr char kGemma3WithPictures[] =
    R"({"model_type":"gemma3","mm_tokens_per_image":256,"torch_dtype":"bfloat16",
  "vision_config":{"hidden_size":1152,"model_type":"siglip_vision_model","num_hidden_layers":27},
  "text_config":{"hidden_size":2560,"intermediate_size":10240,"model_type":"gemma3_text",
  "num_hidden_layers":34,"rope_scaling":{"factor":8.0,"rope_type":"linear"},"sliding_window":1024}})";

TEST(ParseModelConfig, ReadsTheTextPartOfAGemma3WithPictures) {
  const auto model = ParseModelConfig(kGemma3WithPictures);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_TRUE(model->HasVision());
  EXPECT_EQ(model->vocab_size, 262208);
  EXPECT_EQ(model->heads, 8);
  EXPECT_EQ(model->kv_heads, 4);
  EXPECT_EQ(model->head_dim, 256);
  EXPECT_EQ(model->max_positions, 131072);
  EXPECT_EQ(model->rope_factor, 8);
  EXPECT_EQ(model->RopeTables(), 2);
  EXPECT_EQ(model->TotalParameters(), 3'880'263'168) << "of the 4.3 billion, without what sees pictures";
  // But for its names it is the text model of these numbers.
  auto text = ParseModelConfig(R"({"model_type":"gemma3_text","vocab_size":262208,"hidden_size":2560,
    "intermediate_size":10240,"num_hidden_layers":34,"num_attention_heads":8,"num_key_value_heads":4,
    "head_dim":256,"max_position_embeddings":131072,"rope_scaling":{"factor":8.0,"rope_type":"linear"},
    "sliding_window":1024})");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_FALSE(text->HasVision());
  text->model_type = "gemma3";
  EXPECT_EQ(*model, *text);
  EXPECT_TRUE(ParseModelConfig(R"({"model_type":"gemma3"})").ok())
      << "as transformers does without a text_config";
}

TEST(ParseModelConfig, RefusesWhatNoGemma3WithPicturesIs) {
  const auto why = [](const std::string& from, const std::string& to) {
    return std::string(ParseModelConfig(Changed(kGemma3WithPictures, from, to)).status().message());
  };
  EXPECT_THAT(why(R"("torch_dtype":"bfloat16")", R"("tie_word_embeddings":false)"),
              HasSubstr("tie_word_embeddings"));
  EXPECT_THAT(why(R"("sliding_window":1024)", R"("tie_word_embeddings":false)"),
              HasSubstr("tie_word_embeddings"));
  EXPECT_THAT(why(R"("sliding_window":1024)", R"("final_logit_softcapping":30.0)"),
              HasSubstr("final_logit_softcapping"));
  EXPECT_THAT(why(R"("gemma3_text")", R"("gemma2")"), HasSubstr("text_config.model_type \"gemma2\""));
  EXPECT_THAT(why(R"("torch_dtype":"bfloat16")", R"("quantization_config":{"quant_method":"awq"})"),
              HasSubstr("quantization_config"));
  EXPECT_THAT(why(R"("hidden_size":2560)", R"("hidden_size":-1)"), HasSubstr("hidden_size is -1"));
  EXPECT_THAT(std::string(ParseModelConfig(R"({"model_type":"gemma3","text_config":[]})").status().message()),
              HasSubstr("text_config is no object"));
}

TEST(ParseModelConfig, RefusesWhatNoGemmaIs) {
  const auto why = [](const std::string& json) {
    const auto model = ParseModelConfig(json);
    return model.ok() ? "" : std::string(model.status().message());
  };
  EXPECT_THAT(
      why(Changed(kGemma2, R"("hidden_activation":"gelu_pytorch_tanh")", R"("hidden_activation":"gelu")")),
      HasSubstr("hidden_activation"));
  EXPECT_THAT(why(Changed(kGemma3, R"("rope_scaling":null)", R"("use_bidirectional_attention":true)")),
              HasSubstr("use_bidirectional_attention"));
  EXPECT_THAT(why(Changed(kGemma3, R"("rope_scaling":null)", R"("layer_types":["full_attention"])")),
              HasSubstr("7 layers"));
  EXPECT_THAT(why(Changed(kGemma3, R"("rope_scaling":null)",
                          R"("rope_parameters":{"sliding_attention":{"rope_type":"linear","factor":2.0}})")),
              HasSubstr("sliding_attention"));
  EXPECT_THAT(why(With(R"(,"final_logit_softcapping":30.0)")), HasSubstr("final_logit_softcapping"));
  std::string first = Changed(kBase, "llama", "gemma") + R"(,"hidden_act":"gelu","head_dim":8})";
  EXPECT_EQ(why(first), "");
  EXPECT_THAT(why(Changed(first, R"("gelu")", R"("silu")")), HasSubstr("silu"));
}

TEST(ParseModelConfig, ReadsSmolLM3) {
  std::string json =
      R"({"model_type":"smollm3","vocab_size":128256,"hidden_size":2048,"intermediate_size":11008,
    "num_hidden_layers":6,"num_attention_heads":16,"use_sliding_window":false,"sliding_window":null})";
  const auto model = ParseModelConfig(json);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->kv_heads, 4);
  EXPECT_EQ(model->rope_theta, 2e6);
  EXPECT_EQ(model->max_positions, 32768);
  EXPECT_TRUE(model->tie_word_embeddings);
  EXPECT_EQ(model->turns, (std::vector<bool>{true, true, true, false, true, true}));
  const auto with = [&](const std::string& more) {
    return ParseModelConfig(Changed(json, "}", "," + more + "}"));
  };
  EXPECT_EQ(with(R"("no_rope_layers":[0,1,1,0,1,1,0])")->turns,
            (std::vector<bool>{false, true, true, false, true, true}));
  EXPECT_THAT(std::string(with(R"("no_rope_layers":[0,1])").status().message()), HasSubstr("6 layers"));
  EXPECT_THAT(std::string(with(R"("no_rope_layers":[0,1,2,0,1,1])").status().message()), HasSubstr("has 2"));
  EXPECT_THAT(std::string(with(R"("no_rope_layer_interval":0)").status().message()),
              HasSubstr("no_rope_layer_interval is 0"));
  EXPECT_FALSE(ParseModelConfig(Changed(json, "false", "true")).ok());
}

// What the oracle's fixtures cannot have: files that transformers stumbles over.
TEST(ParseModelConfig, RefusesRopeThatIsNotWhole) {
  const auto why = [](const std::string& rope) {
    const absl::Status status = ParseModelConfig(With(R"(,"rope_scaling":{)" + rope + "}")).status();
    EXPECT_EQ(StatusReason(status), Reason::kModelFileInvalid) << rope;
    return std::string(status.message());
  };
  EXPECT_THAT(why(R"("type":"yarn")"), HasSubstr("rope_scaling.factor is missing"));
  EXPECT_THAT(why(R"("type":"yarn","factor":4,"rope_theta":1)"), HasSubstr("rope_theta is 1; with yarn"));
  EXPECT_THAT(why(R"("type":"yarn","factor":4,"attention_factor":-1)"), HasSubstr("attention_factor is -1"));
  EXPECT_THAT(why(R"("type":"yarn","factor":4,"original_max_position_embeddings":0)"),
              HasSubstr("original_max_position_embeddings is 0, outside 1"));
  const std::string four = "[1,1,1,1]";
  EXPECT_THAT(why(R"("type":"longrope","long_factor":)" + four),
              HasSubstr("short_factor is no list of 4 numbers"));
  EXPECT_THAT(why(R"("type":"longrope","short_factor":[1,1,1],"long_factor":)" + four),
              HasSubstr("short_factor is no list of 4 numbers"));
  EXPECT_THAT(why(R"("type":"longrope","long_factor":[1,0,1,1],"short_factor":)" + four),
              HasSubstr("long_factor has 0"));
  EXPECT_THAT(why(R"("type":"longrope","original_max_position_embeddings":1,"long_factor":)" + four +
                  R"(,"short_factor":)" + four),
              HasSubstr("must be above 1"));
}

// A document's angles follow from its own length, wherever it stands.
TEST(RopeTable, OfLongropeHasRowsForShortAndForLongDocuments) {
  const auto model = ParseModelConfig(With(
      R"(,"rope_scaling":{"type":"longrope","original_max_position_embeddings":16,
         "short_factor":[1,1,1,1],"long_factor":[4,4,4,4],"attention_factor":1.0})"));
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(RopeTableElements(*model, 16), 16 * 8);
  EXPECT_EQ(RopeTableElements(*model, 17), (16 + 17) * 8);
  EXPECT_EQ(RopeFirstRow(*model, 16), 0);
  EXPECT_EQ(RopeFirstRow(*model, 17), 16);
  const auto table = RopeTable(*model, 17);
  ASSERT_EQ(table.size(), 33u * 8);
  const auto sine = [&](int row) { return table[static_cast<size_t>(row * 8 + 1)]; };
  EXPECT_NEAR(sine(15), std::sin(15.0), 1e-6);
  EXPECT_NEAR(sine(16), 0, 0);
  EXPECT_NEAR(sine(16 + 4), std::sin(1.0), 1e-6);
  EXPECT_NEAR(sine(16 + 16), std::sin(4.0), 1e-6);
}

// phi-4 as published, with fewer layers.
constexpr char kPhi4[] = R"({"model_type":"phi3","vocab_size":100352,"hidden_size":5120,
  "intermediate_size":17920,"num_hidden_layers":4,"num_attention_heads":40,"num_key_value_heads":10,
  "hidden_act":"silu","max_position_embeddings":16384,"rope_theta":250000,"rope_scaling":null,
  "attention_bias":false,"attention_dropout":0.0,"embd_pdrop":0.0,"resid_pdrop":0.0,
  "sliding_window":null,"tie_word_embeddings":false,"torch_dtype":"bfloat16"})";

TEST(ParseModelConfig, ReadsAPhi) {
  const auto model = ParseModelConfig(kPhi4);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_TRUE(model->fused);
  EXPECT_EQ(model->head_dim, 128);
  EXPECT_EQ(model->kv_heads, 10);
  EXPECT_EQ(model->rms_norm_eps, 1e-5);  // where the file says nothing
  EXPECT_EQ(model->rope_theta, 250000);
  EXPECT_EQ(model->WindowOf(0), 0);
  EXPECT_EQ(model->LinearParameters(), 4 * (13631488000 / 40));
  const auto long_texts = [](const std::string& type) {
    std::string factors = "[1";
    for (int i = 1; i < 64; ++i) factors += ",1.5";
    return ParseModelConfig(Changed(kPhi4, R"("rope_scaling":null)",
                                    R"("rope_scaling":{"type":")" + type + R"(","short_factor":)" + factors +
                                        R"(],"long_factor":)" + factors + "]}"));
  };
  ASSERT_TRUE(long_texts("longrope").ok()) << long_texts("longrope").status();
  EXPECT_EQ(long_texts("longrope")->rope, RopeKind::kLong);
  // What transformers called it first.
  EXPECT_EQ(*long_texts("su"), *long_texts("longrope"));
  EXPECT_EQ(*long_texts("yarn"), *long_texts("longrope"));
  const auto mini_4k = ParseModelConfig(Changed(kPhi4, R"("sliding_window":null)", R"("sliding_window":2047)"));
  EXPECT_EQ(mini_4k->WindowOf(0), 2047);
  EXPECT_EQ(mini_4k->WindowOf(3), 2047);
  const auto why = [](const std::string& config) {
    return std::string(ParseModelConfig(config).status().message());
  };
  for (const std::string key : {"embd_pdrop", "resid_pdrop"}) {
    EXPECT_THAT(why(Changed(kPhi4, "\"" + key + "\":0.0", "\"" + key + "\":0.1")),
                HasSubstr(key + " other than 0 is not supported"));
  }
  // As Phi-4 mini: three quarters of each head turn.
  const auto part = ParseModelConfig(
      Changed(kPhi4, R"("rope_scaling":null)", R"("rope_scaling":null,"partial_rotary_factor":0.75)"));
  ASSERT_TRUE(part.ok()) << part.status();
  EXPECT_EQ(part->RotaryWidth(), 96);
  EXPECT_THAT(why(Changed(kPhi4, R"("attention_bias":false)", R"("attention_bias":true)")),
              HasSubstr("attention_bias"));
}

TEST(RopeTable, IsTheFormula) {
  ModelConfig model;
  model.head_dim = 8;
  model.rope_theta = 10000;
  const auto table = RopeTable(model, 16);
  ASSERT_EQ(table.size(), 16u * 4 * 2);
  for (int p = 0; p < 16; ++p) {
    for (int i = 0; i < 4; ++i) {
      const double angle = p * std::pow(10000.0, -2.0 * i / 8);
      EXPECT_NEAR(table[(p * 4 + i) * 2], std::cos(angle), 1e-6);
      EXPECT_NEAR(table[(p * 4 + i) * 2 + 1], std::sin(angle), 1e-6);
    }
  }
}

TEST(RopeTable, Llama3StretchesLowFrequenciesOnly) {
  ModelConfig model;
  model.head_dim = 128;
  model.rope_theta = 500000;
  const auto plain = RopeTable(model, 2);
  model.rope = RopeKind::kLlama3;
  model.rope_factor = 8;
  const auto stretched = RopeTable(model, 2);
  const auto angle = [](const std::vector<float>& t, int i) {
    return std::asin(t[(64 + i) * 2 + 1]);
  };
  EXPECT_EQ(stretched[64 * 2 + 1], plain[64 * 2 + 1]);
  EXPECT_NEAR(angle(stretched, 63) / angle(plain, 63), 1.0 / 8, 1e-4);
}

}  // namespace
}  // namespace nibble::spec

#include "engine/data/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "base/status.h"
#include "engine/data/dataset_rows.h"
#include "engine/spec/row_keys.h"
#include "engine/spec/words.h"
#include "engine/text/chat_template.h"

namespace nibble::engine {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

std::string SourceDir() {
  const char* dir = std::getenv("NIBBLE_SOURCE_DIR");
  return dir != nullptr ? dir : ".";
}

class DatasetTest : public ::testing::Test {
 protected:
  // A byte-level tokenizer with ChatML tokens and EOS; with BOS when asked.
  static Tokenizer Make(const std::string& name, const std::string& config) {
    auto text = ReadFile(
        absl::StrCat(SourceDir(), "/engine/testdata/tokenizers/", name, "/tokenizer.json"));
    CHECK_OK(text.status());
    auto tokenizer = Tokenizer::FromJson(*text, config);
    CHECK_OK(tokenizer.status());
    return *tokenizer;
  }
  DatasetTest() { spec_.sequence_len = 512; }

  absl::StatusOr<Dataset> Load(const std::string& content, const Tokenizer& tokenizer) {
    const std::string path = dir_.Join("data.jsonl");
    std::ofstream(path, std::ios::binary) << content;
    return LoadDataset(path, "", tokenizer, spec_);
  }
  absl::StatusOr<Dataset> Load(const std::string& content) { return Load(content, qwen_); }

  static Example Row(const Dataset& data, size_t i) {
    Example example;
    EXPECT_TRUE(data.tokens.Read(data.train.at(i), example).ok());
    return example;
  }

  // The text of the tokens that are learned, each run in brackets, the others outside.
  static std::string Shown(const Example& example, const Tokenizer& tokenizer) {
    std::string out;
    bool inside = false;
    for (size_t i = 0; i < example.ids.size(); ++i) {
      const bool trained = i > 0 && example.labels[i - 1] != kNoLabel;
      if (trained) {
        EXPECT_EQ(example.labels[i - 1], example.ids[i]);
      }
      if (trained != inside) out += trained ? "[" : "]";
      inside = trained;
      out += tokenizer.Decode(std::span(&example.ids[i], 1), false);
    }
    if (inside) out += "]";
    EXPECT_EQ(example.labels.size(), example.ids.size());
    EXPECT_EQ(example.labels.back(), kNoLabel);
    return out;
  }

  TempDir dir_;
  spec::TrainSpec spec_;
  const Tokenizer qwen_ = Make(
      "qwen2", json{{"eos_token", "<|im_end|>"},
                    {"chat_template",
                     "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
                     "{{ '<|im_end|>\n' }}{% endfor %}"
                     "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"}}
                   .dump());
  const Tokenizer llama3_ =
      Make("llama3", R"({"bos_token":"<|begin_of_text|>","eos_token":"<|end_of_text|>"})");
};

TEST_F(DatasetTest, CompletionLearnsTheAnswerAndTheEnd) {
  auto data = Load(
      "{\"prompt\":\"Say "
      "hi.\\n\",\"completion\":\"hi\"}\n\n{\"prompt\":\"p\",\"completion\":\"q\"}");
  ASSERT_TRUE(data.ok()) << data.status();
  ASSERT_EQ(data->train.size(), 2u);
  EXPECT_EQ(Shown(Row(*data, 0), qwen_), "Say hi.\n[hi<|im_end|>]");
  EXPECT_EQ(data->report.format, "completion");
  EXPECT_EQ(data->report.usable_rows, 2);
  EXPECT_EQ(data->report.rows_without_eos, 0);
  data = Load(R"({"prompt":"Say hi.","completion":"hi"})", llama3_);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ(Shown(Row(*data, 0), llama3_), "<|begin_of_text|>Say hi.[hi<|end_of_text|>]");
  spec_.train_on_inputs = true;
  data = Load(R"({"question":"Say hi.","answer":"hi"})", llama3_);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ(Shown(Row(*data, 0), llama3_), "<|begin_of_text|>[Say hi.hi<|end_of_text|>]");
}

// The server lets in what the engine reads, because both go by one list; here every entry is read.
TEST_F(DatasetTest, EveryNameOfPromptAndAnswerIsRead) {
  for (const spec::RowKeys& keys : spec::kRowKeys) {
    if (keys.answer.empty()) continue;
    const json row = {{std::string(keys.first), "Say hi."}, {std::string(keys.answer), "hi"}};
    auto data = Load(row.dump());
    ASSERT_TRUE(data.ok()) << row << data.status();
    EXPECT_EQ(data->report.format, keys.format);
    EXPECT_TRUE(Shown(Row(*data, 0), qwen_).ends_with("[hi<|im_end|>]")) << row;
  }
  auto data = Load(R"({"instruction":"Add.","context":"1 2","response":"3"})");
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_TRUE(Shown(Row(*data, 0), qwen_).ends_with("### Input:\n1 2\n\n### Response:\n[3<|im_end|>]"));
}

TEST_F(DatasetTest, TextLearnsEverything) {
  auto data = Load("[{\"text\":\"once\"},\n {\"text\":\"twice [x] \\\"]\\\"\"}]", llama3_);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ(Shown(Row(*data, 0), llama3_), "<|begin_of_text|>[once<|end_of_text|>]");
  EXPECT_EQ(Shown(Row(*data, 1), llama3_), "<|begin_of_text|>[twice [x] \"]\"<|end_of_text|>]");
  EXPECT_EQ(data->report.format, "text");
}

TEST_F(DatasetTest, SentencePieceTextIsJoinedWithoutExtraSpaces) {
  for (const char* name : {"llama2", "metaspace"}) {
    const Tokenizer tokenizer = Make(name, R"({"bos_token":"<s>","eos_token":"</s>"})");
    auto data = Load(R"({"prompt":"the bridge","completion":" of the river"})", tokenizer);
    ASSERT_TRUE(data.ok()) << data.status();
    EXPECT_EQ(tokenizer.Decode(Row(*data, 0).ids, true), "the bridge of the river");
    EXPECT_EQ(Row(*data, 0).ids.front(), tokenizer.bos_id());
    EXPECT_EQ(Row(*data, 0).ids.back(), tokenizer.eos_id());
  }
}

TEST_F(DatasetTest, AlpacaUsesTheUsualWording) {
  auto data = Load(R"({"instruction":"Add.","input":"1 2","output":"3"})"
                   "\n"
                   R"({"instruction":"Sing.","input":"","output":"la"})");
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ(
      Shown(Row(*data, 0), qwen_),
      "Below is an instruction that describes a task, paired with an input that provides further "
      "context. Write a response that appropriately completes the request.\n\n### "
      "Instruction:\nAdd."
      "\n\n### Input:\n1 2\n\n### Response:\n[3<|im_end|>]");
  EXPECT_THAT(Shown(Row(*data, 1), qwen_), HasSubstr("Sing.\n\n### Response:\n[la<|im_end|>]"));
}

TEST_F(DatasetTest, MessagesLearnAssistantTurnsOnly) {
  const std::string row = R"({"messages":[{"role":"system","content":"Be kind."},
      {"role":"user","content":"hello"},{"role":"assistant","content":"hi"},
      {"role":"user","content":[{"type":"text","text":"bye"}]},
      {"role":"assistant","content":"later","weight":0}]})";
  std::string line = row;
  std::erase(line, '\n');
  auto data = Load(line);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ(Shown(Row(*data, 0), qwen_),
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
            "<|im_start|>assistant\n[hi<|im_end|>]\n<|im_start|>user\nbye<|im_end|>\n"
            "<|im_start|>assistant\nlater<|im_end|>\n");
  spec_.chat_template = "llama3";
  data = Load(R"({"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":" b "}]})",
              llama3_);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ(
      Shown(Row(*data, 0), llama3_),
      "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|><|start_header_id|>"
      "assistant<|end_header_id|>\n\n[b<|eot_id|>]");
  EXPECT_EQ(data->report.format, "sharegpt");
  EXPECT_THAT(data->report.warnings, ElementsAre(HasSubstr("<|start_header_id|>")));
}

TEST_F(DatasetTest, ASystemTextBesideTheTurnsIsTheFirstOfThem) {
  const std::string expected =
      "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\na<|im_end|>\n"
      "<|im_start|>assistant\n[b<|im_end|>]\n";
  const std::string turns = R"([{"role":"user","content":"a"},{"role":"assistant","content":"b"}])";
  const std::string with_system = R"([{"role":"system","content":"Be kind."},{"role":"user","content":"a"},)"
                                  R"({"role":"assistant","content":"b"}])";
  for (const std::string& row :
       {absl::StrCat(R"({"system":"Be kind.","messages":)", turns, "}"),
        absl::StrCat(R"({"system":"","messages":)", with_system, "}"),
        absl::StrCat(R"({"system":"Be kind.","messages":)", with_system, "}"),
        std::string(R"({"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}],)"
                    R"("system":"Be kind."})")}) {
    const auto data = Load(row);
    ASSERT_TRUE(data.ok()) << data.status();
    EXPECT_EQ(Shown(Row(*data, 0), qwen_), expected) << row;
  }
  const auto two = Load(absl::StrCat(R"({"system":"Be brief.","messages":)", with_system, "}"));
  EXPECT_EQ(StatusReason(two.status()), Reason::kDatasetSchemaMismatch);
  EXPECT_EQ(StatusViolations(two.status()).at(0).field, "rows[0].messages[0].role");
}

// Left out, the model would learn to answer another question than the row's.
TEST_F(DatasetTest, WhatHasNoPlaceInTheTextIsRefusedUnlessItIsEmpty) {
  const std::string turns = R"("messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b")";
  const auto data = Load(absl::StrCat(
      R"({"tools":[{"name":"f"}],)", turns, "}]}\n",
      R"({"functions":"[{}]",)", turns, "}]}\n",
      R"({"images":["a.png"],)", turns, "}]}\n",
      "{", turns, R"(,"tool_calls":[{"id":"1"}]}]})", "\n",
      "{", turns, R"(,"function_call":{"name":"f"}}]})", "\n",
      "{", turns, R"(,"reasoning_content":"hm"}]})", "\n",
      "{", turns, R"(,"thinking":"hm"}]})", "\n",
      R"({"tools":[],"functions":"[]",)", turns, R"(,"tool_calls":null,"function_call":{},"thinking":""}]})", "\n"));
  EXPECT_EQ(StatusReason(data.status()), Reason::kDatasetSchemaMismatch);
  std::vector<std::string> fields;
  for (const FieldViolation& v : StatusViolations(data.status())) fields.push_back(v.field);
  EXPECT_THAT(fields, ElementsAre("rows[0].tools", "rows[1].functions", "rows[2].images",
                                  "rows[3].messages[1].tool_calls", "rows[4].messages[1].function_call",
                                  "rows[5].messages[1].reasoning_content", "rows[6].messages[1].thinking"));
  const auto alpaca = Load(R"({"instruction":"Sing.","output":"la","history":[]})"
                           "\n"
                           R"({"instruction":"Sing.","output":"la","history":[["a","b"]]})");
  ASSERT_EQ(StatusViolations(alpaca.status()).size(), 1u) << alpaca.status();
  EXPECT_EQ(StatusViolations(alpaca.status())[0].field, "rows[1].history");
}

// What a recipe may name is what there is.
TEST_F(DatasetTest, EveryTemplateOfTheListIsKnown) {
  for (const std::string_view name : spec::kChatTemplateNames) {
    const auto chat = ChatTemplate::Select(name, qwen_);
    const std::string why = chat.ok() ? "" : std::string(chat.status().message());
    EXPECT_THAT(why, Not(HasSubstr("is none of"))) << name;
  }
}

TEST_F(DatasetTest, TemplatesThatAreNotRecognisedAreRefused) {
  const std::string row =
      R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]})";
  auto data = Load(row, llama3_);
  EXPECT_EQ(StatusReason(data.status()), Reason::kChatTemplateInvalid);
  EXPECT_THAT(std::string(data.status().message()), HasSubstr("chat_template: chatml"));
  EXPECT_THAT(std::string(data.status().message()),
              HasSubstr("chat_template wants the template of the model's tokenizer, which has none; "));
  spec_.chat_template = "klingon";
  EXPECT_EQ(StatusReason(Load(row).status()), Reason::kChatTemplateInvalid);
  spec_.chat_template = "tokenizer_default";
  const Tokenizer broken = Make("qwen2", R"({"chat_template":"{% include 'x' %}"})");
  data = Load(row, broken);
  EXPECT_EQ(StatusReason(data.status()), Reason::kChatTemplateInvalid);
  EXPECT_THAT(std::string(data.status().message()), HasSubstr("'include' is not supported"));
  // What the template refuses is a fault of the row.
  const Tokenizer strict =
      Make("qwen2", R"({"chat_template":"{{ raise_exception('user first') }}"})");
  data = Load(R"({"messages":[{"role":"assistant","content":"b"}]})", strict);
  EXPECT_EQ(StatusReason(data.status()), Reason::kDatasetSchemaMismatch);
  EXPECT_EQ(StatusViolations(data.status()).at(0).field, "rows[0].messages");
  EXPECT_THAT(std::string(data.status().message()), HasSubstr("user first"));
}

TEST_F(DatasetTest, TheModelsOwnTemplateIsRun) {
  // A default system prompt; answers are stripped; all but the last answer lose their reasoning.
  const std::string source =
      "{%- if messages and messages[0].role != 'system' %}"
      "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
      "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}"
      "{%- if m.role == 'assistant' and not loop.last %}{{- m.content.split('</t>')[-1] | trim }}"
      "{%- else %}{{- m.content | trim }}{%- endif %}{{- '<|im_end|>\n' }}{%- endfor %}"
      "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}";
  const Tokenizer own =
      Make("qwen2", json{{"eos_token", "<|im_end|>"}, {"chat_template", source}}.dump());
  auto data = Load(
      R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"<t>w</t> b "},)"
      R"({"role":"user","content":"c"},{"role":"assistant","content":"<t>x</t> d"}]})",
      own);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ(Shown(Row(*data, 0), own),
            "<|im_start|>system\nBe "
            "kind.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
            "[b<|im_end|>]\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n[<t>x</t> "
            "d<|im_end|>]\n");
}

// Phi-3's ends of turns take the white space behind them, which stands in the next piece: the tokens
// are those of the whole text.
TEST_F(DatasetTest, ATokenTakesTheSpaceThatBeginsTheNextPiece) {
  auto file = ReadFile(absl::StrCat(SourceDir(), "/engine/testdata/tokenizers/qwen2/tokenizer.json"));
  ASSERT_TRUE(file.ok()) << file.status();
  json changed = json::parse(*file);
  for (json& token : changed["added_tokens"]) {
    if (token["content"] == "<|im_start|>" || token["content"] == "<|im_end|>") token["rstrip"] = true;
  }
  const auto tokenizer = Tokenizer::FromJson(changed.dump(), R"({"eos_token":"<|im_end|>"})");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  spec_.chat_template = "chatml";
  const auto data = Load(R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},)"
                         R"({"role":"user","content":"c"},{"role":"assistant","content":"d"}]})",
                         *tokenizer);
  ASSERT_TRUE(data.ok()) << data.status();
  const Example row = Row(*data, 0);
  const std::string whole =
      "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
      "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>\n";
  EXPECT_EQ(row.ids, tokenizer->Encode(whole, false));
  EXPECT_EQ(Shown(row, *tokenizer),
            "<|im_start|>user\na<|im_end|><|im_start|>assistant\n[b<|im_end|>]"
            "<|im_start|>user\nc<|im_end|><|im_start|>assistant\n[d<|im_end|>]");
  EXPECT_EQ(tokenizer->Behind(*tokenizer->TokenId("<|im_end|>"), " \n\xC2\xA0x "), "x ");
  EXPECT_EQ(tokenizer->Behind(*tokenizer->TokenId("<|endoftext|>"), " x"), " x");
}

// Gemma's: BOS once, the end of the turn learned, the line break behind it not; by name and by a template
// of the model's own, which writes BOS too.
TEST_F(DatasetTest, GemmaTurnsBeginWithOneBosAndEndWithTheirToken) {
  const std::string own =
      "{{ bos_token }}{% for m in messages %}{% set who = 'model' if m.role == 'assistant' else m.role %}"
      "{{ '<start_of_turn>' + who + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";
  const std::string row =
      R"({"messages":[{"role":"user","content":"the bridge\n"},{"role":"assistant","content":" of  the river"}]})";
  for (const char* name : {"gemma", "gemma3"}) {
    const Tokenizer tokenizer = Make(
        name, json{{"bos_token", "<bos>"}, {"eos_token", "<eos>"}, {"chat_template", own}}.dump());
    for (const char* chosen : {"gemma", "tokenizer_default"}) {
      spec_.chat_template = chosen;
      auto data = Load(row, tokenizer);
      ASSERT_TRUE(data.ok()) << data.status();
      EXPECT_EQ(Shown(Row(*data, 0), tokenizer),
                "<bos><start_of_turn>user\nthe bridge<end_of_turn>\n<start_of_turn>model\n"
                "[of  the river<end_of_turn>]\n");
      EXPECT_THAT(data->report.warnings, ElementsAre());
      EXPECT_EQ(data->report.rows_without_eos, 0);
      EXPECT_EQ(ChatTemplate::Select(chosen, tokenizer)->EndOfTurn(), tokenizer.TokenId("<end_of_turn>"));
    }
    auto data = Load(R"({"prompt":"the bridge","completion":" of the river"})", tokenizer);
    ASSERT_TRUE(data.ok()) << data.status();
    EXPECT_EQ(Shown(Row(*data, 0), tokenizer), "<bos>the bridge[ of the river<eos>]");
  }
  // Without a user's turn there is no place for what the system says; it is not left out.
  spec_.chat_template = "gemma";
  const auto system = Load(R"({"messages":[{"role":"system","content":"Be kind."},)"
                           R"({"role":"assistant","content":"the river"}]})",
                           Make("gemma", R"({"bos_token":"<bos>","eos_token":"<eos>"})"));
  EXPECT_EQ(StatusReason(system.status()), Reason::kDatasetSchemaMismatch);
  EXPECT_THAT(std::string(system.status().message()),
              HasSubstr("(gemma) has a place for a system message only"));
  // ChatML's markers are spelled out here: no token ends a turn.
  const Tokenizer plain = Make("gemma", R"({"eos_token":"<eos>"})");
  EXPECT_EQ(ChatTemplate::Select("chatml", plain)->EndOfTurn(), std::nullopt);
  for (const std::string_view name : spec::kChatTemplateNames) {
    if (name == "tokenizer_default") continue;
    EXPECT_TRUE(ChatTemplate::Select(name, plain).ok()) << "the spec lets it in: " << name;
  }
}

TEST_F(DatasetTest, EveryBadRowIsNamed) {
  const auto data =
      Load(R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}
not json
{"messages":[]}
{"messages":[{"role":"pope","content":"a"}]}
{"messages":[{"role":"user"}]}
["messages"]
{"messages":[{"role":"user","content":"a"},{"role":"system","content":"b"}]}
{"messages":[{"role":"user","content":[{"type":"image"}]}]}
{"messages":[{"role":"assistant","content":"a","weight":2}]}
)"
           "{\"messages\":\"\xFF\"}\n");
  EXPECT_EQ(StatusReason(data.status()), Reason::kDatasetSchemaMismatch);
  std::vector<std::string> fields;
  for (const FieldViolation& v : StatusViolations(data.status())) fields.push_back(v.field);
  EXPECT_THAT(fields, ElementsAre("rows[1]", "rows[2].messages", "rows[3].messages[0].role",
                                  "rows[4].messages[0].content", "rows[5]",
                                  "rows[6].messages[1].role", "rows[7].messages[0].content[0]",
                                  "rows[8].messages[0].weight", "rows[9]"));
  EXPECT_EQ(StatusMetadata(data.status())["bad_rows"], "9");
  EXPECT_THAT(std::string(data.status().message()), Not(HasSubstr("recipe")));
  // A number of many digits takes another way through the reader, which must be no deeper.
  constexpr size_t kLevels = 500'000;
  const std::string deep = "{\"text\":\"a\",\"n\":" + std::string(40, '9') + ",\"m\":" +
                           std::string(kLevels, '[') + std::string(kLevels, ']') + "}\n";
  EXPECT_EQ(StatusReason(Load(deep).status()), Reason::kDatasetSchemaMismatch);
  std::string many = "{\"text\":\"a\"}\n";
  for (int i = 0; i < 250; ++i) many += "{}\n";
  const auto status = Load(many).status();
  EXPECT_EQ(StatusViolations(status).size(), 100u);
  EXPECT_EQ(StatusMetadata(status)["bad_rows"], "250");
}

// A data set of before the server looked at this itself.
TEST_F(DatasetTest, WhereNoRowIsWhatTheRecipeSaysThatIsSaid) {
  spec_.format = "sharegpt";
  const auto data = Load(R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]})");
  EXPECT_EQ(StatusReason(data.status()), Reason::kDatasetSchemaMismatch);
  EXPECT_THAT(std::string(data.status().message()),
              HasSubstr("; the recipe calls them sharegpt (datasets[0].type), auto goes by what they are"));
}

TEST_F(DatasetTest, BadFiles) {
  const auto reason = [&](const std::string& content) {
    return StatusReason(Load(content).status());
  };
  EXPECT_EQ(reason(""), Reason::kDatasetEmpty);
  EXPECT_EQ(reason("\xEF\xBB\xBF \n\n"), Reason::kDatasetEmpty);
  EXPECT_EQ(reason("[]"), Reason::kDatasetEmpty);
  for (const char* broken : {R"([{"text":"a"})", R"([{"text":"a"}] x)", R"([,{"text":"a"}])",
                             R"([{"text":"a"},])", R"([{"text":"a"},,{"text":"b"}])"}) {
    EXPECT_EQ(reason(broken), Reason::kDatasetSchemaMismatch) << broken;
  }
  EXPECT_EQ(reason(R"({"text":"a","x":)" + std::string(40, '[') + std::string(40, ']') + "}"),
            Reason::kDatasetSchemaMismatch);
  EXPECT_EQ(reason("{\"foo\":1}"), Reason::kDatasetSchemaMismatch);
  EXPECT_EQ(reason(R"({"text":""})"), Reason::kNoSupervisedTokens);
  EXPECT_EQ(StatusReason(LoadDataset(dir_.Join("none"), "", qwen_, spec_).status()),
            Reason::kDatasetNotFound);
  // A line without end is refused once it is too long; what follows is not read.
  const auto status = Load("{\"text\":\"a\"}\n{\"text\":\"" + std::string(5 << 20, 'x')).status();
  EXPECT_EQ(StatusReason(status), Reason::kRequestTooLarge);
  EXPECT_EQ(StatusViolations(status).at(0).field, "rows[1]");
  // Numbers no machine type holds are still JSON.
  for (const char* number : {"123456789012345678901234567890", "18446744073709551616", "-9223372036854775809",
                             "-123456789012345678901234567890", "18446744073709551615"}) {
    EXPECT_TRUE(Load(absl::StrCat(R"({"id":)", number, R"(,"text":"a"})")).ok()) << number;
    EXPECT_EQ(reason(absl::StrCat(R"({"id":)", number, R"(,"text":"a"x})")), Reason::kDatasetSchemaMismatch)
        << number;
  }
}

TEST_F(DatasetTest, LongRowsAreDroppedOrCutAndCounted) {
  std::string content, words;
  for (int i = 0; i < 200; ++i) absl::StrAppend(&words, " ", i);
  for (int i = 0; i < 4; ++i) {
    const std::string word = i % 2 == 0 ? "short" : words;
    content += json{{"prompt", "p"}, {"completion", word}}.dump() + "\n";
  }
  spec_.sequence_len = 100;
  auto data = Load(content);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ(data->train.size(), 2u);
  ASSERT_EQ(data->report.rejected.size(), 1u);
  EXPECT_EQ(data->report.rejected[0].reason, "too_long");
  EXPECT_THAT(data->report.rejected[0].first_rows, ElementsAre(1, 3));
  EXPECT_EQ(data->report.duplicate_rows, 1);
  spec_.excess_length = spec::ExcessLength::kTruncate;
  data = Load(content);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ(data->train.size(), 4u);
  EXPECT_EQ(Row(*data, 1).ids.size(), 100u);
  EXPECT_EQ(Row(*data, 1).labels.back(), kNoLabel);
  EXPECT_EQ(data->report.truncated_rows, 2);
  EXPECT_GT(data->report.truncated_tokens, 0);
  EXPECT_EQ(data->report.rows_without_eos, 2);
  // Cut before the answer begins, nothing is left to learn.
  const auto status = Load(json{{"prompt", words}, {"completion", "a"}}.dump()).status();
  EXPECT_EQ(StatusReason(status), Reason::kNoSupervisedTokens);
  EXPECT_THAT(std::string(status.message()), HasSubstr("1 nothing to learn"));
}

TEST_F(DatasetTest, TheSplitIsKeyedAndReported) {
  std::string content;
  for (int i = 0; i < 300; ++i) content += json{{"text", absl::StrCat("row ", i)}}.dump() + "\n";
  auto data = Load(content);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ(data->eval.size(), 15u);
  EXPECT_EQ(data->report.train_rows, 285);
  auto again = Load(content);
  EXPECT_EQ(data->eval, again->eval);
  EXPECT_EQ(data->train, again->train);
  spec_.seed = 7;
  EXPECT_NE(Load(content)->eval, data->eval);
  spec_.val_set_size = 0;
  EXPECT_EQ(Load(content)->train.size(), 300u);
  EXPECT_GT(data->report.steps_unpacked, data->report.steps_packed);
  EXPECT_EQ(data->report.steps_unpacked, 72);  // 285 rows, 4 a step
  const json report = json::parse(DataReportToJson(data->report));
  EXPECT_EQ(report["samples"].size(), 3u);
  EXPECT_EQ(report["samples"][0]["pieces"][1]["trained"], true);
  EXPECT_EQ(report["eval_rows"], 15);
  EXPECT_LT(DataReportToShortJson(data->report).size(), 8192u);
  EXPECT_THAT(DataReportToText(data->report), HasSubstr("300 rows of format text"));
}

TEST_F(DatasetTest, TokensTheModelLacksAreRefused) {
  const std::string path = dir_.Join("data.jsonl");
  std::ofstream(path) << R"({"text":"hello"})";
  const auto status = LoadDataset(path, "", qwen_, spec_, {.model_vocab = 2}).status();
  EXPECT_EQ(StatusReason(status), Reason::kTokenizerUnsupported);
  EXPECT_THAT(std::string(status.message()), HasSubstr("2 tokens only"));
}

// Damaged files end in a report of rows or an error, never anything else.
TEST_F(DatasetTest, MutatedFilesNeverBreakTheReader) {
  std::string good =
      R"([{"messages":[{"role":"user","content":"a\u00e9\n"},{"role":"assistant","content":"b"}]},
{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"yy","weight":1}]}])";
  Random random(9);
  int accepted = 0;
  for (int round = 0; round < 400; ++round) {
    std::string bytes = good;
    for (uint64_t edits = 1 + random.Below(3); edits > 0; --edits) {
      const size_t at = random.Below(bytes.size());
      switch (random.Below(3)) {
        case 0:
          bytes[at] = static_cast<char>(random.Below(256));
          break;
        case 1:
          bytes.erase(at, 1 + random.Below(5));
          break;
        default:
          bytes.insert(at, 1, "[]{},:\"\\\n0"[random.Below(10)]);
          break;
      }
    }
    const auto data = Load(bytes);
    accepted += data.ok();
    if (!data.ok()) {
      EXPECT_NE(StatusReason(data.status()), Reason::kUnspecified) << data.status();
    }
  }
  EXPECT_GT(accepted, 0);
}

TEST_F(DatasetTest, ValidateWritesAReportOrAnError) {
  for (const char* file : {"tokenizer.json", "tokenizer_config.json", "config.json"}) {
    auto bytes = ReadFile(absl::StrCat(SourceDir(), "/demo/base/", file));
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    CHECK_OK(WriteFileAtomic(dir_.Join(file), *bytes));
  }
  std::ofstream(dir_.Join("spec.json")) << spec::TrainSpecToJson(spec_);
  std::ofstream(dir_.Join("good.jsonl")) << R"({"prompt":"a","completion":"b"})";
  std::ofstream(dir_.Join("bad.jsonl")) << "{";
  ValidateOptions options{dir_.path(), dir_.Join("good.jsonl"), "", dir_.Join("spec.json"),
                          dir_.Join("out")};
  ASSERT_TRUE(RunValidate(options).ok());
  EXPECT_EQ(json::parse(*ReadFile(options.out_path))["usable_rows"], 1);
  options.dataset = dir_.Join("bad.jsonl");
  EXPECT_EQ(StatusReason(RunValidate(options)), Reason::kDatasetSchemaMismatch);
  const json error = json::parse(*ReadFile(options.out_path))["error"];
  EXPECT_EQ(error["reason"], "DATASET_SCHEMA_MISMATCH");
  EXPECT_EQ(error["violations"][0]["field"], "rows[0]");
}

TEST_F(DatasetTest, CollectedDataSets) {
  const char* root = std::getenv("NIBBLE_TEST_DATA");
  if (root == nullptr)
    GTEST_SKIP() << "NIBBLE_TEST_DATA names no folder with the collected data sets";
  const auto tokenizer = Tokenizer::Load(absl::StrCat(root, "/tokenizers/llama-2"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  spec_.chat_template = "llama2";
  const std::pair<const char*, int64_t> sets[] = {{"wikisql-mlx/train.jsonl", 1000},
                                                  {"gsm8k/train.jsonl", 7473},
                                                  {"alpaca-demo/alpaca_en_demo.jsonl", 999}};
  for (const auto& [name, rows] : sets) {
    const auto data =
        LoadDataset(absl::StrCat(root, "/datasets/", name), "", *tokenizer, spec_, {.model_vocab = 32000});
    ASSERT_TRUE(data.ok()) << name << ": " << data.status();
    EXPECT_EQ(data->report.rows, rows);
    EXPECT_GT(data->report.usable_rows, rows * 9 / 10);
  }
  const auto chats =
      LoadDataset(absl::StrCat(root, "/datasets/sharegpt-dummy/dummy_conversation.json"), "",
                  *tokenizer, spec_, {.model_vocab = 32000});
  ASSERT_TRUE(chats.ok()) << chats.status();
  EXPECT_EQ(chats->report.format, "sharegpt");
}

}  // namespace
}  // namespace nibble::engine

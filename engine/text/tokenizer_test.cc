#include "engine/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "base/status.h"
#include "engine/text/tokenizer_bpe.h"

namespace nibble::engine {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Ids = std::vector<int32_t>;

std::string SourceDir() {
  const char* dir = std::getenv("NIBBLE_SOURCE_DIR");
  return dir != nullptr ? dir : ".";
}

// Every line of a cases file; returns how many there were.
int CheckCases(const Tokenizer& tokenizer, const std::string& path) {
  std::ifstream file(path);
  std::string line;
  int cases = 0;
  while (std::getline(file, line)) {
    const json expected = json::parse(line);
    const auto text = expected["text"].get<std::string>();
    const Ids ids = tokenizer.Encode(text, false);
    const Ids full = tokenizer.Encode(text, true);
    EXPECT_EQ(ids, expected["ids"].get<Ids>()) << path << ": " << line;
    if (expected.contains("ids_with_special")) {
      EXPECT_EQ(full, expected["ids_with_special"].get<Ids>()) << path << ": " << line;
    }
    if (expected.contains("decoded")) {
      EXPECT_EQ(tokenizer.Decode(ids, false), expected["decoded"].get<std::string>()) << path;
      EXPECT_EQ(tokenizer.Decode(full, true), expected["decoded_plain"].get<std::string>()) << path;
    }
    ++cases;
  }
  return cases;
}

class CommittedFixture : public ::testing::TestWithParam<const char*> {};

TEST_P(CommittedFixture, IdsEqualTheReferenceLibrary) {
  const std::string folder = absl::StrCat(SourceDir(), "/engine/testdata/tokenizers/", GetParam());
  std::string from = folder;
  // The demo's tokenizer lies elsewhere and is made anew with its base.
  if (const auto digest = ReadFile(JoinPath(folder, "made_from.sha256")); digest.ok()) {
    from = absl::StrCat(SourceDir(), "/demo/base");
    ASSERT_EQ(*Sha256HexOfFile(JoinPath(from, "tokenizer.json")) + "\n", *digest)
        << "demo/base/tokenizer.json is newer than its cases: run "
           "tests/oracle/make_tokenizer_fixtures.py --committed";
  }
  const auto tokenizer = Tokenizer::Load(from);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_GE(CheckCases(*tokenizer, JoinPath(folder, "cases.jsonl")), 50);
}

INSTANTIATE_TEST_SUITE_P(All, CommittedFixture,
                         ::testing::Values("deepseek", "demo-base", "digits", "gemma", "gemma3", "gpt2",
                                           "gpt4o", "llama2", "llama3", "metaspace", "qwen2", "tekken"));

TEST(RealTokenizers, EveryCollectedCase) {
  const char* root = std::getenv("NIBBLE_TEST_DATA");
  if (root == nullptr)
    GTEST_SKIP() << "NIBBLE_TEST_DATA names no folder with the collected tokenizers";
  int cases = 0;
  for (const char* name :
       {"tokenizers/deepseek-coder", "tokenizers/gpt-2", "tokenizers/llama-2", "tokenizers/llama-3",
        "tokenizers/starcoder", "models/babyllama-105", "models/stories260K"}) {
    const std::string folder = absl::StrCat(root, "/", name);
    const auto tokenizer = Tokenizer::Load(folder);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    for (const char* file : {"cases.jsonl", "sentencepiece-cases.jsonl"}) {
      cases += CheckCases(*tokenizer, JoinPath(folder, file));
    }
  }
  EXPECT_EQ(cases, 5 * 47 + 500 + 150 + 300);
}

// A byte-level tokenizer: the 256 bytes, and merges of a, b and c.
json ByteLevelJson() {
  json vocab = json::object();
  for (int b = 0; b < 256; ++b) {
    const char32_t c = tokenizer::ByteAlphabet()[b];
    std::string text;
    if (c < 0x80) {
      text += static_cast<char>(c);
    } else {
      text += static_cast<char>(0xC0 | (c >> 6));
      text += static_cast<char>(0x80 | (c & 0x3F));
    }
    vocab[text] = b;
  }
  vocab["ab"] = 256;
  vocab["abc"] = 257;
  vocab["bc"] = 258;
  return {{"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"a b", "b c", "ab c"}}}},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
          {"decoder", {{"type", "ByteLevel"}}},
          {"added_tokens",
           {{{"id", 259}, {"content", "<|end|>"}, {"special", true}, {"normalized", false}}}}};
}

TEST(Tokenizer, MergesByRankAndDecodesAnyBytes) {
  const auto tokenizer = Tokenizer::FromJson(ByteLevelJson().dump(), R"({"eos_token":"<|end|>"})");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(tokenizer->Encode("abcbc<|end|>", true), ElementsAre(257, 258, 259));
  EXPECT_EQ(tokenizer->Decode(Ids{257, 258, 259}, false), "abcbc<|end|>");
  EXPECT_EQ(tokenizer->Decode(Ids{257, 258, 259}, true), "abcbc");
  EXPECT_EQ(tokenizer->Decode(Ids{0xE4, -1, 9999}, true), "\xEF\xBF\xBD");
  EXPECT_EQ(tokenizer->vocab_size(), 260);
  EXPECT_EQ(tokenizer->eos_id(), 259);
  EXPECT_EQ(tokenizer->bos_id(), std::nullopt);
  EXPECT_EQ(tokenizer->TokenId("abc"), 257);
  EXPECT_EQ(tokenizer->TokenId("abcd"), std::nullopt);
  EXPECT_TRUE(tokenizer->IsSpecial(259));
  // Not UTF-8: one replacement character per ill-formed part, as Python has it.
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode("a\xFF\xE4\xB8z", false), false),
            "a\xEF\xBF\xBD\xEF\xBF\xBDz");
}

TEST(Tokenizer, LongPiecesMergeLikeShortOnes) {
  json file = ByteLevelJson();
  file["pre_tokenizer"]["use_regex"] = false;
  const auto tokenizer = Tokenizer::FromJson(file.dump(), "");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  Random random(3);
  for (int round = 0; round < 50; ++round) {
    // No merge crosses a space, so the parts of the long text are its parts alone.
    std::string text;
    Ids parts;
    while (text.size() < 400) {
      std::string part;
      for (uint64_t i = random.Below(20); i > 0; --i) part += "abc"[random.Below(3)];
      part += ' ';
      text += part;
      const Ids ids = tokenizer->Encode(part, false);
      parts.insert(parts.end(), ids.begin(), ids.end());
    }
    EXPECT_EQ(tokenizer->Encode(text, false), parts);
  }
  const std::string run(1 << 20, 'a');
  EXPECT_EQ(tokenizer->Encode(run, false).size(), run.size());
}

TEST(Tokenizer, WhatIsUnknownIsRefusedByName) {
  const auto refused = [](const std::function<void(json&)>& edit) {
    json file = ByteLevelJson();
    edit(file);
    const auto status = Tokenizer::FromJson(file.dump(), "").status();
    EXPECT_EQ(StatusReason(status), Reason::kTokenizerUnsupported) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(refused([](json& f) { f["model"].erase("merges"); }), HasSubstr("without merges"));
  EXPECT_THAT(refused([](json& f) {
                f["post_processor"] = {{"type", "TemplateProcessing"},
                                       {"single", {{{"SpecialToken", {{"id", "<s>"}}}}}}};
              }),
              HasSubstr("neither sequence nor special token"));
  EXPECT_THAT(refused([](json& f) { f["model"]["type"] = "Unigram"; }), HasSubstr("'Unigram'"));
  EXPECT_THAT(refused([](json& f) { f.erase("model"); }), HasSubstr("model is missing"));
  EXPECT_THAT(refused([](json& f) { f["model"]["merges"] = {"a"}; }), HasSubstr("model.merges[0]"));
  EXPECT_THAT(refused([](json& f) { f["model"]["merges"] = {"a c"}; }),
              HasSubstr("lacks the result"));
  EXPECT_THAT(refused([](json& f) { f["model"]["vocab"]["x x"] = 7; }), HasSubstr("id 7 twice"));
  EXPECT_THAT(refused([](json& f) { f["model"]["vocab"]["xx"] = 1'000'000; }), HasSubstr("below"));
  EXPECT_THAT(refused([](json& f) { f["model"]["dropout"] = 0.1; }), HasSubstr("model.dropout"));
  EXPECT_THAT(refused([](json& f) { f["model"]["end_of_word_suffix"] = "</w>"; }),
              HasSubstr("end_of_word_suffix"));
  EXPECT_THAT(refused([](json& f) { f["model"]["byte_fallback"] = "yes"; }),
              HasSubstr("true or false"));
  EXPECT_THAT(refused([](json& f) {
                f["normalizer"] = {{"type", "Precompiled"}};
              }),
              HasSubstr("'Precompiled'"));
  EXPECT_THAT(refused([](json& f) {
                f["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "(a+)+$"}}}};
              }),
              HasSubstr("(a+)+$"));
  EXPECT_THAT(refused([](json& f) {
                f["decoder"] = {{"type", "WordPiece"}};
              }),
              HasSubstr("decoder"));
  EXPECT_THAT(refused([](json& f) {
                f["post_processor"] = {{"type", "BertProcessing"}};
              }),
              HasSubstr("post_processor"));
  EXPECT_THAT(refused([](json& f) { f["added_tokens"][0]["id"] = 5; }), HasSubstr("disagree"));
  EXPECT_THAT(refused([](json& f) { f["added_tokens"][0]["content"] = std::string(5000, 'x'); }),
              HasSubstr("5000 bytes"));
  EXPECT_THAT(refused([](json& f) {
                json deep = 1;
                for (int i = 0; i < 20; ++i) deep = json::array({deep});
                f["x"] = deep;
              }),
              HasSubstr("deeper than 16"));
  const TempDir empty;
  EXPECT_THAT(std::string(Tokenizer::Load(empty.path()).status().message()),
              HasSubstr("tokenizer.json is missing"));
  const absl::Status nowhere = Tokenizer::Load(empty.Join("nope")).status();
  EXPECT_EQ(StatusReason(nowhere), Reason::kBaseModelNotFound);
  EXPECT_THAT(std::string(nowhere.message()), HasSubstr("nope: no such directory"));
  EXPECT_EQ(StatusReason(Tokenizer::FromJson("{", "").status()), Reason::kTokenizerUnsupported);
  EXPECT_EQ(StatusReason(Tokenizer::FromJson(ByteLevelJson().dump(), "[").status()),
            Reason::kTokenizerUnsupported);
}

// A damaged file is refused or works; whatever works encodes every text to ids that exist.
TEST(Tokenizer, MutatedFilesNeverBreakTheLoader) {
  auto read = ReadFile(SourceDir() + "/engine/testdata/tokenizers/metaspace/tokenizer.json");
  ASSERT_TRUE(read.ok()) << read.status();
  Random random(5);
  int accepted = 0;
  for (int round = 0; round < 300; ++round) {
    std::string bytes = *read;
    for (uint64_t edits = 1 + random.Below(4); edits > 0; --edits) {
      // Half of the edits go to the small front part, where the components are.
      const size_t range = random.Chance(0.5) ? 1500 : bytes.size();
      const size_t at = random.Below(std::min(range, bytes.size()));
      switch (random.Below(3)) {
        case 0:
          bytes[at] = static_cast<char>(random.Below(256));
          break;
        case 1:
          bytes.erase(at, 1 + random.Below(8));
          break;
        default:
          bytes.insert(at, 1, "0123456789[]{},:\"_tf"[random.Below(20)]);
          break;
      }
    }
    const auto tokenizer = Tokenizer::FromJson(bytes, "");
    if (!tokenizer.ok()) {
      EXPECT_EQ(StatusReason(tokenizer.status()), Reason::kTokenizerUnsupported);
      continue;
    }
    ++accepted;
    for (const int32_t id :
         tokenizer->Encode("Hello w\xC3\xB6rld <s> 123\n \xF0\x9F\x98\x80", true)) {
      EXPECT_GE(id, 0);
      EXPECT_LT(id, tokenizer->vocab_size());
    }
  }
  EXPECT_GT(accepted, 0);
}

TEST(Tokenizer, SpecialIdsFromTheConfigs) {
  TempDir dir;
  CHECK_OK(WriteFileAtomic(dir.Join("tokenizer.json"), ByteLevelJson().dump()));
  CHECK_OK(
      WriteFileAtomic(dir.Join("config.json"), R"({"eos_token_id":[259,3],"bos_token_id":4})"));
  auto tokenizer = Tokenizer::Load(dir.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(tokenizer->eos_id(), 259);
  EXPECT_EQ(tokenizer->bos_id(), 4);
  // A number larger than any integer type stands in published files.
  CHECK_OK(WriteFileAtomic(dir.Join("tokenizer_config.json"),
                           R"({"eos_token":{"content":"abc"},"pad_token":"<|end|>",
                               "model_max_length":1000000000000000019884624838656,
                               "chat_template":[{"name":"default","template":"T"}]})"));
  tokenizer = Tokenizer::Load(dir.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(tokenizer->eos_id(), 257);
  EXPECT_EQ(tokenizer->pad_id(), 259);
  EXPECT_EQ(tokenizer->chat_template(), "T");
}

}  // namespace
}  // namespace nibble::engine

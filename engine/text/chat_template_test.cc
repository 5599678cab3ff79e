#include "engine/text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"

namespace nibble::engine {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A byte-level tokenizer with <|im_start|>, <|im_end|> and EOS, and a model's own template.
Tokenizer WithTemplate(const std::string& source, const std::string& eos = "<|im_end|>") {
  const char* root = std::getenv("NIBBLE_SOURCE_DIR");
  const auto text =
      ReadFile(absl::StrCat(root ? root : ".", "/engine/testdata/tokenizers/qwen2/tokenizer.json"));
  CHECK_OK(text.status());
  auto tokenizer = Tokenizer::FromJson(*text, json{{"eos_token", eos}, {"chat_template", source}}.dump());
  CHECK_OK(tokenizer.status());
  return *tokenizer;
}

ChatTemplate Own(const Tokenizer& tokenizer) {
  auto chat = ChatTemplate::Select("tokenizer_default", tokenizer);
  CHECK_OK(chat.status());
  return *chat;
}

std::vector<std::string> Learned(const ChatTemplate& chat, std::span<const ChatTurn> turns) {
  const auto pieces = chat.Render(turns, /*generation_prompt=*/false);
  EXPECT_TRUE(pieces.ok()) << pieces.status();
  std::vector<std::string> learned;
  if (!pieces.ok()) return learned;
  for (const TextPiece& piece : *pieces) {
    if (piece.trained) learned.push_back(piece.text);
  }
  return learned;
}

std::string Whole(const ChatTemplate& chat, std::span<const ChatTurn> turns, bool prompt) {
  const auto pieces = chat.Render(turns, prompt);
  CHECK_OK(pieces.status());
  std::string text;
  for (const TextPiece& piece : *pieces) text += piece.text;
  return text;
}

const ChatTurn kFour[] = {
    {"user", "a", false}, {"assistant", "b", true}, {"user", "c", false}, {"assistant", "d", true}};

TEST(ChatTemplate, PhiFormsAreTheModelsOwn) {
  const ChatTurn turns[] = {{"system", "s", false}, kFour[0], kFour[1], kFour[2], kFour[3]};
  // Microsoft's, with the tokens that this tokenizer has.
  const std::pair<const char*, const char*> forms[] = {
      {"phi_3", "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
                "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"},
      {"phi_4",
       "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}"
       "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"}};
  for (const auto& [name, source] : forms) {
    const Tokenizer tokenizer = WithTemplate(source);
    const auto built_in = ChatTemplate::Select(name, tokenizer);
    ASSERT_TRUE(built_in.ok()) << built_in.status();
    const ChatTemplate own = Own(tokenizer);
    for (const bool prompt : {false, true})
      EXPECT_EQ(Whole(*built_in, turns, prompt), Whole(own, turns, prompt)) << name;
    const std::string end = std::string_view(name) == "phi_3" ? "<|end|>" : "<|im_end|>";
    EXPECT_THAT(Learned(*built_in, turns), ElementsAre("b" + end, "d" + end));
    EXPECT_THAT(built_in->unknown_tokens(), ::testing::Contains(end == "<|end|>" ? end : "<|im_sep|>"));
  }
}

// Phi-3's own template writes EOS behind the whole; what users say before it is not learned.
TEST(ChatTemplate, ATokenBehindTheLastTurnEndsNoOther) {
  const Tokenizer tokenizer = WithTemplate(
      "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
      "<|endoftext|>");
  const ChatTemplate chat = Own(tokenizer);
  EXPECT_THAT(Learned(chat, kFour), ElementsAre("b<|im_end|>", "d<|im_end|>\n<|endoftext|>"));
  EXPECT_EQ(chat.EndOfTurn(), tokenizer.TokenId("<|im_end|>")) << "it ends a turn, EOS the conversation";
}

// Of models that think first a prompt begins to think, and what was answered before shows no thoughts.
TEST(ChatTemplate, APromptThatBeginsToThinkHidesNoAnswer) {
  const std::string thinking =
      "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
      "{{ m.content.split('</t>')[-1].lstrip('\n') if m.role == 'assistant' else m.content }}"
      "{{ '<|im_end|>\n' }}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<t>\n' }}{% endif %}";
  const ChatTemplate chat = Own(WithTemplate(thinking));
  EXPECT_THAT(Learned(chat, kFour), ElementsAre("b<|im_end|>", "d<|im_end|>"));
  // Words that begin and end as the stand-ins do; with thoughts; none at all.
  const ChatTurn turns[] = {{"user", "Z2Z", false}, {"assistant", "Zed, A", true},
                            {"user", "b", false},   {"assistant", "<t>\nA1A</t>\nAh, Z\n", true},
                            {"user", "c", false},   {"assistant", "", true}};
  EXPECT_THAT(Learned(chat, turns), ElementsAre("Zed, A<|im_end|>", "Ah, Z\n<|im_end|>", "<|im_end|>"));
}

// Command R7B's writes the next prompt whether it is asked for or not; nobody is to learn saying that.
TEST(ChatTemplate, APromptBehindTheLastAnswerIsNotLearned) {
  const Tokenizer tokenizer = WithTemplate(
      "{% for m in messages %}{{ '<|im_start|>' + m.role + ':' }}"
      "{% if m.role == 'assistant' %}{{ '(say)' + m.content + '<|im_end|>' }}"
      "{% else %}{{ m.content }}{% endif %}"
      "{{ '<|endoftext|>\n' }}{% endfor %}{{ '<|im_start|>assistant:(think)' }}",
      "<|endoftext|>");
  const ChatTemplate chat = Own(tokenizer);
  EXPECT_THAT(Learned(chat, kFour), ElementsAre("b<|im_end|>", "d<|im_end|>"));
  const ChatTurn turns[] = {{"user", "is a > b|>", false}, {"assistant", "yes, a > b|>", true}};
  EXPECT_THAT(Learned(chat, turns), ElementsAre("yes, a > b|><|im_end|>"));
  EXPECT_EQ(chat.EndOfTurn(), tokenizer.TokenId("<|im_end|>"));
}

// Mistral's newer templates write the system's words into the last user's turn, wherever that is.
TEST(ChatTemplate, WordsThatMoveWithTheLastTurnHideNoAnswer) {
  const ChatTemplate chat = Own(WithTemplate(
      "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
      "{% set rest = messages[1:] %}"
      "{% else %}{% set rest = messages %}{% endif %}{% set last = namespace(user=0) %}"
      "{% for m in rest %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
      "{% for m in rest %}{% if m.role == 'user' %}{{ '[INST]' }}"
      "{% if loop.index0 == last.user and system is defined %}{{ system + '\n\n' }}{% endif %}"
      "{{ m.content + '[/INST]' }}{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"));
  const ChatTurn turns[] = {{"system", "s", false}, kFour[0], kFour[1], kFour[2], kFour[3]};
  EXPECT_THAT(Learned(chat, turns), ElementsAre("b<|im_end|>", "d<|im_end|>"));
  const auto pieces = chat.Render(turns, false);
  ASSERT_TRUE(pieces.ok());
  EXPECT_EQ(pieces->at(2).text, "[INST]s\n\nc[/INST]");
}

// Where no token ends a turn, and the answer stands apart from its prompt, it ends with its words.
TEST(ChatTemplate, WithoutATokenThatEndsATurnItEndsWithItsWords) {
  const ChatTemplate chat =
      Own(WithTemplate("{% for m in messages %}{{ '[' + m.role + ']' }}"
                       "{% if m.role == 'assistant' and not loop.last %}{{ '(earlier)' }}{% endif %}"
                       "{{ m.content }}{% endfor %}"
                       "{% if add_generation_prompt %}{{ '[assistant](now)' }}{% endif %}"));
  EXPECT_THAT(Learned(chat, kFour), ElementsAre("b", "d"));
  EXPECT_EQ(chat.EndOfTurn(), std::nullopt);
}

// A template that refuses the conversation without the turn's own words says so itself.
TEST(ChatTemplate, WhatItRefusesIsSaid) {
  const ChatTemplate chat = Own(WithTemplate(
      "{% for m in messages %}{% if m.role == 'assistant' and m.content != 'b' %}"
      "{{ raise_exception('only b') }}{% endif %}"
      "{{ m.content }}{% endfor %}{% if add_generation_prompt %}{{ '>' }}{% endif %}"));
  EXPECT_THAT(std::string(chat.Render(std::span(kFour).first(2), false).status().message()),
              HasSubstr("only b"));
}

// There is no clock: a job repeated on another day reads the same.
TEST(ChatTemplate, TheDayIsAlwaysTheSame) {
  const ChatTemplate chat =
      Own(WithTemplate("{{ strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' }}"
                       "{{ messages[0].content }}"));
  EXPECT_EQ(chat.Render(std::span(kFour).first(1), false)->at(0).text, "26 Jul 2024a");
}

}  // namespace
}  // namespace nibble::engine

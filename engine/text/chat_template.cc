#include "engine/text/chat_template.h"

#include <algorithm>
#include <array>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "engine/text/jinja_eval.h"
#include "engine/text/jinja_parse.h"
#include "engine/text/text.h"

namespace nibble::engine {

// The built-in forms. {bos} and {eos} stand for the tokenizer's own.
struct ChatTemplateTable {
  struct Row {
    std::string_view name;
    std::string_view start;
    ChatTemplate::Frame system, user, assistant;
    bool system_in_user = false;
    bool trim = false;
    std::vector<std::string_view> markers;
  };

  static const std::vector<Row>& Rows() {
    static const std::vector<Row> rows = {
        {"chatml",
         "",
         {"<|im_start|>system\n", "<|im_end|>", "\n"},
         {"<|im_start|>user\n", "<|im_end|>", "\n"},
         {"<|im_start|>assistant\n", "<|im_end|>", "\n"},
         false,
         false,
         {"<|im_start|>", "<|im_end|>"}},
        {"llama3",
         "{bos}",
         {"<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>", ""},
         {"<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>", ""},
         {"<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>", ""},
         false,
         true,
         {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}},
        {"llama2",
         "",
         {"<<SYS>>\n", "\n<</SYS>>\n\n", ""},
         {"{bos}[INST] ", " [/INST]", ""},
         {" ", " {eos}", ""},
         true,
         true,
         {}},
        {"mistral",
         "{bos}",
         {"", "\n\n", ""},
         {"[INST] ", " [/INST]", ""},
         {" ", "{eos}", ""},
         true,
         true,
         {}},
        {"gemma",
         "{bos}",
         {"", "\n\n", ""},
         {"<start_of_turn>user\n", "<end_of_turn>", "\n"},
         {"<start_of_turn>model\n", "<end_of_turn>", "\n"},
         true,
         true,
         {"<start_of_turn>", "<end_of_turn>"}},
        {"phi_3",
         "",
         {"<|system|>\n", "<|end|>", "\n"},
         {"<|user|>\n", "<|end|>", "\n"},
         {"<|assistant|>\n", "<|end|>", "\n"},
         false,
         false,
         {"<|system|>", "<|user|>", "<|assistant|>", "<|end|>"}},
        {"phi_4",
         "",
         {"<|im_start|>system<|im_sep|>", "<|im_end|>", ""},
         {"<|im_start|>user<|im_sep|>", "<|im_end|>", ""},
         {"<|im_start|>assistant<|im_sep|>", "<|im_end|>", ""},
         false,
         false,
         {"<|im_start|>", "<|im_sep|>", "<|im_end|>"}},
        {"zephyr",
         "",
         {"<|system|>\n", "{eos}", "\n"},
         {"<|user|>\n", "{eos}", "\n"},
         {"<|assistant|>\n", "{eos}", "\n"},
         false,
         false,
         {}},
    };
    return rows;
  }

  static ChatTemplate Make(const Row& row, const Tokenizer& tokenizer) {
    const auto content = [&](std::optional<int32_t> id) {
      return id ? std::string(tokenizer.TokenContent(*id)) : std::string();
    };
    const std::string bos = content(tokenizer.bos_id()), eos = content(tokenizer.eos_id());
    const auto fill = [&](std::string_view text) {
      std::string out(text);
      for (const auto& [mark, token] :
           {std::pair<std::string_view, const std::string&>{"{bos}", bos}, {"{eos}", eos}}) {
        if (const size_t at = out.find(mark); at != std::string::npos)
          out.replace(at, mark.size(), token);
      }
      return out;
    };
    const auto frame = [&](const ChatTemplate::Frame& f) {
      return ChatTemplate::Frame{fill(f.before), fill(f.end), fill(f.after)};
    };
    ChatTemplate made(tokenizer);
    made.name_ = std::string(row.name);
    made.start_ = fill(row.start);
    made.system_ = frame(row.system);
    made.user_ = frame(row.user);
    made.assistant_ = frame(row.assistant);
    made.system_in_user_ = row.system_in_user;
    made.trim_ = row.trim;
    for (const std::string_view marker : row.markers) {
      if (!tokenizer.TokenId(marker)) made.unknown_tokens_.emplace_back(marker);
    }
    return made;
  }
};

namespace {

absl::Status Invalid(std::string_view what) {
  return Error::Field(Reason::kChatTemplateInvalid, "data.chat_template",
                      absl::StrCat(View(what),
                                   "; `chat_template: chatml` works with any tokenizer, and "
                                   "data as prompt and completion or text needs none"));
}

const ChatTemplateTable::Row* FindRow(std::string_view name) {
  for (const auto& row : ChatTemplateTable::Rows()) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

constexpr size_t kMaxSpecialTokenBytes = 64;

std::string_view StripRight(std::string_view text) {
  const absl::string_view stripped = absl::StripTrailingAsciiWhitespace(View(text));
  return {stripped.data(), stripped.size()};
}

}  // namespace

absl::StatusOr<ChatTemplate> ChatTemplate::Select(std::string_view name,
                                                  const Tokenizer& tokenizer) {
  if (name != "tokenizer_default") {
    const auto* row = FindRow(name);
    if (row != nullptr) return ChatTemplateTable::Make(*row, tokenizer);
    std::string known = "tokenizer_default";
    for (const auto& form : ChatTemplateTable::Rows()) absl::StrAppend(&known, ", ", View(form.name));
    return Invalid(absl::StrCat(Quote(name), " is none of ", known));
  }
  const std::string& text = tokenizer.chat_template();
  if (text.empty()) return Invalid("wants the template of the model's tokenizer, which has none");
  auto program = jinja::Parse(text);
  if (!program.ok()) return Invalid(absl::StrCat("cannot be used: ", program.status().message()));
  ChatTemplate made(tokenizer);
  made.name_ = "tokenizer_default";
  made.program_ = std::move(*program);
  return made;
}

absl::StatusOr<std::string> ChatTemplate::RenderText(std::span<const ChatTurn> turns,
                                                     bool generation_prompt) const {
  using jinja::Value;
  jinja::List messages;
  for (const ChatTurn& turn : turns) {
    messages.push_back(
        Value::Of(jinja::Dict{{Value("role"), Value(turn.role)}, {Value("content"), Value(turn.content)}}));
  }
  const auto token = [&](std::optional<int32_t> id) {
    return Value(id ? std::string(tokenizer_.TokenContent(*id)) : std::string());
  };
  return jinja::Render(*program_, {{"messages", Value::Of(std::move(messages))},
                                   {"add_generation_prompt", Value(generation_prompt)},
                                   {"bos_token", token(tokenizer_.bos_id())},
                                   {"eos_token", token(tokenizer_.eos_id())},
                                   {"pad_token", token(tokenizer_.pad_id())},
                                   {"tools", Value(jinja::None{})},
                                   {"documents", Value(jinja::None{})}});
}

std::string ChatTemplate::ClosingToken(std::string_view text) const {
  text = StripRight(text);
  for (size_t length = std::min(kMaxSpecialTokenBytes, text.size()); length > 0; --length) {
    const std::string_view tail = text.substr(text.size() - length);
    const auto id = tokenizer_.TokenId(tail);
    if (id && tokenizer_.IsSpecial(*id)) return std::string(tail);
  }
  return "";
}

std::string_view ChatTemplate::OpeningToken(std::string_view text) const {
  size_t begin = 0;
  while (begin < text.size() && absl::ascii_isspace(static_cast<unsigned char>(text[begin]))) ++begin;
  for (size_t length = std::min(kMaxSpecialTokenBytes, text.size() - begin); length > 0; --length) {
    const auto id = tokenizer_.TokenId(text.substr(begin, length));
    if (id && tokenizer_.IsSpecial(*id)) return text.substr(0, begin + length);
  }
  return {};
}

std::optional<int32_t> ChatTemplate::EndOfTurn() const {
  const std::string answer = "1b1";
  const ChatTurn turns[] = {{"user", "a", false}, {"assistant", answer, true}};
  const auto pieces = Render(turns, /*generation_prompt=*/false);
  if (!pieces.ok()) return std::nullopt;
  std::string_view said;
  for (const TextPiece& piece : *pieces) {
    if (piece.trained) said = piece.text;
  }
  // The first behind the words: another may end the conversation.
  const size_t words = said.rfind(answer);
  if (words != std::string_view::npos) {
    const std::string_view first = OpeningToken(said.substr(words + answer.size()));
    if (!first.empty()) said = first;
  }
  return tokenizer_.TokenId(ClosingToken(said));
}

absl::StatusOr<ChatTemplate::Span> ChatTemplate::LocateWords(std::span<const ChatTurn> turns, size_t index,
                                                             std::string_view text) const {
  Span span{text.size(), 0};
  std::vector<ChatTurn> others(turns.begin(), turns.end());
  // Two, as one may begin or end with the same letter.
  for (const char* words : {"A1A", "Z2Z"}) {
    others[index].content = words;
    ASSIGN_OR_RETURN(const std::string other, RenderText(others, false));
    const auto [begin, ignored] = std::mismatch(text.begin(), text.end(), other.begin(), other.end());
    const auto [end, unused] = std::mismatch(text.rbegin(), text.rend(), other.rbegin(), other.rend());
    span.begin = std::min(span.begin, static_cast<size_t>(begin - text.begin()));
    span.end = std::max(span.end, text.size() - static_cast<size_t>(end - text.rbegin()));
  }
  span.end = std::max(span.begin, span.end);
  return span;
}

size_t ChatTemplate::PromptBehind(std::string_view text, size_t words_end, std::string_view prompt) const {
  const auto [differs, ignored] = std::mismatch(text.rbegin(), text.rend(), prompt.rbegin(), prompt.rend());
  size_t begin = std::max(words_end, text.size() - static_cast<size_t>(differs - text.rbegin()));
  const auto is_token_at = [&](size_t at) {
    const bool space = absl::ascii_isspace(static_cast<unsigned char>(text[at]));
    return !space && !OpeningToken(text.substr(at)).empty();
  };
  while (begin < text.size() && !is_token_at(begin)) ++begin;
  if (begin >= text.size() || words_end > begin) return text.size();
  return OpeningToken(text.substr(words_end, begin - words_end)).empty() ? text.size() : begin;
}

absl::StatusOr<ChatTemplate::Span> ChatTemplate::Locate(std::span<const ChatTurn> turns,
                                                        size_t index, std::string_view text) const {
  const bool assistant = turns[index].role == "assistant";
  Span span;
  // A turn begins where a prompt for it would end. Some templates cannot render no turns at all.
  const auto before = RenderText(turns.first(index), assistant);
  std::optional<Span> words;
  if (before.ok() && text.starts_with(*before)) {
    span.begin = before->size();
  } else if (index > 0 || assistant) {
    // A prompt that begins with reasoning, which later is left out; or what follows changes what was before.
    ASSIGN_OR_RETURN(words, LocateWords(turns, index, text));
    span.begin = words->begin;
  }
  auto through = RenderText(turns.first(index + 1), false);
  // Some write a token behind the last turn (Phi-3's EOS), which is not there where another follows.
  if (through.ok() && !text.starts_with(*through)) {
    const std::string last = ClosingToken(*through);
    const std::string_view rest(through->data(), StripRight(*through).size() - last.size());
    if (!last.empty() && rest.size() > span.begin && text.starts_with(rest)) through = std::string(rest);
  }
  if (through.ok() && before.ok() && words) through->resize(PromptBehind(*through, words->end, *before));
  if (through.ok() && text.starts_with(*through) && through->size() >= span.begin) {
    span.end = through->size();
  } else {
    // What follows changes how this turn is rendered (reasoning that is left out, for example): it ends with
    // the token behind its words.
    if (!words) {
      ASSIGN_OR_RETURN(words, LocateWords(turns, index, text));
    }
    span.end = words->end + OpeningToken(text.substr(words->end)).size();
  }
  // White space behind the closing token is never said by the model.
  const std::string_view said = text.substr(span.begin, span.end - span.begin);
  if (!ClosingToken(said).empty()) span.end = span.begin + StripRight(said).size();
  return span;
}

absl::StatusOr<std::vector<TextPiece>> ChatTemplate::Render(std::span<const ChatTurn> turns,
                                                            bool generation_prompt) const {
  if (program_ == nullptr) {
    for (size_t i = 0; system_in_user_ && i < turns.size(); ++i) {
      if (turns[i].role != "system" || (i + 1 < turns.size() && turns[i + 1].role == "user")) continue;
      return Error::Field(Reason::kChatTemplateInvalid, "data.chat_template",
                          absl::StrCat("(", name_, ") has a place for a system message only in the user's "
                                       "turn behind it, and there is none; "
                                       "`chat_template: chatml` has one"));
    }
    return RenderFrames(turns, generation_prompt);
  }
  ASSIGN_OR_RETURN(const std::string text, RenderText(turns, generation_prompt));
  std::vector<TextPiece> pieces;
  size_t done = 0;
  const auto put = [&](size_t end, bool trained) {
    if (end > done) pieces.push_back({text.substr(done, end - done), trained});
    done = std::max(done, end);
  };
  for (size_t i = 0; i < turns.size(); ++i) {
    if (!turns[i].trained) continue;
    ASSIGN_OR_RETURN(const Span span, Locate(turns, i, text));
    put(span.begin, false);
    put(span.end, true);
  }
  put(text.size(), false);
  return pieces;
}

std::vector<TextPiece> ChatTemplate::RenderFrames(std::span<const ChatTurn> turns,
                                                  bool generation_prompt) const {
  std::vector<TextPiece> pieces;
  const auto put = [&](std::string_view text, bool trained) {
    if (text.empty()) return;
    if (!pieces.empty() && pieces.back().trained == trained) {
      pieces.back().text.append(text);
    } else {
      pieces.push_back({std::string(text), trained});
    }
  };
  const auto content = [&](const std::string& text) {
    return trim_ ? std::string(absl::StripAsciiWhitespace(text)) : text;
  };
  put(start_, false);
  std::string held_system;  // waits for the user turn it stands in
  for (const ChatTurn& turn : turns) {
    const Frame& frame = turn.role == "assistant" ? assistant_
                         : turn.role == "user"    ? user_
                                                  : system_;
    if (turn.role == "system" && system_in_user_) {
      held_system = absl::StrCat(system_.before, content(turn.content), system_.end);
      continue;
    }
    put(frame.before, false);
    if (turn.role == "user") put(std::exchange(held_system, ""), false);
    put(content(turn.content), turn.trained);
    put(frame.end, turn.trained);
    put(frame.after, false);
  }
  if (generation_prompt) put(assistant_.before, false);
  return pieces;
}

}  // namespace nibble::engine

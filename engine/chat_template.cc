#include "engine/chat_template.h"

#include <algorithm>
#include <array>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "engine/text.h"

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
    ChatTemplate made;
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

  static void SetSystem(ChatTemplate& made, std::string_view preamble,
                        std::string_view default_text) {
    made.system_preamble_ = std::string(preamble);
    made.default_system_ = std::string(default_text);
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

// The literal default system prompt of a ChatML template: what stands between these marks in a
// string of the template, where a line feed is written as backslash n. Empty when there is none.
std::string DefaultSystemOf(std::string_view text) {
  constexpr std::string_view kOpen = "<|im_start|>system\\n";
  for (size_t at = text.find(kOpen); at != std::string_view::npos; at = text.find(kOpen, at + 1)) {
    const std::string_view rest = text.substr(at + kOpen.size());
    const size_t end = rest.find_first_of("'\"{<");
    if (end != 0 && end != std::string_view::npos && rest.substr(end).starts_with("<|im_end|>")) {
      return std::string(rest.substr(0, end));
    }
  }
  return "";
}

// Constructs that make a template more than frames around contents.
std::string_view Surprise(std::string_view text) {
  for (const std::string_view word :
       {"<think>", "reasoning_content", "strftime_now", "date_string"}) {
    if (text.find(word) != std::string_view::npos) return word;
  }
  return "";
}

}  // namespace

absl::StatusOr<ChatTemplate> ChatTemplate::Select(std::string_view name,
                                                  const Tokenizer& tokenizer) {
  if (name != "tokenizer_default") {
    const auto* row = FindRow(name);
    if (row != nullptr) return ChatTemplateTable::Make(*row, tokenizer);
    return Invalid(absl::StrCat(Quote(name),
                                " is none of tokenizer_default, chatml, llama3, llama2, "
                                "mistral, gemma, zephyr"));
  }
  const std::string& text = tokenizer.chat_template();
  if (text.empty()) return Invalid("the model's tokenizer has no chat template");
  if (const std::string_view word = Surprise(text); !word.empty()) {
    return Invalid(absl::StrCat("the model's own chat template uses ", Quote(word),
                                ", which Nibble does not carry out"));
  }
  const auto has = [&](std::string_view part) { return text.find(part) != std::string::npos; };
  if (has("<|im_start|>") && has("<|im_end|>")) {
    ChatTemplate made = ChatTemplateTable::Make(*FindRow("chatml"), tokenizer);
    ChatTemplateTable::SetSystem(made, "", DefaultSystemOf(text));
    return made;
  }
  if (has("<|start_header_id|>") && has("<|eot_id|>") && !has("Cutting Knowledge Date")) {
    return ChatTemplateTable::Make(*FindRow("llama3"), tokenizer);
  }
  if (has("<start_of_turn>") && has("<end_of_turn>")) {
    return ChatTemplateTable::Make(*FindRow("gemma"), tokenizer);
  }
  if (has("<|user|>") && has("<|assistant|>") && has("eos_token") && !has("<|end|>")) {
    return ChatTemplateTable::Make(*FindRow("zephyr"), tokenizer);
  }
  return Invalid("the model's own chat template is none of the forms Nibble recognises");
}

std::vector<TextPiece> ChatTemplate::Render(std::span<const ChatTurn> turns,
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
  const bool has_system = !turns.empty() && turns.front().role == "system";
  if (!has_system && (!default_system_.empty() || !system_preamble_.empty())) {
    put(absl::StrCat(system_.before, system_preamble_, default_system_, system_.end, system_.after),
        false);
  }
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
    if (turn.role == "system") put(system_preamble_, false);
    put(content(turn.content), turn.trained);
    put(frame.end, turn.trained);
    put(frame.after, false);
  }
  if (generation_prompt) put(assistant_.before, false);
  return pieces;
}

}  // namespace nibble::engine

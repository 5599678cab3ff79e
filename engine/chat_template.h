// Chat templates: turns of a conversation to the text a model was, or will be, trained on.
//
// Named templates are built in. `tokenizer_default` is the model's own: its template text is not
// executed but recognised, by the well-known form it has; a template we do not recognise is refused
// (CHAT_TEMPLATE_INVALID) rather than guessed at.
//
// Immutable; thread-safe.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/tokenizer.h"

namespace nibble::engine {

struct ChatTurn {
  std::string role;  // system, user, assistant
  std::string content;
  bool trained = false;  // the loss counts its content and its end
};

// A stretch of text; whether its tokens are learned.
struct TextPiece {
  std::string text;
  bool trained = false;
};

class ChatTemplate {
 public:
  // `name`: tokenizer_default, chatml, llama3, llama2, mistral, gemma, zephyr.
  static absl::StatusOr<ChatTemplate> Select(std::string_view name, const Tokenizer& tokenizer);

  // The whole conversation; special tokens, BOS too, are written out, so the pieces are encoded
  // without adding any. generation_prompt: ends where the assistant would begin to speak.
  std::vector<TextPiece> Render(std::span<const ChatTurn> turns, bool generation_prompt) const;

  // The built-in form it came down to, e.g. "chatml".
  const std::string& name() const { return name_; }
  // Marker tokens of the template that the tokenizer does not have as tokens; they will be spelled
  // out.
  const std::vector<std::string>& unknown_tokens() const { return unknown_tokens_; }

 private:
  // What stands around the content of one role.
  struct Frame {
    std::string before;
    std::string end;  // learned with the content: how the model stops
    std::string after;
  };
  friend struct ChatTemplateTable;

  std::string name_;
  std::string start_;            // of the conversation
  std::string default_system_;   // when the conversation has none
  std::string system_preamble_;  // always in front of the system's content
  Frame system_;
  Frame user_;
  Frame assistant_;
  bool system_in_user_ = false;  // the system's frame stands inside the first user turn
  bool trim_ = false;            // contents are stripped of spaces
  std::vector<std::string> unknown_tokens_;
};

}  // namespace nibble::engine

// Chat templates: turns of a conversation to the text a model was, or will be, trained on.
//
// Named templates are built in. `tokenizer_default` is the model's own, from its tokenizer files,
// run by a bounded interpreter (jinja_eval.h); what that does not understand is refused
// (CHAT_TEMPLATE_INVALID).
//
// Immutable; thread-safe.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/tokenizer.h"

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

namespace jinja {
struct Node;
}

class ChatTemplate {
 public:
  // `name`: tokenizer_default, chatml, llama3, llama2, mistral, gemma, phi_3, phi_4, zephyr.
  static absl::StatusOr<ChatTemplate> Select(std::string_view name, const Tokenizer& tokenizer);

  // The whole conversation; special tokens, BOS too, are written out, so the pieces are encoded
  // without adding any. generation_prompt: ends where the assistant would begin to speak. The
  // model's own template may refuse a conversation, e.g. because its roles do not alternate.
  absl::StatusOr<std::vector<TextPiece>> Render(std::span<const ChatTurn> turns,
                                                bool generation_prompt) const;

  // The special token that ends what the assistant says, if one does; a model trained with this template
  // stops with it, whatever its own EOS is.
  std::optional<int32_t> EndOfTurn() const;

  const std::string& name() const { return name_; }
  // Marker tokens of a built-in template that the tokenizer does not have as tokens; they will be
  // spelled out.
  const std::vector<std::string>& unknown_tokens() const { return unknown_tokens_; }

 private:
  // What stands around the content of one role.
  struct Frame {
    std::string before;
    std::string end;  // learned with the content: how the model stops
    std::string after;
  };
  friend struct ChatTemplateTable;

  explicit ChatTemplate(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  std::vector<TextPiece> RenderFrames(std::span<const ChatTurn> turns,
                                      bool generation_prompt) const;
  absl::StatusOr<std::string> RenderText(std::span<const ChatTurn> turns,
                                         bool generation_prompt) const;
  // Where turn `index` stands in `text`, the rendered whole.
  struct Span {
    size_t begin = 0;
    size_t end = 0;
  };
  absl::StatusOr<Span> Locate(std::span<const ChatTurn> turns, size_t index,
                              std::string_view text) const;
  // Of its words alone: what changes when the turn says something else.
  absl::StatusOr<Span> LocateWords(std::span<const ChatTurn> turns, size_t index,
                                   std::string_view text) const;
  // Where a prompt that nobody asked for begins behind words that end at `words_end` (Command R7B's template
  // always writes one); the text's end when there is none. `prompt` is the text that ends with one.
  size_t PromptBehind(std::string_view text, size_t words_end, std::string_view prompt) const;
  // The special token at the end of the text, white space aside; empty when it ends with none.
  std::string ClosingToken(std::string_view text) const;
  // The one that the text begins with, white space aside, with that white space; empty when there is none.
  std::string_view OpeningToken(std::string_view text) const;

  Tokenizer tokenizer_;
  std::string name_;
  std::shared_ptr<const jinja::Node> program_;  // the model's own; null for the built-in ones
  std::string start_;                           // of the conversation
  Frame system_;
  Frame user_;
  Frame assistant_;
  bool system_in_user_ = false;  // the system's frame stands inside the first user turn
  bool trim_ = false;            // contents are stripped of spaces
  std::vector<std::string> unknown_tokens_;
};

}  // namespace nibble::engine

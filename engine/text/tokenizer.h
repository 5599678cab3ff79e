// Text to token ids and back, as the model's own tokenizer.json says.
//
// Load reads tokenizer.json (BPE, byte-level or with byte fallback) and, when it is there,
// tokenizer_config.json (special tokens, chat template). Every component is one of a fixed list
// written here by hand; a regular expression in the file is recognised by its text, never executed;
// anything unknown is refused by name (TOKENIZER_UNSUPPORTED). Ids equal those of the Hugging Face
// library.
//
// Immutable after Load and safe to use from any thread. Copies share one body.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace nibble::engine {

namespace tokenizer {
struct Pipeline;
}

class Tokenizer {
 public:
  // Reads tokenizer.json, tokenizer_config.json and chat_template.jinja of a model directory; the
  // last two may be missing.
  static absl::StatusOr<Tokenizer> Load(const std::string& directory);
  // `config_json` and `chat_template` may be empty.
  static absl::StatusOr<Tokenizer> FromJson(std::string_view tokenizer_json,
                                            std::string_view config_json,
                                            std::string_view chat_template = "");

  // Special tokens written out in `text` become their ids. add_special: also what the
  // post-processor adds (usually BOS). Bytes that are not UTF-8 count as U+FFFD. continues: the
  // text goes on where other text ended, so no space is put in front of it as tokenizers like Llama
  // 2's do at the start.
  std::vector<int32_t> Encode(std::string_view text, bool add_special,
                              bool continues = false) const;
  // Text that is encoded apart from what stands before it, whose last token is `last`: without the
  // white space in front where that token takes it ("rstrip" in the file, as of Phi-3's ends of turns).
  std::string_view Behind(int32_t last, std::string_view text) const;
  // The ids Encode(text, true) puts in front of the text.
  const std::vector<int32_t>& prefix() const;
  // Ids outside the vocabulary decode to nothing. skip_special leaves special tokens out.
  // Byte-level text that ends inside a character, or is no UTF-8 at all, shows U+FFFD there.
  std::string Decode(std::span<const int32_t> ids, bool skip_special) const;

  // From tokenizer_config.json or special_tokens_map.json; bos also from the post-processor.
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  std::optional<int32_t> pad_id() const;
  // Largest id + 1, added tokens included.
  int32_t vocab_size() const;
  // The id whose content is exactly this token.
  std::optional<int32_t> TokenId(std::string_view content) const;
  // The content of a token as the file has it; empty for an unknown id.
  std::string_view TokenContent(int32_t id) const;
  bool IsSpecial(int32_t id) const;
  // The chat template's text, as tokenizer_config.json or chat_template.jinja has it; may be empty.
  const std::string& chat_template() const;
  // SHA-256 over all the bytes it was made of: the name under which token counts may be cached.
  const std::string& digest() const;

 private:
  explicit Tokenizer(std::shared_ptr<const tokenizer::Pipeline> pipeline);
  std::shared_ptr<const tokenizer::Pipeline> pipeline_;
};

}  // namespace nibble::engine

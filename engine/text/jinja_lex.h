// A chat template cut into text and the tokens of its tags, white space controlled.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace nibble::engine::jinja {

struct Token {
  enum class Type {
    kText,
    kOutputBegin,
    kOutputEnd,
    kTagBegin,
    kTagEnd,
    kName,
    kString,
    kInteger,
    kFloat,
    kOperator,
    kEnd
  };
  Type type = Type::kEnd;
  std::string text;
  int line = 1;
};

absl::StatusOr<std::vector<Token>> Lex(std::string_view source);

// CHAT_TEMPLATE_INVALID, naming the line.
absl::Status TemplateError(int line, std::string_view what);

}  // namespace nibble::engine::jinja

// What the chat template language does with texts: Python's methods, and what filters share with them.
//
// Pure; thread-safe. Texts are valid UTF-8, and no result is longer than kMaxTextBytes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/text/jinja_eval.h"
#include "engine/text/jinja_value.h"

namespace nibble::engine::jinja {

// Without the given characters, or Python's white space when they are null, on the sides asked for.
std::string Strip(std::string_view text, const std::string* characters, bool left, bool right);
std::string Lower(std::string_view text);
std::string Upper(std::string_view text);
std::string Capitalize(std::string_view text);
std::string Title(std::string_view text);
int64_t CountCharacters(std::string_view text);

// The texts of the items with the separator between them.
absl::StatusOr<Value> Joined(const Value& value, const std::string& separator);
// The lines behind the first that are not empty behind `pad`; the first, and empty ones, where asked for.
absl::StatusOr<Value> Indented(std::string_view text, std::string_view pad, bool first, bool blank);

absl::StatusOr<Value> TextMethod(const std::string& text, std::string_view name, const Arguments& arguments);

}  // namespace nibble::engine::jinja

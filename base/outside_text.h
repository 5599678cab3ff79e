// Checks of text from outside, made before a library sees it: a JSON library recurses as deep as a document
// is nested when it copies or prints it, and refuses to print what is not UTF-8.
//
// Pure; thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

// More than any file of a model or an adapter has.
inline constexpr int32_t kMaxJsonDepth = 64;

// The deepest nesting of brackets outside of strings.
int32_t JsonDepth(std::string_view text);

// Length of the well-formed UTF-8 character at `pos`, or minus the length of the maximal ill-formed part
// (Unicode 15, section 3.9, table 3-7).
int ExamineUtf8(std::string_view text, size_t pos);
bool IsValidUtf8(std::string_view text);
// Every maximal ill-formed part becomes one U+FFFD, as Rust and Python do it.
std::string RepairUtf8(std::string_view text);

}  // namespace nibble

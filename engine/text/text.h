// Text helpers of the engine: UTF-8, Unicode classes, and quoting for error messages.
//
// Pure; thread-safe. Classes follow the Unicode character database of utf8proc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/outside_text.h"
#include "base/view.h"

namespace nibble::engine {

// 'text' with control characters and bytes that are not UTF-8 escaped, cut after `limit` bytes:
// what may stand in an error message.
std::string Quote(std::string_view text, size_t limit = 80);

// The code point at `pos` of valid UTF-8 and its length in bytes.
struct CodePoint {
  char32_t value = 0;
  int bytes = 0;
};
CodePoint DecodeAt(std::string_view text, size_t pos);
void AppendUtf8(std::string& out, char32_t code_point);
// Bytes of the character that starts with this byte, in valid UTF-8.
inline int CharBytes(char lead) {
  const auto b = static_cast<uint8_t>(lead);
  return b < 0x80 ? 1 : b < 0xE0 ? 2 : b < 0xF0 ? 3 : 4;
}

bool IsLetter(char32_t c);       // \p{L}
bool IsUpperCase(char32_t c);    // \p{Lu}, \p{Lt}
bool IsLowerCase(char32_t c);    // \p{Ll}
bool IsMark(char32_t c);         // \p{M}
bool IsNumber(char32_t c);       // \p{N}
bool IsPunctuation(char32_t c);  // \p{P}
bool IsSpace(char32_t c);        // the White_Space property, \s
bool IsWord(char32_t c);         // \w: letters, marks, decimal digits, connectors
// Lower case of one character, at most two characters long.
void AppendLower(std::string& out, char32_t c);
// Upper case of one character; that of the German sharp s are two.
void AppendUpper(std::string& out, char32_t c);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };
// Text that cannot be normalized (too long for the library) comes back unchanged.
std::string Normalize(std::string_view text, NormalForm form);

}  // namespace nibble::engine

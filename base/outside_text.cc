#include "base/outside_text.h"

#include <algorithm>

namespace nibble {
namespace {

bool IsContinuation(std::string_view text, size_t i, uint8_t low = 0x80, uint8_t high = 0xBF) {
  if (i >= text.size()) return false;
  const auto b = static_cast<uint8_t>(text[i]);
  return b >= low && b <= high;
}

}  // namespace

int32_t JsonDepth(std::string_view text) {
  int32_t depth = 0, deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      deepest = std::max(deepest, ++depth);
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return deepest;
}

int ExamineUtf8(std::string_view text, size_t pos) {
  const auto b = static_cast<uint8_t>(text[pos]);
  if (b < 0x80) return 1;
  if (b < 0xC2 || b > 0xF4) return -1;
  if (b < 0xE0) return IsContinuation(text, pos + 1) ? 2 : -1;
  const uint8_t low = b == 0xE0 ? 0xA0 : b == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = b == 0xED ? 0x9F : b == 0xF4 ? 0x8F : 0xBF;
  if (!IsContinuation(text, pos + 1, low, high)) return -1;
  if (!IsContinuation(text, pos + 2)) return -2;
  if (b < 0xF0) return 3;
  return IsContinuation(text, pos + 3) ? 4 : -3;
}

bool IsValidUtf8(std::string_view text) {
  for (size_t pos = 0; pos < text.size();) {
    const int length = ExamineUtf8(text, pos);
    if (length < 0) return false;
    pos += length;
  }
  return true;
}

std::string RepairUtf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const int length = ExamineUtf8(text, pos);
    if (length > 0) {
      out.append(text.substr(pos, length));
      pos += length;
    } else {
      out += "\xEF\xBF\xBD";
      pos -= length;
    }
  }
  return out;
}

}  // namespace nibble

// Builds one JSON object, key by key: lines of the worker protocol, rows of files.
//
// Numbers are in shortest round-trip form; non-finite ones become the strings "nan", "inf", "-inf",
// which JSON has no numbers for. A builder is used once.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace nibble::engine {

std::string JsonNumber(double value);
std::string JsonText(std::string_view text);  // quoted and escaped

class Line {
 public:
  Line() : text_("{") {}
  explicit Line(std::string_view type) : Line() { Text("type", type); }

  Line& Text(std::string_view key, std::string_view value) { return Raw(key, JsonText(value)); }
  Line& Integer(std::string_view key, int64_t value) { return Raw(key, std::to_string(value)); }
  Line& Number(std::string_view key, double value) { return Raw(key, JsonNumber(value)); }
  Line& Flag(std::string_view key, bool value) { return Raw(key, value ? "true" : "false"); }
  // `json` must be a complete JSON value.
  Line& Raw(std::string_view key, std::string_view json);
  // Without a newline.
  std::string Take() { return std::move(text_.append("}")); }

 private:
  std::string text_;
};

}  // namespace nibble::engine

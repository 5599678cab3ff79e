#include "engine/line.h"

#include <charconv>
#include <cmath>

#include "nlohmann/json.hpp"

namespace nibble::engine {

std::string JsonNumber(double value) {
  if (std::isnan(value)) return "\"nan\"";
  if (std::isinf(value)) return value > 0 ? "\"inf\"" : "\"-inf\"";
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
  return std::string(buffer, end);
}

std::string JsonText(std::string_view text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

Line& Line::Raw(std::string_view key, std::string_view json) {
  if (text_.size() > 1) text_ += ',';
  text_.append(JsonText(key)).append(":").append(json);
  return *this;
}

}  // namespace nibble::engine

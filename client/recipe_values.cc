#include "client/recipe_values.h"

#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace nibble::client {

std::string Quote(const Yaml& value) {
  if (value.IsScalar()) return absl::StrCat("\"", value.text.substr(0, 80), "\"");
  return value.IsList() ? "a list" : value.IsMap() ? "a map" : "nothing";
}

bool OneOf(std::string_view text, std::string_view choices) {
  for (absl::string_view choice :
       absl::StrSplit(absl::string_view(choices.data(), choices.size()), '|')) {
    if (std::string_view(choice.data(), choice.size()) == text) return true;
  }
  return false;
}

bool ReadFlag(const Yaml& value, bool& out) {
  if (!value.IsScalar()) return false;
  const std::string text = absl::AsciiStrToLower(value.text);
  if (OneOf(text, "true|yes|on")) {
    out = true;
  } else if (OneOf(text, "false|no|off")) {
    out = false;
  } else {
    return false;
  }
  return true;
}

bool ReadInteger(const Yaml& value, int64_t& out) {
  if (!value.IsScalar()) return false;
  if (absl::SimpleAtoi(value.text, &out)) return true;
  double number = 0;  // 1e3 and 4.0 are whole numbers too
  if (!absl::SimpleAtod(value.text, &number) || !std::isfinite(number) || number != std::floor(number))
    return false;
  out = static_cast<int64_t>(std::clamp(number, -9e15, 9e15));  // out of any key's bounds, which say so
  return true;
}

bool ReadNumber(const Yaml& value, double& out) {
  return value.IsScalar() && absl::SimpleAtod(value.text, &out) && std::isfinite(out);
}

bool IsNeutral(const Yaml& value) {
  if (value.IsEmpty()) return true;
  if (!value.IsScalar()) return false;
  double number = 1;
  return OneOf(absl::AsciiStrToLower(value.text), "false|no|off|none") ||
         (ReadNumber(value, number) && number == 0);
}

}  // namespace nibble::client

// How a recipe writes flags, numbers and "off". Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "client/yaml.h"

namespace nibble::client {

// What stands there, for messages.
std::string Quote(const Yaml& value);
// Whether `text` is one of `choices`, which are parted by |.
bool OneOf(std::string_view text, std::string_view choices);
// True, yes, on; false, no, off. False when it is neither; `out` is then as it was.
bool ReadFlag(const Yaml& value, bool& out);
bool ReadInteger(const Yaml& value, int64_t& out);
bool ReadNumber(const Yaml& value, double& out);  // finite
// Says "off" in one of the ways recipes have for it.
bool IsNeutral(const Yaml& value);

}  // namespace nibble::client

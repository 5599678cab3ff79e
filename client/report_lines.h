// How long texts are laid out: headings, and lines of a label and a value. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "client/draw.h"

namespace nibble::client {

// "  label                 value"; nothing for an empty value.
void Line(std::string& out, std::string_view label, const std::string& value);
void Heading(std::string& out, const Style& style, std::string_view text);
// "1.5 MiB (1593344 bytes)".
std::string Exact(int64_t bytes);

}  // namespace nibble::client

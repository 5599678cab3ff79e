// Names of things: what a valid id is, and how a fresh one is made.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace nibble {

// True for ^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$ : lower-case, DNS-safe, no "..", no slashes.
bool IsValidId(std::string_view id);

// "<prefix>-" and 12 random characters of [a-z0-9]; 62 bits from the operating system.
std::string NewId(std::string_view prefix);

// A random UUID (version 4).
std::string NewUuid();

// The id in "jobs/abc" for collection "jobs"; NAME_INVALID with the field's path otherwise.
absl::StatusOr<std::string> ParseName(std::string_view name, std::string_view collection,
                                      std::string_view field);

}  // namespace nibble

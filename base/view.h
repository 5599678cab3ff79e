// A std::string_view as Abseil's functions take it: where Abseil was built for C++14, as Debian's was, its
// string_view is a type of its own.
#pragma once

#include <string_view>

#include "absl/strings/string_view.h"

namespace nibble {

inline absl::string_view View(std::string_view s) { return {s.data(), s.size()}; }

}  // namespace nibble

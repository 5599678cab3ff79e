// What ids of CHECK jobs begin with; no user's job may have such an id.
#pragma once

#include "absl/strings/string_view.h"

namespace nibble::core {

inline constexpr absl::string_view kCheckPrefix = "check-";

}  // namespace nibble::core

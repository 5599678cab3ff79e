// How what is wrong with a safetensors file is said. Included by safetensors*.cc only.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "engine/text/text.h"

namespace nibble::engine {

inline absl::Status BadFile(std::string_view file, std::string_view what) {
  return Error(Reason::kModelFileInvalid, absl::StrCat(View(file), ": ", View(what)))
      .With("file", std::string(file));
}

inline absl::Status BadTensor(std::string_view file, std::string_view tensor, std::string_view what) {
  return Error(Reason::kModelFileInvalid,
               absl::StrCat(View(file), ": tensor ", Quote(tensor), ": ", View(what)))
      .With("file", std::string(file))
      .With("tensor", Quote(tensor));
}

}  // namespace nibble::engine

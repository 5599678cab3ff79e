// JSON as the engine's readers need it: bounded, strict about UTF-8, without exceptions.
//
// For .cc files only: simdjson is slow to compile. A parser is used by one thread, and what it
// returns lives until its next document.
#pragma once

#include <simdjson.h>

#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble::engine {

// Parses `text` into `root`, an object no deeper than max_depth; otherwise `error` makes the status
// from a short text that says what is wrong.
absl::Status ParseObject(simdjson::dom::parser& parser, std::string_view text, int max_depth,
                         simdjson::dom::object& root,
                         const std::function<absl::Status(std::string_view)>& error);

// The same for a large text that is read once: `root` lives in `document`, and what the parser needs
// beside it, its copy of the text included, is gone on return.
absl::Status ParseObject(simdjson::dom::document& document, std::string_view text, int max_depth,
                         simdjson::dom::object& root,
                         const std::function<absl::Status(std::string_view)>& error);

// `text` as a JSON string, quotes included. Bytes that are not UTF-8 become U+FFFD.
std::string JsonString(std::string_view text);

// weight_map of a model.safetensors.index.json: tensor to file name. Names must be plain file
// names.
absl::StatusOr<std::map<std::string, std::string, std::less<>>> ReadShardIndex(
    const std::string& path);

}  // namespace nibble::engine

// YAML as a plain tree that remembers where everything stood.
//
// The parser below it is yaml-cpp; what this adds is what an untrusted recipe needs: bounds on
// size, depth and number of values (aliases are counted as what they expand to, so an alias bomb is
// refused while it is small), duplicate keys refused, and line:column in every message. Pure.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace nibble::client {

struct Yaml {
  enum class Kind { kNull, kScalar, kList, kMap };
  Kind kind = Kind::kNull;
  std::string text;     // of a scalar
  bool quoted = false;  // "12" is text, 12 may be a number
  int line = 0;         // from 1; 0: given on the command line
  int column = 0;
  std::vector<Yaml> items;
  std::vector<std::pair<std::string, Yaml>> fields;  // in order of appearance

  const Yaml* Find(std::string_view key) const;
  // Null, an empty list, an empty map or an empty text: written down but saying nothing.
  bool IsEmpty() const;
  bool IsMap() const { return kind == Kind::kMap; }
  bool IsList() const { return kind == Kind::kList; }
  bool IsScalar() const { return kind == Kind::kScalar; }
};

struct YamlLimits {
  size_t max_bytes = size_t{1} << 20;
  int max_depth = 16;
  int max_values = 20'000;
};

// One document. `source` (a file name) begins every message.
absl::StatusOr<Yaml> ParseYaml(std::string_view text, const std::string& source,
                               const YamlLimits& limits = {});

// Sets `path` (a.b[0].c) in `root`, making maps and lists on the way; `value` is read as YAML.
absl::Status ApplyOverride(Yaml& root, std::string_view path, std::string_view value);

}  // namespace nibble::client

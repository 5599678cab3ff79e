// A small command line: --name value, --name=value, --switch; the rest are words. A value.
//
// Every flag must be asked for before Check, which refuses the others by name: a typing error is never
// ignored.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace nibble::server {

class Flags {
 public:
  Flags(int argc, const char* const* argv);
  std::string Text(const std::string& name, std::string otherwise = "");
  // Repeated: --host a --host b.
  std::vector<std::string> Texts(const std::string& name);
  int64_t Integer(const std::string& name, int64_t otherwise, int64_t at_least, int64_t at_most);
  bool Switch(const std::string& name);
  // Words that belong to no flag, in order. Ask for all switches first: what follows one is a word.
  const std::vector<std::string>& words() const { return words_; }
  // Unknown flags, missing or wrong values.
  absl::Status Check() const;

 private:
  static const std::set<std::string>& Switches();

  std::map<std::string, std::vector<std::string>> values_;
  std::vector<std::string> words_;
  std::set<std::string> asked_;
  absl::Status problem_;
};

}  // namespace nibble::server

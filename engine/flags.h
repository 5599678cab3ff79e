// The command line of nibble-engine: --name value, --name=value, switches, and plain arguments.
//
// Unknown flags are refused by name. A value.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace nibble::engine {

// What was typed is no command, flag or value of one: SPEC_INVALID, and exit code 2.
absl::Status WrongWords(std::string message);
// As the command `nibble` has them (docs/operations.md): 0, 2 for WrongWords, 3 no such thing, 4 not allowed,
// 5 what was given is wrong, else 1.
int ExitCodeOf(const absl::Status& status);

class Flags {
 public:
  // `valued` take a value, `switches` none.
  static absl::StatusOr<Flags> Parse(const std::vector<std::string>& arguments,
                                     const std::vector<std::string>& valued,
                                     const std::vector<std::string>& switches = {});

  bool Has(const std::string& name) const { return values_.contains(name); }
  std::string Text(const std::string& name, const std::string& fallback = "") const;
  absl::StatusOr<int64_t> Integer(const std::string& name, int64_t fallback) const;
  absl::StatusOr<double> Number(const std::string& name, double fallback) const;
  absl::StatusOr<bool> Bool(const std::string& name, bool fallback) const;
  // SPEC_INVALID when it was not given.
  absl::StatusOr<std::string> Needed(const std::string& name) const;
  const std::vector<std::string>& plain() const { return plain_; }

 private:
  std::map<std::string, std::string> values_;
  std::vector<std::string> plain_;
};

}  // namespace nibble::engine

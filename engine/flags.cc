#include "engine/flags.h"

#include <algorithm>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"

namespace nibble::engine {
namespace {

constexpr char kWordsUrl[] = "nibble/wrong-words";

absl::Status Wrong(const std::string& name, const std::string& what) {
  return WrongWords(absl::StrCat("--", name, " ", what));
}
bool Contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

absl::Status WrongWords(std::string message) {
  absl::Status status = Error(Reason::kSpecInvalid, std::move(message));
  status.SetPayload(kWordsUrl, absl::Cord());
  return status;
}

int ExitCodeOf(const absl::Status& status) {
  if (status.ok()) return 0;
  if (status.GetPayload(kWordsUrl).has_value()) return 2;
  if (absl::IsNotFound(status)) return 3;
  if (absl::IsPermissionDenied(status) || absl::IsUnauthenticated(status)) return 4;
  if (absl::IsInvalidArgument(status)) return 5;
  switch (StatusReason(status)) {
    case Reason::kUnsupportedArchitecture:
    case Reason::kTokenizerUnsupported:
    case Reason::kModelFileInvalid:
    case Reason::kNoSupervisedTokens:
    case Reason::kExceedsDeviceMemory:
      return 5;
    default:
      return 1;
  }
}

absl::StatusOr<Flags> Flags::Parse(const std::vector<std::string>& arguments,
                                   const std::vector<std::string>& valued,
                                   const std::vector<std::string>& switches) {
  Flags flags;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument == "--") {
      flags.plain_.insert(flags.plain_.end(),
                          arguments.begin() + static_cast<std::ptrdiff_t>(i) + 1, arguments.end());
      break;
    }
    if (!argument.starts_with("--")) {
      flags.plain_.push_back(argument);
      continue;
    }
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(2, equals == std::string::npos ? equals : equals - 2);
    if (Contains(switches, name) && equals == std::string::npos) {
      flags.values_[name] = "true";
    } else if (!Contains(valued, name)) {
      return Wrong(name, "is not a flag of this command");
    } else if (equals != std::string::npos) {
      flags.values_[name] = argument.substr(equals + 1);
    } else if (i + 1 < arguments.size()) {
      flags.values_[name] = arguments[++i];
    } else {
      return Wrong(name, "needs a value");
    }
  }
  return flags;
}

std::string Flags::Text(const std::string& name, const std::string& fallback) const {
  const auto it = values_.find(name);
  return it == values_.end() ? fallback : it->second;
}

absl::StatusOr<int64_t> Flags::Integer(const std::string& name, int64_t fallback) const {
  if (!Has(name)) return fallback;
  int64_t value = 0;
  if (!absl::SimpleAtoi(Text(name), &value))
    return Wrong(name, "is " + Text(name) + ", not a whole number");
  return value;
}

absl::StatusOr<double> Flags::Number(const std::string& name, double fallback) const {
  if (!Has(name)) return fallback;
  double value = 0;
  if (!absl::SimpleAtod(Text(name), &value))
    return Wrong(name, "is " + Text(name) + ", not a number");
  return value;
}

absl::StatusOr<bool> Flags::Bool(const std::string& name, bool fallback) const {
  if (!Has(name)) return fallback;
  if (Text(name) == "true") return true;
  if (Text(name) == "false") return false;
  return Wrong(name, "is " + Text(name) + ", not true or false");
}

absl::StatusOr<std::string> Flags::Needed(const std::string& name) const {
  if (!Has(name)) return Wrong(name, "is missing");
  return Text(name);
}

}  // namespace nibble::engine

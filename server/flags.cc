#include "server/flags.h"

#include <charconv>

#include "absl/strings/str_cat.h"
#include "base/error.h"

namespace nibble::server {

const std::set<std::string>& Flags::Switches() {
  static const auto* names =
      new std::set<std::string>{"help", "version", "in-memory", "reflection", "json-log"};
  return *names;
}

Flags::Flags(int argc, const char* const* argv) {
  for (int i = 1; i < argc; ++i) {
    std::string word = argv[i];
    if (word == "-h") word = "--help";
    if (!word.starts_with("--")) {
      words_.push_back(std::move(word));
      continue;
    }
    const size_t equals = word.find('=');
    const std::string name = word.substr(2, equals == std::string::npos ? equals : equals - 2);
    if (equals != std::string::npos) {
      values_[name].push_back(word.substr(equals + 1));
    } else if (Switches().contains(name)) {
      values_[name].push_back("true");
    } else if (i + 1 < argc) {
      values_[name].push_back(argv[++i]);
    } else {
      problem_ = Error::Field(Reason::kSpecInvalid, word, "needs a value");
    }
  }
}

std::string Flags::Text(const std::string& name, std::string otherwise) {
  asked_.insert(name);
  const auto it = values_.find(name);
  return it == values_.end() ? std::move(otherwise) : it->second.back();
}

std::vector<std::string> Flags::Texts(const std::string& name) {
  asked_.insert(name);
  const auto it = values_.find(name);
  return it == values_.end() ? std::vector<std::string>() : it->second;
}

int64_t Flags::Integer(const std::string& name, int64_t otherwise, int64_t at_least, int64_t at_most) {
  const std::string text = Text(name);
  if (text.empty()) return otherwise;
  int64_t value = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  if (parsed.ec == std::errc() && parsed.ptr == text.data() + text.size() && value >= at_least &&
      value <= at_most) {
    return value;
  }
  problem_ = Error::Field(
      Reason::kSpecInvalid, "--" + name,
      absl::StrCat("is \"", text, "\"; must be a whole number from ", at_least, " to ", at_most));
  return otherwise;
}

bool Flags::Switch(const std::string& name) {
  const std::string text = Text(name);
  if (!text.empty() && text != "true" && text != "false") {
    problem_ = Error::Field(Reason::kSpecInvalid, "--" + name, "is a switch: true or false");
  }
  return text == "true";
}

absl::Status Flags::Check() const {
  if (!problem_.ok()) return problem_;
  for (const auto& [name, values] : values_) {
    if (!asked_.contains(name)) {
      return Error(Reason::kUnknownField,
                   absl::StrCat("--", name, " is no flag of this command; see --help"));
    }
  }
  return absl::OkStatus();
}

}  // namespace nibble::server

// Typed fields of a config.json, with errors that name the field and its value. Of model_config.cc and
// gemma_config.cc alone.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "nlohmann/json.hpp"

namespace nibble::spec {

inline absl::Status UnsupportedConfig(const std::string& message) {
  return Error(Reason::kUnsupportedArchitecture, "config.json: " + message);
}
inline absl::Status InvalidConfig(const std::string& message) {
  return Error(Reason::kModelFileInvalid, "config.json: " + message);
}

// Reads typed fields of one JSON object; the first fault sticks.
class ConfigFields {
 public:
  explicit ConfigFields(const nlohmann::json& object) : object_(object) {}

  bool Has(const char* key) const { return object_.contains(key) && !object_[key].is_null(); }

  int64_t Integer(const char* key, int64_t fallback, int64_t low, int64_t high) {
    if (!Has(key)) return fallback;
    const nlohmann::json& value = object_[key];
    if (!value.is_number_integer()) {
      Fault(absl::StrCat(key, " is ", value.dump(), ", not a whole number"));
      return fallback;
    }
    const int64_t number = value.get<int64_t>();
    if (number < low || number > high) {
      Fault(absl::StrCat(key, " is ", number, ", outside ", low, " to ", high));
    }
    return number;
  }
  int64_t Needed(const char* key, int64_t high) {
    if (!Has(key)) Fault(absl::StrCat(key, " is missing"));
    return Integer(key, 1, 1, high);
  }
  double Number(const char* key, double fallback) {
    if (!Has(key)) return fallback;
    const nlohmann::json& value = object_[key];
    // As a float, which is what it is used as.
    if (!value.is_number() || !(value.get<double>() > 0) ||
        !std::isnormal(static_cast<float>(value.get<double>()))) {
      Fault(absl::StrCat(key, " is ", value.dump(), ", not a positive number of single precision"));
      return fallback;
    }
    return value.get<double>();
  }
  bool Flag(const char* key, bool fallback) {
    if (!Has(key)) return fallback;
    if (!object_[key].is_boolean()) {
      Fault(absl::StrCat(key, " is ", object_[key].dump(), ", not true or false"));
      return fallback;
    }
    return object_[key].get<bool>();
  }
  std::string Text(const char* key, const std::string& fallback) {
    if (!Has(key)) return fallback;
    if (!object_[key].is_string()) {
      Fault(absl::StrCat(key, " is ", object_[key].dump(), ", not a string"));
      return fallback;
    }
    return object_[key].get<std::string>();
  }
  void Fault(const std::string& message) {
    if (status_.ok()) status_ = InvalidConfig(message);
  }
  const absl::Status& status() const { return status_; }

 private:
  const nlohmann::json& object_;
  absl::Status status_;
};

}  // namespace nibble::spec

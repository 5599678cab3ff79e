#include "base/error.h"
#include "engine/spec/memory_plan.h"
#include "nlohmann/json.hpp"

namespace nibble::spec {

using nlohmann::json;

std::string DeviceProfileToJson(const DeviceProfile& profile) {
  json object = {{"backend", profile.backend},
                       {"body", profile.body},
                       {"build", profile.build},
                       {"threads", profile.threads},
                       {"act_bytes", profile.act_bytes},
                       {"fixed_bytes", profile.fixed_bytes},
                       {"capacity_bytes", profile.capacity_bytes}};
  // What is not always said.
  if (profile.pinned_capacity_bytes > 0) object["pinned_capacity_bytes"] = profile.pinned_capacity_bytes;
  if (profile.host_capacity_bytes > 0) object["host_capacity_bytes"] = profile.host_capacity_bytes;
  if (profile.linear_mflop_per_s > 0) object["linear_mflop_per_s"] = profile.linear_mflop_per_s;
  if (profile.converts_head) object["converts_head"] = true;
  return object.dump(-1, ' ', false, json::error_handler_t::replace);
}

absl::StatusOr<DeviceProfile> DeviceProfileFromJson(std::string_view text) {
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto bad = [](const char* what) {
    return Error(Reason::kInternal, std::string("the device profile ") + what).ToStatus();
  };
  if (!object.is_object()) return bad("is no JSON object");
  DeviceProfile profile;
  for (const auto& [key, value] : object.items()) {
    std::string* text_field = key == "backend" ? &profile.backend
                              : key == "body"  ? &profile.body
                              : key == "build" ? &profile.build
                                               : nullptr;
    if (text_field != nullptr) {
      if (!value.is_string()) return bad("has a name that is no string");
      *text_field = value.get<std::string>();
      continue;
    }
    if (key == "converts_head") {
      if (!value.is_boolean()) return bad("has a converts_head that is not true or false");
      profile.converts_head = value.get<bool>();
      continue;
    }
    if (!value.is_number_integer()) return bad("has a figure that is no whole number");
    const int64_t number = value.get<int64_t>();
    if (number < 0) return bad("has a negative figure");
    if (key == "threads" || key == "act_bytes") {
      if (number < 1 || number > 65536) return bad("has threads or act_bytes out of range");
      (key == "threads" ? profile.threads : profile.act_bytes) = static_cast<int32_t>(number);
    } else if (key == "fixed_bytes") {
      profile.fixed_bytes = number;
    } else if (key == "linear_mflop_per_s") {
      profile.linear_mflop_per_s = number;
    } else if (key == "capacity_bytes") {
      profile.capacity_bytes = number;
    } else if (key == "pinned_capacity_bytes") {
      profile.pinned_capacity_bytes = number;
    } else if (key == "host_capacity_bytes") {
      profile.host_capacity_bytes = number;
    } else {
      return bad("has an unknown key");
    }
  }
  return profile;
}

}  // namespace nibble::spec

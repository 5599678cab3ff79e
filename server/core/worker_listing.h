// What a worker says of itself each time it calls: the attempts it has, and what its devices are like.
#pragma once

#include <cstdint>
#include <set>
#include <string>

#include "server/core/types.h"

namespace nibble::core {

struct ListedAttempt {
  std::string job_id;
  int64_t epoch = 0;
  std::string device_id;
  Phase phase = Phase::kUnspecified;
  int64_t step = 0;
  int64_t used_bytes = 0;
  bool intact = false;  // what it trained is in memory there, and could go on
  std::string trouble;  // what does not go through and keeps it, in words; "" = nothing
  bool operator==(const ListedAttempt&) const = default;
};
struct DeviceUse {
  std::string device_id;
  int64_t used_bytes = 0;
  std::set<std::string> resident_bases;
  std::string fault;  // "" = it is well
  bool operator==(const DeviceUse&) const = default;
};

}  // namespace nibble::core

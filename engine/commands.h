// The subcommands of nibble-engine that run without a worker. Each takes the arguments after its
// name.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/device.h"
#include "engine/flags.h"

namespace nibble::engine {

using Arguments = std::vector<std::string>;

absl::Status GenerateCommand(const Arguments& arguments);
absl::Status MergeCommand(const Arguments& arguments);
absl::Status TrainCommand(const Arguments& arguments);

// Names of the flags that say which base to open on which device, for Flags::Parse.
std::vector<std::string> DeviceFlagNames();
absl::StatusOr<DeviceOptions> DeviceOptionsFrom(const Flags& flags);

}  // namespace nibble::engine

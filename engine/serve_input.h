// What comes into a serving engine: the device's lock, and the worker's lines.
#pragma once

#include <atomic>
#include <string>

#include "absl/status/status.h"
#include "base/mailbox.h"

namespace nibble::engine {

// One engine per device, also across workers that die and start again. Held until the process ends; "" is no
// lock.
absl::Status TakeDeviceLock(const std::string& path, int wait_ms);

// Reads lines and posts them, until `stop`; ends the process at end of file, and when a line is too long.
void ReadLines(int fd, Mailbox<std::string>& lines, const std::atomic<bool>& stop);

}  // namespace nibble::engine

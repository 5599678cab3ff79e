// What this machine offers: one device per worker process, measured by the engine itself.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "worker/server_link.h"

namespace nibble::worker {

struct DeviceOptions {
  std::string engine_binary;
  std::string device = "cpu";
  int threads = 0;           // 0: all this process may use
  int64_t memory_bytes = 0;  // offered; 0: what is available now less 1 GiB
  std::string log_file;
};

// Runs `nibble-engine profile`.
absl::StatusOr<DeviceInfo> MeasureDevice(const DeviceOptions& options);

// "8GiB", "512 MiB", "6.5G", "123456": bytes.
absl::StatusOr<int64_t> ParseBytes(std::string_view text, std::string_view field);
int AvailableThreads();
// MemAvailable of /proc/meminfo, bounded by a cgroup's limit.
int64_t AvailableMemoryBytes();

}  // namespace nibble::worker

// What this machine offers: its processor or its GPUs, found and measured by the engine itself, in processes
// of their own, so that a driver that hangs or dies takes nothing of the worker with it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/server_link.h"

namespace nibble::worker {

struct DeviceOptions {
  std::string engine_binary;
  std::string device = "cpu";
  int threads = 0;           // 0: all this process may use
  int64_t memory_bytes = 0;  // offered; 0: what is available now less 1 GiB
  // Of a GPU: this host's memory for its jobs, page-locked and other.
  int64_t pinned_bytes = 0;
  int64_t host_bytes = 0;
  std::string log_file;
};

// A GPU as `nibble-engine devices` lists it.
struct GpuInfo {
  std::string device;  // "cuda:0": what the engine calls it
  std::string uuid;
  std::string name;
  int64_t memory_bytes = 0;
  std::string capability;  // "9.0"
  std::string driver;
};
// Empty, with the engine's reason in `why`, where there is none.
absl::StatusOr<std::vector<GpuInfo>> ListGpus(const std::string& engine_binary,
                                              const std::string& log_file, std::string* why);

// What each word of --device stands for: "cpu", "cuda:1" and "cuda:1,fp16" themselves; "cuda" every GPU;
// "auto" every GPU, or the processor where there is none. Each device once.
absl::StatusOr<std::vector<std::string>> ResolveDevices(const std::vector<std::string>& words,
                                                        const std::vector<GpuInfo>& gpus,
                                                        const std::string& why);

// "cpu0", "cuda1": the name of a device in the fleet.
std::string DeviceId(const std::string& device);

// Runs `nibble-engine profile`. A GPU offers what is free on it, or memory_bytes if that is less.
// `gpus` is for the description.
absl::StatusOr<DeviceInfo> MeasureDevice(const DeviceOptions& options,
                                         const std::vector<GpuInfo>& gpus = {});

// "8GiB", "512 MiB", "6.5G", "123456": bytes.
absl::StatusOr<int64_t> ParseBytes(std::string_view text, std::string_view field);
int AvailableThreads();
// What a GPU's jobs may have of this host, when so many GPUs share it: page-locked `asked_bytes` in all (0:
// half of what is available now), other memory the rest less 1 GiB; equal shares, at least 1 MiB each.
struct HostShare {
  int64_t pinned_bytes = 0;
  int64_t host_bytes = 0;
};
HostShare ShareHost(int64_t available_bytes, int64_t asked_pinned_bytes, int64_t gpus);
// MemAvailable of /proc/meminfo, bounded by a cgroup's limit.
int64_t AvailableMemoryBytes();

}  // namespace nibble::worker

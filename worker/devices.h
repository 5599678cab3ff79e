// What this machine offers: its processor or its GPUs, found and measured by the engine itself, in processes
// of their own, so that a driver that hangs or dies takes nothing of the worker with it.
#pragma once

#include <cstdint>
#include <functional>
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
  int64_t memory_bytes = 0;  // offered; of a GPU 0: what is free
  // Of a GPU: this host's memory for its jobs, page-locked and other.
  int64_t pinned_bytes = 0;
  int64_t host_bytes = 0;
  std::string log_file;
  int64_t limit_s = 180;  // for the engine's answer: a driver may hang
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

// Has an engine open and measure the device, whatever it finds; the status says why it could not.
absl::Status ProbeDevice(const std::string& engine_binary, const std::string& device,
                         const std::string& log_file, const std::function<bool()>& cancelled);

// "8GiB", "512 MiB", "6.5G", "123456": bytes.
absl::StatusOr<int64_t> ParseBytes(std::string_view text, std::string_view field);
// As many as this process may use processors: by its affinity, and by the quotas of its cgroups, rounded up
// (a unit's CPUQuota, a container's --cpus). `root` is for tests, here and below.
int AvailableThreads(const std::string& root = "");
// This host's memory, of which each byte is given out once. The processor, where it is a device, offers what
// was asked for (0: half of what is available now where there are GPUs, else all but 1 GiB). The rest is for
// the jobs of GPUs, in equal shares of at least 1 MiB: page-locked what was asked for in all (0: half of that
// rest), other memory what then remains, less 1 GiB.
struct HostQuestion {
  int64_t available_bytes = 0;
  bool has_cpu = false;
  int64_t gpus = 0;
  int64_t asked_cpu_bytes = 0;
  int64_t asked_pinned_bytes = 0;
  int64_t machine_bytes = 0;  // with its swap; 0 = unknown
};
struct HostShare {
  int64_t cpu_bytes = 0;
  int64_t pinned_bytes = 0;  // of each GPU
  int64_t host_bytes = 0;    // of each GPU
};
// OUT_OF_MEMORY when the processor and GPUs are devices and what was asked for leaves the GPUs' jobs nothing;
// SPEC_INVALID when more is asked for the processor's jobs than the machine has.
absl::StatusOr<HostShare> ShareHost(const HostQuestion& question);
// MemTotal and SwapTotal of /proc/meminfo.
int64_t MachineMemoryBytes(const std::string& root = "");
// MemAvailable of /proc/meminfo, bounded by what the memory cgroups above this process leave it (version 1 or
// 2; its own, be it a unit's MemoryMax or a container's limit, and all around that).
int64_t AvailableMemoryBytes(const std::string& root = "");

}  // namespace nibble::worker

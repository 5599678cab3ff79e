// What NVIDIA's management library says of a GPU at this moment, for /metrics.
//
// The library is the driver's own (libnvidia-ml.so.1) and loaded at run time, so this process needs neither
// CUDA nor a driver: where the library is missing, or a figure is, there is simply no reading of it. Only
// asks; never touches a device, so it costs a GPU nothing and cannot fail with one. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

namespace nibble::worker {

struct GpuReading {
  std::optional<int64_t> memory_used_bytes;
  std::optional<int64_t> memory_total_bytes;
  std::optional<double> utilization;          // share of time in which something ran; 0 to 1
  std::optional<double> temperature_celsius;
  std::optional<double> power_watts;

  bool operator==(const GpuReading&) const = default;
};

class Nvml {
 public:
  // `library` is for tests; what dlopen takes.
  explicit Nvml(const std::string& library = "libnvidia-ml.so.1");
  ~Nvml();
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  // False where there is no such library.
  bool ok() const { return functions_ != nullptr; }
  // Of the device with this UUID ("GPU-..."); empty when the library does not know it.
  GpuReading Read(const std::string& uuid);

 private:
  struct Functions;

  std::mutex mutex_;
  void* library_ = nullptr;
  std::unique_ptr<Functions> functions_;
};

}  // namespace nibble::worker

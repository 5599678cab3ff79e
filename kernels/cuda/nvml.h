// The little of NVIDIA's management library (libnvidia-ml, part of the driver) that we ask: memory in use
// without a context, the driver's version, and the last Xid of a device that failed. Loaded with dlopen;
// where it is not, every answer is "unknown".
//
// Not thread-safe; one object at a time.
#pragma once

#include <cstdint>
#include <string>

namespace nibble::kernels::cuda {

class Nvml {
 public:
  Nvml();
  ~Nvml();
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  bool ok() const { return library_ != nullptr; }
  std::string DriverVersion() const;  // "" = unknown
  // Of the device with this UUID ("GPU-..."). Free and used bytes; false = unknown.
  bool Memory(const std::string& uuid, int64_t* free_bytes, int64_t* used_bytes) const;
  // From now on the Xids of this device are remembered.
  void WatchXids(const std::string& uuid);
  // The newest since then, waiting for it at most this long; 0 = none seen.
  uint64_t LastXid(int wait_ms);

 private:
  struct Functions;

  void* Device(const std::string& uuid) const;

  void* library_ = nullptr;
  Functions* functions_ = nullptr;
  void* events_ = nullptr;
};

}  // namespace nibble::kernels::cuda

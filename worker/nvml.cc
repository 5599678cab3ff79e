#include "worker/nvml.h"

#include <dlfcn.h>

namespace nibble::worker {
namespace {

// The library's own binary interface, as far as it is used here; a return of 0 is success.
struct MemoryInfo {
  unsigned long long total, free, used;
};
struct Utilization {
  unsigned int gpu, memory;  // percent
};
constexpr int kTemperatureGpu = 0;

}  // namespace

struct Nvml::Functions {
  int (*Init)();
  int (*Shutdown)();
  int (*DeviceByUuid)(const char*, void**);
  int (*MemoryOf)(void*, MemoryInfo*);
  int (*UtilizationOf)(void*, Utilization*);
  int (*TemperatureOf)(void*, int, unsigned int*);
  int (*PowerOf)(void*, unsigned int*);  // milliwatts
};

Nvml::Nvml(const std::string& library) {
  library_ = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library_ == nullptr) return;
  auto functions = std::make_unique<Functions>();
  bool complete = true;
  const auto load = [&](const char* name, auto& function) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library_, name));
    complete = complete && function != nullptr;
  };
  load("nvmlInit_v2", functions->Init);
  load("nvmlShutdown", functions->Shutdown);
  load("nvmlDeviceGetHandleByUUID", functions->DeviceByUuid);
  load("nvmlDeviceGetMemoryInfo", functions->MemoryOf);
  load("nvmlDeviceGetUtilizationRates", functions->UtilizationOf);
  load("nvmlDeviceGetTemperature", functions->TemperatureOf);
  load("nvmlDeviceGetPowerUsage", functions->PowerOf);
  if (complete && functions->Init() == 0) functions_ = std::move(functions);
}

Nvml::~Nvml() {
  if (functions_ != nullptr) functions_->Shutdown();
  if (library_ != nullptr) dlclose(library_);
}

GpuReading Nvml::Read(const std::string& uuid) {
  GpuReading reading;
  const std::lock_guard lock(mutex_);
  void* device = nullptr;
  if (!ok() || functions_->DeviceByUuid(uuid.c_str(), &device) != 0) return reading;
  // Each figure by itself: boards differ in what they tell.
  if (MemoryInfo memory = {}; functions_->MemoryOf(device, &memory) == 0) {
    reading.memory_used_bytes = static_cast<int64_t>(memory.used);
    reading.memory_total_bytes = static_cast<int64_t>(memory.total);
  }
  if (Utilization utilization = {}; functions_->UtilizationOf(device, &utilization) == 0) {
    reading.utilization = utilization.gpu / 100.0;
  }
  unsigned int number = 0;
  if (functions_->TemperatureOf(device, kTemperatureGpu, &number) == 0) {
    reading.temperature_celsius = number;
  }
  if (functions_->PowerOf(device, &number) == 0) reading.power_watts = number / 1000.0;
  return reading;
}

}  // namespace nibble::worker

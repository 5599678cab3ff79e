#include "kernels/cuda/nvml.h"

#include <dlfcn.h>

#include <type_traits>

namespace nibble::kernels::cuda {
namespace {

// The library's own binary interface, as far as it is used here; a return of 0 is success.
struct MemoryInfo {
  unsigned long long total, free, used;
};
struct EventData {
  void* device;
  unsigned long long type, data;
  unsigned int gpu_instance, compute_instance;
};
constexpr unsigned long long kXidEvent = 8;

}  // namespace

struct Nvml::Functions {
  int (*Init)();
  int (*Shutdown)();
  int (*DriverVersion)(char*, unsigned int);
  int (*DeviceByUuid)(const char*, void**);
  int (*DeviceMemory)(void*, MemoryInfo*);
  int (*EventSetCreate)(void**);
  int (*EventSetFree)(void*);
  int (*EventSetWait)(void*, EventData*, unsigned int);
  int (*RegisterEvents)(void*, unsigned long long, void*);
};

Nvml::Nvml() {
  library_ = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library_ == nullptr) return;
  functions_ = new Functions;
  bool complete = true;
  const auto load = [&](const char* name, auto& function) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library_, name));
    complete = complete && function != nullptr;
  };
  load("nvmlInit_v2", functions_->Init);
  load("nvmlShutdown", functions_->Shutdown);
  load("nvmlSystemGetDriverVersion", functions_->DriverVersion);
  load("nvmlDeviceGetHandleByUUID", functions_->DeviceByUuid);
  load("nvmlDeviceGetMemoryInfo", functions_->DeviceMemory);
  load("nvmlEventSetCreate", functions_->EventSetCreate);
  load("nvmlEventSetFree", functions_->EventSetFree);
  load("nvmlEventSetWait_v2", functions_->EventSetWait);
  load("nvmlDeviceRegisterEvents", functions_->RegisterEvents);
  if (complete && functions_->Init() == 0) return;
  delete functions_;
  functions_ = nullptr;
  dlclose(library_);
  library_ = nullptr;
}

Nvml::~Nvml() {
  if (library_ == nullptr) return;
  if (events_ != nullptr) functions_->EventSetFree(events_);
  functions_->Shutdown();
  delete functions_;
  dlclose(library_);
}

std::string Nvml::DriverVersion() const {
  char text[96] = {};
  if (!ok() || functions_->DriverVersion(text, sizeof text - 1) != 0) return "";
  return text;
}

void* Nvml::Device(const std::string& uuid) const {
  void* device = nullptr;
  if (!ok() || functions_->DeviceByUuid(uuid.c_str(), &device) != 0) return nullptr;
  return device;
}

bool Nvml::Memory(const std::string& uuid, int64_t* free_bytes, int64_t* used_bytes) const {
  void* device = Device(uuid);
  MemoryInfo info = {};
  if (device == nullptr || functions_->DeviceMemory(device, &info) != 0) return false;
  *free_bytes = static_cast<int64_t>(info.free);
  *used_bytes = static_cast<int64_t>(info.used);
  return true;
}

void Nvml::WatchXids(const std::string& uuid) {
  void* device = Device(uuid);
  if (device == nullptr || events_ != nullptr || functions_->EventSetCreate(&events_) != 0) return;
  if (functions_->RegisterEvents(device, kXidEvent, events_) == 0) return;
  functions_->EventSetFree(events_);
  events_ = nullptr;
}

uint64_t Nvml::LastXid(int wait_ms) {
  uint64_t xid = 0;
  if (events_ == nullptr) return xid;
  EventData event = {};
  while (functions_->EventSetWait(events_, &event, static_cast<unsigned int>(wait_ms)) == 0) {
    if ((event.type & kXidEvent) != 0) xid = event.data;
    wait_ms = 0;
  }
  return xid;
}

}  // namespace nibble::kernels::cuda

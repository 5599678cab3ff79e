// A management library of one GPU ("GPU-1") that says the same figures every time, and nothing of its power.
extern "C" {

struct MemoryInfo {
  unsigned long long total, free, used;
};
struct Utilization {
  unsigned int gpu, memory;
};

static int device;
constexpr int kNotSupported = 3;

int nvmlInit_v2() { return 0; }
int nvmlShutdown() { return 0; }
int nvmlDeviceGetHandleByUUID(const char* uuid, void** out) {
  const char wanted[] = "GPU-1";
  for (int i = 0; i < 6; ++i) {
    if (uuid[i] != wanted[i]) return kNotSupported;
  }
  *out = &device;
  return 0;
}
int nvmlDeviceGetMemoryInfo(void*, MemoryInfo* info) {
  *info = {16ull << 30, 12ull << 30, 4ull << 30};
  return 0;
}
int nvmlDeviceGetUtilizationRates(void*, Utilization* utilization) {
  *utilization = {75, 40};
  return 0;
}
int nvmlDeviceGetTemperature(void*, int, unsigned int* celsius) {
  *celsius = 61;
  return 0;
}
int nvmlDeviceGetPowerUsage(void*, unsigned int*) { return kNotSupported; }
}

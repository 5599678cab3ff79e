#include "engine/device.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "kernels/tables.h"

namespace nibble::engine {
namespace {

// Room for what is set up on first use: thread stacks, buffers of the C library, code not yet
// touched.
constexpr int64_t kLateBytes = int64_t{8} << 20;
// Address space, not memory.
constexpr int64_t kStepCapacityBytes = int64_t{1} << 40;

// A field of /proc/meminfo in bytes.
int64_t MemInfoBytes(const char* field) {
  std::FILE* file = std::fopen("/proc/meminfo", "re");
  if (file == nullptr) return 0;
  char line[256];
  int64_t bytes = 0;
  const size_t length = std::strlen(field);
  while (std::fgets(line, sizeof line, file) != nullptr) {
    long long kilobytes = 0;
    if (std::strncmp(line, field, length) == 0 &&
        std::sscanf(line + length, ": %lld", &kilobytes) == 1) {
      bytes = kilobytes * 1024;
    }
  }
  std::fclose(file);
  return bytes;
}

}  // namespace

absl::StatusOr<const kernels::KernelTable*> FindTable(const std::string& device) {
  if (device == "cpu") return &kernels::CpuTable();
  if (device == "ref") return &kernels::RefTable();
  if (device.starts_with("cpu:")) {
    const kernels::KernelTable* table = kernels::CpuTableFor(device.substr(4));
    if (table != nullptr) return table;
  }
  std::string bodies;
  for (const std::string_view body : kernels::CpuBodies()) bodies.append(" cpu:").append(body);
  return Error(
      Reason::kUnsupportedOption,
      absl::StrCat("--device ", device, " is not there; this machine has: cpu", bodies, " ref"));
}

std::string NumericsId(const kernels::KernelTable& table) {
  return absl::StrCat(NIBBLE_VERSION, "/", table.name, "/", table.body);
}

const kernels::KernelTable* TableForNumerics(const std::string& numerics_id) {
  if (numerics_id == NumericsId(kernels::RefTable())) return &kernels::RefTable();
  for (const std::string_view body : kernels::CpuBodies()) {
    const kernels::KernelTable* table = kernels::CpuTableFor(body);
    if (table != nullptr && numerics_id == NumericsId(*table)) return table;
  }
  return nullptr;
}

int64_t ResidentBytes() {
  // Not through stdio: this is read between turns and should cost nothing.
  const int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  char text[128];
  const ssize_t size = read(fd, text, sizeof text - 1);
  close(fd);
  if (size <= 0) return 0;
  text[size] = '\0';
  long long total = 0, resident = 0;
  if (std::sscanf(text, "%lld %lld", &total, &resident) != 2) return 0;
  return resident * sysconf(_SC_PAGESIZE);
}

spec::DeviceProfile MeasureProfile(const kernels::KernelTable& table, int threads) {
  spec::DeviceProfile profile;
  profile.backend = table.name;
  profile.body = table.body;
  profile.build = NIBBLE_VERSION;
  profile.threads =
      threads > 0 ? threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  profile.act_bytes = static_cast<int32_t>(kernels::DTypeBytes(table.act));
  profile.fixed_bytes = ResidentBytes() + kLateBytes;
  profile.capacity_bytes = std::max<int64_t>(0, MemInfoBytes("MemAvailable") - (int64_t{1} << 30));
  return profile;
}

absl::StatusOr<std::unique_ptr<Device>> Device::Open(const DeviceOptions& options,
                                                     const spec::DeviceProfile& profile) {
  ASSIGN_OR_RETURN(const kernels::KernelTable* table, FindTable(options.device));
  std::unique_ptr<Device> device(new Device(*table, profile.threads));
  device->profile_ = profile;
  device->quant_ = options.base.quant;
  device->double_quant_ = options.base.double_quant;
  BaseModelOptions base = options.base;
  base.threads = profile.threads;
  ASSIGN_OR_RETURN(device->base_, BaseModel::Open(base));
  device->view_ = ViewOf(*device->base_);
  ASSIGN_OR_RETURN(device->tokenizer_, Tokenizer::Load(options.base.model_dir));
  ASSIGN_OR_RETURN(device->step_, Region::Reserve(kStepCapacityBytes));
  return device;
}

absl::Status Device::ResizeStep(int64_t bytes) {
  if (bytes == step_.mapped_bytes()) return absl::OkStatus();
  if (bytes > step_.capacity_bytes()) {
    return Error(Reason::kExceedsDeviceMemory,
                 absl::StrCat("a step region of ", bytes, " bytes is too large"));
  }
  return step_.Map(bytes);
}

}  // namespace nibble::engine

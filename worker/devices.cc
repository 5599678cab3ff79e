#include "worker/devices.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "worker/engine_process.h"

namespace nibble::worker {
namespace {

constexpr int64_t kReserveBytes = int64_t{1} << 30;

int64_t ReadNumber(const std::string& path) {
  std::ifstream in(path);
  int64_t value = -1;
  in >> value;
  return in ? value : -1;
}

std::string ProcessorName() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t colon = line.find(':');
    if (colon != std::string::npos)
      return std::string(absl::StripAsciiWhitespace(line.substr(colon + 1)));
  }
  return "CPU";
}

}  // namespace

int AvailableThreads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

int64_t AvailableMemoryBytes() {
  int64_t available = 0;
  std::ifstream in("/proc/meminfo");
  std::string key;
  int64_t kib = 0;
  std::string unit;
  while (in >> key >> kib) {
    std::getline(in, unit);
    if (key == "MemAvailable:") available = kib * 1024;
  }
  const int64_t limit = ReadNumber("/sys/fs/cgroup/memory.max");
  const int64_t used = ReadNumber("/sys/fs/cgroup/memory.current");
  if (limit > 0 && used >= 0) available = std::min(available, std::max<int64_t>(0, limit - used));
  return available;
}

absl::StatusOr<int64_t> ParseBytes(std::string_view text, std::string_view field) {
  const auto bad = [&] {
    return Error::Field(Reason::kSpecInvalid, std::string(field),
                        absl::StrCat("must be a size like 8GiB or 512MiB, got \"",
                                     std::string(text.substr(0, 40)), "\""))
        .ToStatus();
  };
  const size_t end = text.find_first_not_of("0123456789.");
  const std::string number(text.substr(0, end));
  std::string unit =
      end == std::string_view::npos ? "" : absl::AsciiStrToLower(std::string(text.substr(end)));
  unit = std::string(absl::StripAsciiWhitespace(unit));
  double value = 0;
  if (!absl::SimpleAtod(number, &value)) return bad();
  static constexpr std::string_view kUnits[] = {"b", "k", "m", "g", "t"};
  int power = unit.empty() ? 0 : -1;
  for (int i = 0; i < 5; ++i) {
    const std::string letter(kUnits[i]);
    if (unit == letter || (i > 0 && (unit == letter + "b" || unit == letter + "ib"))) power = i;
  }
  const double bytes = power < 0 ? -1 : value * std::pow(1024.0, power);
  if (bytes < 1 || bytes > 9e15) return bad();
  return static_cast<int64_t>(bytes);
}

absl::StatusOr<DeviceInfo> MeasureDevice(const DeviceOptions& options) {
  const int threads = options.threads > 0 ? options.threads : AvailableThreads();
  ASSIGN_OR_RETURN(const HelperResult result,
                   RunHelper({options.engine_binary, "profile", "--device", options.device,
                              "--threads", absl::StrCat(threads)},
                             options.log_file, nullptr));
  if (result.exit.code != 0) {
    return Error(Reason::kEngineFailed,
                 absl::StrCat(options.engine_binary, " profile ", result.exit.message, "; see ",
                              options.log_file))
        .ToStatus();
  }
  DeviceInfo device;
  const std::string text(absl::StripAsciiWhitespace(result.output));
  ASSIGN_OR_RETURN(device.profile, spec::DeviceProfileFromJson(text));
  device.id = options.device + "0";
  device.description = ProcessorName();
  device.profile.capacity_bytes =
      options.memory_bytes > 0 ? options.memory_bytes
                               : std::max<int64_t>(0, AvailableMemoryBytes() - kReserveBytes);
  if (device.profile.capacity_bytes <= device.profile.fixed_bytes) {
    return Error(Reason::kOutOfMemory,
                 absl::StrCat("this worker would offer ", device.profile.capacity_bytes,
                              " bytes, and an engine alone takes ", device.profile.fixed_bytes,
                              "; free memory, or say --memory"))
        .ToStatus();
  }
  return device;
}

}  // namespace nibble::worker

#include "worker/devices.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "nlohmann/json.hpp"
#include "worker/cgroups.h"
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

// How a version of cgroups spells what is said of memory.
struct CgroupNames {
  const char* limit;
  const char* used;
  const char* idle_pages;  // in memory.stat: of files, and read once; the kernel takes them back unasked
};
constexpr CgroupNames kCgroup2 = {"memory.max", "memory.current", "inactive_file"};
constexpr CgroupNames kCgroup1 = {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"};

int64_t NumberBehind(const std::string& path, std::string_view key) {
  std::ifstream in(path);
  std::string name;
  int64_t value = 0;
  while (in >> name >> value) {
    if (name == key) return value;
  }
  return 0;
}

int64_t SizeOf(const std::string& path) { return FileSizeBytes(path).value_or(0); }

// What a helper that failed said last: behind how it ended. The file had `before` bytes when it began.
std::string LastWords(const std::string& log_file, int64_t before) {
  constexpr int64_t kTailBytes = 1'000;
  const int64_t said = std::clamp<int64_t>(SizeOf(log_file) - before, 0, kTailBytes);
  const std::string tail = said == 0 ? "" : TailOfFile(log_file, static_cast<size_t>(said));
  const std::string line = tail.substr(tail.rfind('\n') + 1);  // npos + 1 is 0
  return absl::StrCat(line.empty() ? "" : ": ", line, line.empty() ? "; see " : "; its log is ", log_file);
}

constexpr int64_t kUnbounded = std::numeric_limits<int64_t>::max();

// What one group leaves; as much as there can be where it has no bound.
int64_t RoomInGroup(const std::string& directory, const CgroupNames& names) {
  const int64_t limit = ReadNumber(JoinPath(directory, names.limit));
  const int64_t used = ReadNumber(JoinPath(directory, names.used));
  if (limit < 0 || used < 0) return kUnbounded;
  const int64_t idle = NumberBehind(JoinPath(directory, "memory.stat"), names.idle_pages);
  return std::max<int64_t>(0, limit - std::max<int64_t>(0, used - idle));
}

// Processors one group may use at once, rounded up.
int64_t ProcessorsOfGroup(const std::string& directory, bool old) {
  int64_t quota = -1, period = -1;
  if (old) {
    quota = ReadNumber(JoinPath(directory, "cpu.cfs_quota_us"));
    period = ReadNumber(JoinPath(directory, "cpu.cfs_period_us"));
  } else {
    std::ifstream(JoinPath(directory, "cpu.max")) >> quota >> period;  // "max 100000": no number
  }
  if (quota <= 0 || period <= 0) return kUnbounded;
  return (quota + period - 1) / period;
}

// The least of `measure(directory, old)` over the groups of this process that have a say in `controller`, and
// those around them.
template <typename Measure>
int64_t LeastOfGroups(const std::string& root, const std::string& controller, const Measure& measure) {
  int64_t least = kUnbounded;
  EachGroup(root, controller, [&](const std::string& directory, bool old) {
    least = std::min(least, measure(directory, old));
  });
  return least;
}

// True when so many seconds have passed since the call.
std::function<bool()> After(int64_t seconds) {
  return [end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds)] {
    return std::chrono::steady_clock::now() >= end;
  };
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

// 0 when it has no such line.
int64_t BytesOfMeminfo(const std::string& root, std::string_view wanted) {
  std::ifstream in(root + "/proc/meminfo");
  std::string key, unit;
  int64_t kib = 0;
  while (in >> key >> kib) {
    std::getline(in, unit);
    if (key == wanted) return kib * 1024;
  }
  return 0;
}

}  // namespace

int AvailableThreads(const std::string& root) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  // More threads than a group may run would wait for each other, in the middle of every product.
  const int64_t allowed = LeastOfGroups(root, "cpu", ProcessorsOfGroup);
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(CPU_COUNT(&set), allowed)));
}

int64_t MachineMemoryBytes(const std::string& root) {
  return BytesOfMeminfo(root, "MemTotal:") + BytesOfMeminfo(root, "SwapTotal:");
}

int64_t AvailableMemoryBytes(const std::string& root) {
  return std::min(BytesOfMeminfo(root, "MemAvailable:"),
                  LeastOfGroups(root, "memory", [](const std::string& directory, bool old) {
                    return RoomInGroup(directory, old ? kCgroup1 : kCgroup2);
                  }));
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

absl::StatusOr<HostShare> ShareHost(const HostQuestion& q) {
  constexpr int64_t kLeastBytes = int64_t{1} << 20;
  HostShare share;
  if (q.has_cpu && q.machine_bytes > 0 && q.asked_cpu_bytes > q.machine_bytes) {
    return Error::Field(
               Reason::kSpecInvalid, "--memory",
               absl::StrCat("is ", q.asked_cpu_bytes, " bytes, and this machine has ", q.machine_bytes,
                            " with its swap; the jobs that are admitted would not fit"))
        .ToStatus();
  }
  if (q.has_cpu) {
    share.cpu_bytes = q.asked_cpu_bytes > 0 ? q.asked_cpu_bytes
                      : q.gpus > 0          ? q.available_bytes / 2
                                            : std::max<int64_t>(0, q.available_bytes - kReserveBytes);
  }
  if (q.gpus == 0) return share;
  const int64_t rest_bytes = q.available_bytes - share.cpu_bytes;
  const int64_t pinned_bytes = q.asked_pinned_bytes > 0 ? q.asked_pinned_bytes : rest_bytes / 2;
  const int64_t host_bytes = rest_bytes - pinned_bytes - kReserveBytes;
  if (q.has_cpu && q.asked_cpu_bytes + q.asked_pinned_bytes > 0 && host_bytes < q.gpus * kLeastBytes) {
    return Error(Reason::kOutOfMemory,
                 absl::StrCat("this host has ", q.available_bytes, " bytes available now; ", share.cpu_bytes,
                              " for the processor's jobs, ", pinned_bytes,
                              " page-locked and a reserve of ", kReserveBytes,
                              " leave nothing for the jobs of GPUs; lower --memory or --pinned-memory"))
        .ToStatus();
  }
  share.pinned_bytes = std::max(kLeastBytes, pinned_bytes / q.gpus);
  share.host_bytes = std::max(kLeastBytes, host_bytes / q.gpus);
  return share;
}

absl::StatusOr<std::vector<GpuInfo>> ListGpus(const std::string& engine_binary,
                                              const std::string& log_file, std::string* why) {
  const int64_t before = SizeOf(log_file);
  ASSIGN_OR_RETURN(const HelperResult result,
                   RunHelper({engine_binary, "devices"}, log_file, After(DeviceOptions().limit_s)));
  const auto object = nlohmann::json::parse(result.output, nullptr, /*allow_exceptions=*/false);
  if (result.exit.code != 0 || !object.is_object() || !object.contains("devices") ||
      !object["devices"].is_array()) {
    return Error(Reason::kEngineFailed,
                 absl::StrCat(engine_binary, " devices ", result.exit.message, LastWords(log_file, before)))
        .ToStatus();
  }
  const auto text = [](const nlohmann::json& in, const char* key) {
    return in.is_object() && in.contains(key) && in[key].is_string() ? in[key].get<std::string>() : "";
  };
  *why = text(object, "why");
  std::vector<GpuInfo> gpus;
  for (const auto& entry : object["devices"]) {
    GpuInfo gpu{text(entry, "device"), text(entry, "uuid"),       text(entry, "name"), 0,
                text(entry, "capability"), text(entry, "driver")};
    if (entry.contains("memory_bytes") && entry["memory_bytes"].is_number_integer()) {
      gpu.memory_bytes = entry["memory_bytes"].get<int64_t>();
    }
    if (!gpu.device.empty()) gpus.push_back(std::move(gpu));
  }
  return gpus;
}

absl::StatusOr<std::vector<std::string>> ResolveDevices(const std::vector<std::string>& words,
                                                        const std::vector<GpuInfo>& gpus,
                                                        const std::string& why) {
  std::vector<std::string> devices;
  for (const std::string& word : words) {
    if (word != "auto" && word != "cuda") {
      devices.push_back(word);
      continue;
    }
    for (const GpuInfo& gpu : gpus) devices.push_back(gpu.device);
    if (gpus.empty() && word == "auto") devices.push_back("cpu");
    if (gpus.empty() && word == "cuda") {
      return Error::Field(Reason::kSpecInvalid, "--device", absl::StrCat("is cuda, but ", why))
          .ToStatus();
    }
  }
  for (size_t i = 0; i < devices.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (DeviceId(devices[i]) != DeviceId(devices[j])) continue;
      return Error::Field(Reason::kSpecInvalid, "--device",
                          absl::StrCat("names ", DeviceId(devices[i]), " twice"))
          .ToStatus();
    }
  }
  return devices;
}

std::string DeviceId(const std::string& device) {
  const std::string name = device.substr(0, device.find(','));
  const size_t colon = name.find(':');
  // "cpu:avx2" is the processor still.
  if (colon == std::string::npos || !absl::ascii_isdigit(static_cast<unsigned char>(name.back()))) {
    return name.substr(0, colon) + "0";
  }
  return name.rfind("cpu:", 0) == 0 ? "cpu0" : name.substr(0, colon) + name.substr(colon + 1);
}

absl::StatusOr<DeviceInfo> MeasureDevice(const DeviceOptions& options,
                                         const std::vector<GpuInfo>& gpus) {
  const int threads = options.threads > 0 ? options.threads : AvailableThreads();
  const int64_t before = SizeOf(options.log_file);
  ASSIGN_OR_RETURN(const HelperResult result,
                   RunHelper({options.engine_binary, "profile", "--device", options.device,
                              "--threads", absl::StrCat(threads)},
                             options.log_file, After(options.limit_s)));
  if (result.cancelled) {
    return Error(Reason::kDeviceFault, absl::StrCat(options.device, " does not answer within ",
                                                    options.limit_s, " s; see ", options.log_file))
        .ToStatus();
  }
  if (result.exit.code != 0) {
    return Error(Reason::kEngineFailed,
                 absl::StrCat(options.engine_binary, " profile ", result.exit.message,
                              LastWords(options.log_file, before)))
        .ToStatus();
  }
  DeviceInfo device;
  const std::string text(absl::StripAsciiWhitespace(result.output));
  ASSIGN_OR_RETURN(device.profile, spec::DeviceProfileFromJson(text));
  device.id = DeviceId(options.device);
  if (options.device.rfind("cuda", 0) == 0) {
    for (const GpuInfo& gpu : gpus) {
      if (DeviceId(gpu.device) != device.id) continue;
      device.description = absl::StrCat(
          gpu.name, ", ", absl::StrFormat("%.1f", static_cast<double>(gpu.memory_bytes) / (1 << 30)),
          " GiB, compute capability ", gpu.capability, ", ", gpu.uuid, ", driver ", gpu.driver);
      device.uuid = gpu.uuid;
    }
    device.profile.pinned_capacity_bytes = options.pinned_bytes;
    device.profile.host_capacity_bytes = options.host_bytes;
    if (options.memory_bytes > 0) {
      device.profile.capacity_bytes =
          std::min(device.profile.capacity_bytes, options.memory_bytes);
    }
  } else {
    device.description = ProcessorName();
    device.profile.capacity_bytes = options.memory_bytes;
  }
  if (device.profile.capacity_bytes <= device.profile.fixed_bytes) {
    return Error(Reason::kOutOfMemory,
                 absl::StrCat("this worker would offer ", device.profile.capacity_bytes,
                              " bytes, and an engine alone takes ", device.profile.fixed_bytes,
                              "; free memory, or say --memory"))
        .ToStatus();
  }
  return device;
}

absl::Status ProbeDevice(const std::string& engine_binary, const std::string& device,
                         const std::string& log_file, const std::function<bool()>& cancelled) {
  ASSIGN_OR_RETURN(const HelperResult result,
                   RunHelper({engine_binary, "profile", "--device", device, "--threads", "1"}, log_file,
                             cancelled));
  if (result.exit.code == 0 && !result.cancelled) return absl::OkStatus();
  return Error(Reason::kDeviceFault,
               result.cancelled ? absl::StrCat(device, " does not answer")
                                : absl::StrCat(device, " does not open: nibble-engine ", result.exit.message))
      .ToStatus();
}

}  // namespace nibble::worker

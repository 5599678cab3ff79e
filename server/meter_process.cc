#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/file.h"
#include "server/meter_families.h"

namespace nibble::server {
namespace {

// Field `index` (from 0) after the command name in /proc/self/stat.
double StatField(const std::string& stat, int index) {
  const size_t end = stat.rfind(')');
  if (end == std::string::npos) return 0;
  const char* at = stat.c_str() + end + 2;
  for (int i = 0; i < index && at; ++i) {
    at = std::strchr(at, ' ');
    if (at) ++at;
  }
  return at ? std::strtod(at, nullptr) : 0;
}

double BootTimeSeconds() {
  const auto text = ReadFile("/proc/stat", 1 << 22);
  if (!text.ok()) return 0;
  const size_t at = text->find("\nbtime ");
  return at == std::string::npos ? 0 : std::strtod(text->c_str() + at + 7, nullptr);
}

int64_t OpenDescriptors() {
  DIR* directory = opendir("/proc/self/fd");
  if (!directory) return 0;
  int64_t count = 0;
  while (readdir(directory)) ++count;
  closedir(directory);
  return count - 3;  // ".", ".." and the one that reads them
}

}  // namespace

void AddProcess(Families& families) {
  const auto stat = ReadFile("/proc/self/stat", 1 << 16);
  if (!stat.ok()) return;
  const double ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  static const double boot_seconds = BootTimeSeconds();
  families.Add("process_cpu_seconds_total", {}, (StatField(*stat, 11) + StatField(*stat, 12)) / ticks);
  families.Add("process_threads", {}, StatField(*stat, 17));
  families.Add("process_start_time_seconds", {}, boot_seconds + StatField(*stat, 19) / ticks);
  families.Add("process_virtual_memory_bytes", {}, StatField(*stat, 20));
  families.Add("process_resident_memory_bytes", {},
               StatField(*stat, 21) * static_cast<double>(sysconf(_SC_PAGESIZE)));
  families.Add("process_open_fds", {}, static_cast<double>(OpenDescriptors()));
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    families.Add("process_max_fds", {}, static_cast<double>(limit.rlim_cur));
  }
}

}  // namespace nibble::server

#include "worker/memory_kills.h"

#include <fstream>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "worker/cgroups.h"

namespace nibble::worker {
namespace {

// Of a file with a name and a number in each line; -1 where there is no such line.
int64_t NumberBehind(const std::string& path, std::string_view key) {
  std::ifstream in(path);
  std::string name;
  int64_t value = 0;
  while (in >> name >> value) {
    if (name == key) return value;
  }
  return -1;
}

constexpr char kNoMemory[] = ": no memory was left (--memory offers less of it)";

}  // namespace

MemoryKills CountMemoryKills(const std::string& root) {
  MemoryKills kills;
  kills.machine = NumberBehind(root + "/proc/vmstat", "oom_kill");
  // The innermost that counts: one that is not there is a path of the host, seen from a container.
  EachGroup(root, "memory", [&](const std::string& directory, bool old) {
    const char* file = old ? "memory.oom_control" : "memory.events";
    if (kills.group < 0) kills.group = NumberBehind(JoinPath(directory, file), "oom_kill");
  });
  return kills;
}

KillCause CauseOfKill(const MemoryKills& before, const MemoryKills& after) {
  if (before.group >= 0 && after.group >= 0) {
    if (after.group > before.group) {
      return {true, absl::StrCat(", and the oom_kill count of its cgroup rose from ", before.group, " to ",
                                 after.group, kNoMemory)};
    }
    return {false, absl::StrCat(" by someone: the oom_kill count of its cgroup is still ", after.group)};
  }
  if (before.machine >= 0 && after.machine >= 0) {
    if (after.machine > before.machine) {
      return {true, absl::StrCat(", and this machine's oom_kill count rose from ", before.machine, " to ",
                                 after.machine, kNoMemory)};
    }
    return {false, absl::StrCat(" by someone: this machine's oom_kill count is still ", after.machine)};
  }
  return {false, " by someone, or for want of memory: this kernel does not count such kills"};
}

}  // namespace nibble::worker

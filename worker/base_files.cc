#include "worker/base_files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <string_view>
#include <vector>

#include "base/digest.h"
#include "base/file.h"
#include "base/log.h"

namespace nibble::worker {
namespace {

constexpr std::string_view kPrefix = "base-", kUnfinished = ".tmp";

struct Base {
  std::string path;
  int64_t used_us = 0;
  int64_t bytes = 0;  // on the disk
};

// "base-<digest>", and ".tmp" behind it while it is being made.
bool IsBase(std::string_view name, bool& unfinished) {
  if (!name.starts_with(kPrefix)) return false;
  name.remove_prefix(kPrefix.size());
  unfinished = name.ends_with(kUnfinished);
  if (unfinished) name.remove_suffix(kUnfinished.size());
  return IsSha256Hex(name);
}

bool RemoveUnused(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const bool removed = flock(fd, LOCK_EX | LOCK_NB) == 0 && unlink(path.c_str()) == 0;
  close(fd);
  if (removed) unlink((path + ".sum").c_str());
  return removed;
}

}  // namespace

int64_t ShrinkBases(const std::string& directory, int64_t max_bytes) {
  // Two at a time would count what the other removes, and remove more.
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  const auto names = ListDir(directory);
  if (!names.ok()) return 0;
  std::vector<Base> bases;
  int64_t total = 0;
  for (const std::string& name : *names) {
    bool unfinished = false;
    struct stat info {};
    const std::string path = JoinPath(directory, name);
    if (!IsBase(name, unfinished) || stat(path.c_str(), &info) != 0) continue;
    if (unfinished && RemoveUnused(path)) continue;
    bases.push_back({path, info.st_mtim.tv_sec * 1'000'000 + info.st_mtim.tv_nsec / 1000,
                     int64_t{info.st_blocks} * 512});
    total += bases.back().bytes;
  }
  std::sort(bases.begin(), bases.end(),
            [](const Base& a, const Base& b) { return a.used_us < b.used_us; });
  for (const Base& base : bases) {
    if (total <= max_bytes) break;
    if (!RemoveUnused(base.path)) continue;
    LogInfo("base.removed", {{"file", BaseName(base.path)}, {"bytes", base.bytes}});
    total -= base.bytes;
  }
  return total;
}

}  // namespace nibble::worker

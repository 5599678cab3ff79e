#include "worker/cgroups.h"

#include <algorithm>
#include <fstream>
#include <vector>

#include "absl/strings/str_split.h"

namespace nibble::worker {

void EachGroup(const std::string& root, const std::string& controller,
               const std::function<void(const std::string& directory, bool old)>& look) {
  std::ifstream in(root + "/proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    const std::vector<std::string> controllers = absl::StrSplit(parts[1], ',');
    const bool old = std::find(controllers.begin(), controllers.end(), controller) != controllers.end();
    if (!old && line.rfind("0::", 0) != 0) continue;
    const std::string mount = root + "/sys/fs/cgroup" + (old ? "/" + controller : "");
    for (std::string path = parts[2];; path.resize(path.rfind('/'))) {
      look(mount + path, old);
      if (path.empty() || path.find('/') == std::string::npos) break;
    }
  }
}

}  // namespace nibble::worker

// The control groups this process is in, as /proc and /sys/fs/cgroup show them.
//
// Inside a container the path may be one of the host, which is not there: then the mount itself is the
// container's group. `root` is where /proc and /sys are, for tests.
#pragma once

#include <functional>
#include <string>

namespace nibble::worker {

// Calls `look(directory, old)` for each group of this process that has a say in `controller`, from its own
// outwards; `old` = of version 1.
void EachGroup(const std::string& root, const std::string& controller,
               const std::function<void(const std::string& directory, bool old)>& look);

}  // namespace nibble::worker

// Whether a process that was killed was killed by the kernel, for want of memory.
//
// A kill by the kernel and one by anybody else look the same to who waits for the process. What differs are
// the kernel's counts: of the control group that the process was in, and of the whole machine. The group's
// decides; the machine's, in which processes of others are counted too, only where there is no group.
#pragma once

#include <cstdint>
#include <string>

namespace nibble::worker {

// Processes the kernel has killed for memory so far; -1 where it does not say.
struct MemoryKills {
  int64_t group = -1;    // of this process's own control group
  int64_t machine = -1;  // on this machine
};
// `root` is where /proc and /sys are, for tests.
MemoryKills CountMemoryKills(const std::string& root = "");

struct KillCause {
  bool out_of_memory = false;
  std::string words;  // goes on after "was ended by signal 9 (Killed)"
};
// What was counted a little before a process ended of SIGKILL, and right after.
KillCause CauseOfKill(const MemoryKills& before, const MemoryKills& after);

}  // namespace nibble::worker

// Whether a process that was killed was killed by the kernel, for want of memory.
//
// A kill by the kernel and one by anybody else look the same to who waits for the process. What differs are
// the kernel's counts: of the control group that the process was in, and of the whole machine. The group's
// decides; the machine's, in which processes of others are counted too, only where there is no group.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace nibble::worker {

// Processes the kernel has killed for memory so far; -1 where it does not say.
struct MemoryKills {
  int64_t group = -1;    // of this process's own control group
  int64_t machine = -1;  // on this machine
};
// `root` is where /proc and /sys are, for tests.
MemoryKills CountMemoryKills(const std::string& root = "");

// The last count that a process is known to have outlived. A count taken after its words were read proves
// nothing by itself: it may have been killed between the two, and be in the count. It outlived the count if
// it says something more, that was not on its way before.
class KillsBefore {
 public:
  explicit KillsBefore(const MemoryKills& at_start) : outlived_(at_start) {}
  // Called before anything else is done with what was read.
  void Heard() {
    if (unproven_) outlived_ = *unproven_;
    unproven_.reset();
  }
  // nothing_unread: asked after `kills` were counted.
  void Counted(const MemoryKills& kills, bool nothing_unread) {
    if (nothing_unread) unproven_ = kills;
  }
  const MemoryKills& outlived() const { return outlived_; }

 private:
  MemoryKills outlived_;
  std::optional<MemoryKills> unproven_;
};

struct KillCause {
  bool out_of_memory = false;
  std::string words;  // goes on after "was ended by signal 9 (Killed)"
};
// What was counted a little before a process was killed, and right after it has ended.
KillCause CauseOfKill(const MemoryKills& before, const MemoryKills& after);

}  // namespace nibble::worker

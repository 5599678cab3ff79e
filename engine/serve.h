// nibble-engine serve: one frozen base on one device, jobs of a worker in turns.
//
// One driving thread takes commands and turns; a reader thread turns lines into commands, the
// output ring's thread writes. The data of a job that attaches is read beside turns, on threads of its own
// (preparer.h); between two turns it joins. End of file ends the process at once: without its worker nobody
// wants the result, and what is on disk is complete at every moment.
//
// A turn may be long (a step of a large model on a processor takes minutes), so a command to let go does not
// wait for its end: inside a turn, before every block of the model, commands are looked at. Who is to detach
// and does not have the turn does so at once; who has it gives the step up, and is saved as it was after the
// step before. On a GPU that is so between micro-batches, for who has the turn. All else waits for its end.
// Likewise while the base is made, which is given up when the only attempt that waits for it is let go.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/clock.h"
#include "engine/device.h"

namespace nibble::engine {

struct ServeOptions {
  int fd = 3;                 // socket to the worker
  std::string lock_path;      // held while we run, one engine per device; empty = none
  int lock_wait_ms = 10'000;  // for the engine before us, which may be on its way out
  bool fuse = true;           // jobs of short micro-batches may share turns; false: to compare
  int64_t disk_retry_us = 30'000'000;  // what a full disk held up is tried again after this
  // Asked wherever a turn looks at commands, with whose turn it is and how many steps the first of them has
  // done. True: the turn stays there until a command comes, or a job is ready to join, unless that was so in
  // it already; an attach alone does not end it. So a test need not be quicker than a step. Also asked while
  // the base is made, with the attempt it is made for and -1; any command ends that.
  std::function<bool(const std::vector<std::string>& attempts, int64_t steps_done)> waits_in_turn;
  const Clock* clock = &RealClock::Get();  // turns are charged by it, among other things
  DeviceOptions device;
};

// Returns after a shutdown command.
absl::Status Serve(const ServeOptions& options);

}  // namespace nibble::engine

// nibble-engine serve: one frozen base on one device, jobs of a worker in turns.
//
// One driving thread takes commands and turns; a reader thread turns lines into commands, the
// output ring's thread writes. End of file ends the process at once: without its worker nobody
// wants the result, and what is on disk is complete at every moment.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "engine/device.h"

namespace nibble::engine {

struct ServeOptions {
  int fd = 3;                 // socket to the worker
  std::string lock_path;      // held while we run, one engine per device; empty = none
  int lock_wait_ms = 10'000;  // for the engine before us, which may be on its way out
  bool fuse = true;           // jobs of short micro-batches may share turns; false: to compare
  DeviceOptions device;
};

// Returns after a shutdown command.
absl::Status Serve(const ServeOptions& options);

}  // namespace nibble::engine

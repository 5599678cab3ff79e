// Ctrl-C and SIGTERM: what a command that takes long says when it is stopped, so that nobody has to guess
// what became of the work. The handlers are the process's: one thread sets them up.
#pragma once

#include <string>

#include "client/output.h"

namespace nibble::client {

// While one lives, the first Ctrl-C or SIGTERM clears the line that is being drawn, says `note` (a whole
// sentence) on stderr unless quiet, and ends the process with 128 + the signal's number: whatever call it is
// in, and whether or not the server answers. One at a time; the destructor restores what was before.
class InterruptNote {
 public:
  InterruptNote(const Terminal& terminal, const std::string& note);
  ~InterruptNote();
  InterruptNote(const InterruptNote&) = delete;
  InterruptNote& operator=(const InterruptNote&) = delete;
};

// For loops that end by themselves: from here on Interrupted() is true once SIGINT or SIGTERM came. A second
// one ends the process with 130 at once.
void InstallInterrupt();
bool Interrupted();

}  // namespace nibble::client

// Who is at fault when the process dies of a signal, where that is not the attempt whose turn it is.
//
// A worker blames the attempt that the last `turn` line names (docs/engine-protocol.md). What reads a job's
// data beside the turns of others says here whose it is: a fatal signal on its thread sends such a line
// first, so that no neighbour pays for a reader that crashes. The kernel's SIGKILL tells nobody.
#pragma once

#include <string>
#include <string_view>

namespace nibble::engine {

// As long as it lives, this thread works for that attempt.
class CrashLine {
 public:
  explicit CrashLine(std::string_view attempt);
  ~CrashLine();
  CrashLine(const CrashLine&) = delete;
  CrashLine& operator=(const CrashLine&) = delete;

 private:
  const std::string line_;
};

// Sends them to this socket from now on, for the life of the process; then the signal takes its course.
void SendCrashLinesTo(int fd);

}  // namespace nibble::engine

// A child process of `nibble up`: started with its output in a log file, stopped with grace.
//
// Children die with this process (PR_SET_PDEATHSIG) and sit in process groups of their own, so that
// a Ctrl-C reaches them once, through us. One thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace nibble::client {

class Child {
 public:
  Child() = default;
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  absl::Status Start(const std::vector<std::string>& arguments, const std::string& log_file);
  // False once it has ended; `how` then says how.
  bool Running();
  const std::string& how() const { return how_; }
  // It ended in a way that another start would repeat: not to be executed, bad flags (2), its name
  // taken (3).
  bool hopeless() const { return hopeless_; }
  void Signal(int signal);
  // SIGTERM, then SIGKILL after `grace_ms`; returns when the process is gone. A second `hurry()`
  // call from the caller's own signal makes it kill at once.
  void Stop(int64_t grace_ms, bool (*hurry)());
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
  std::string how_;
  bool hopeless_ = false;
};

}  // namespace nibble::client

// A child of `nibble up` that is started again when it ends by itself: what runs unattended must
// outlive a crash, or the kernel's choice of a process to kill.
//
// Not when another try would end the same way (flags it does not take, its name taken by another
// process). The wait before a start doubles from a second to a minute while it does not stay up.
// Its log is cut when it has grown large. One thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/child.h"

namespace nibble::client {

class KeptChild {
 public:
  KeptChild(std::string name, std::string log_file)
      : name_(std::move(name)), log_file_(std::move(log_file)) {}

  absl::Status Start(std::vector<std::string> arguments);
  // Of a child that should go on elsewhere than where it was told first.
  void set_arguments(std::vector<std::string> arguments) { arguments_ = std::move(arguments); }
  bool Running() { return child_.Running(); }
  // To be called every moment or so. A sentence for people when something has happened; an error
  // when the child is gone for good.
  absl::StatusOr<std::string> Keep(int64_t now_us);
  // How it ended and the last lines it wrote.
  std::string Obituary() const;
  Child& child() { return child_; }

 private:
  void CutLog(int64_t now_us);

  const std::string name_;
  const std::string log_file_;
  std::vector<std::string> arguments_;
  Child child_;
  int64_t started_us_ = 0;
  int64_t log_from_ = 0;  // where the log of this start begins
  int64_t again_us_ = 0;  // 0 = it runs
  int64_t wait_us_ = 0;
  int64_t next_look_us_ = 0;
};

}  // namespace nibble::client

// While one lives, no file of this process grows beyond `bytes`: to what writes, the disk is full. A limit of
// the whole process: tests that use it do nothing else meanwhile.
#pragma once

#include <sys/resource.h>

#include <csignal>
#include <cstdint>

#include "base/error.h"
#include "base/status.h"

namespace nibble::engine {

class FullDisk {
 public:
  explicit FullDisk(int64_t bytes) {
    handler_ = std::signal(SIGXFSZ, SIG_IGN);
    CHECK(getrlimit(RLIMIT_FSIZE, &before_) == 0);
    rlimit limit = before_;
    limit.rlim_cur = static_cast<rlim_t>(bytes);
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
  }
  ~FullDisk() {
    CHECK(setrlimit(RLIMIT_FSIZE, &before_) == 0);
    std::signal(SIGXFSZ, handler_);
  }
  FullDisk(const FullDisk&) = delete;
  FullDisk& operator=(const FullDisk&) = delete;

 private:
  rlimit before_;
  void (*handler_)(int);
};

}  // namespace nibble::engine

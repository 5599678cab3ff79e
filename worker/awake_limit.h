// A limit on time in which somebody looked.
//
// What a machine sleeps through, or a process is stopped for, is in no limit that is kept by asking: nobody
// else had that time either. Pure; not thread-safe.
#pragma once

#include <cstdint>

namespace nibble::worker {

class AwakeLimit {
 public:
  // Asked again and again from now on; `sleep_us` and more between two questions do not count (0: all do).
  AwakeLimit(int64_t limit_us, int64_t sleep_us, int64_t now_us)
      : end_us_(now_us + limit_us), sleep_us_(sleep_us), last_us_(now_us) {}

  bool Passed(int64_t now_us) {
    const int64_t since_us = now_us - last_us_;
    last_us_ = now_us;
    if (sleep_us_ > 0 && since_us >= sleep_us_) end_us_ += since_us;
    return now_us >= end_us_;
  }

 private:
  int64_t end_us_;
  const int64_t sleep_us_;
  int64_t last_us_;
};

}  // namespace nibble::worker

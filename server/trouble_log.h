// When to say that an operation fails: whoever reads the server's log should not have to ask its callers.
//
// Says so when it begins, once a minute while it goes on, and when it has ended. What works now and then
// (small uploads on a disk that has no room for large ones) has not ended. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

namespace nibble::server {

class TroubleLog {
 public:
  enum class Say { kNothing, kFails, kWorksAgain };
  struct Verdict {
    Say say = Say::kNothing;
    int64_t after_us = 0;  // how long it had failed, when it works again
  };
  // How the operation ended, and so what to say.
  Verdict Note(const std::string& operation, bool failed, int64_t now_us);

 private:
  struct Trouble {
    int64_t since_us = 0;
    int64_t last_us = 0;
    int64_t said_us = 0;
  };
  std::mutex mutex_;
  std::map<std::string, Trouble> troubles_;  // by operation
};

}  // namespace nibble::server

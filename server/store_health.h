// Whether the databases can be written, for those who read: what they are shown may be old while they cannot.
// Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "absl/status/status.h"

namespace nibble::server {

class StoreHealth {
 public:
  // How an operation that writes ended.
  void Note(const std::string& operation, const absl::Status& status, int64_t now_us);
  // In words for anybody; "" while nothing is known to fail. What has not been tried again for half a minute
  // counts as mended: nobody knows.
  std::string Trouble(int64_t now_us) const;

 private:
  struct Failure {
    int64_t since_us = 0;
    int64_t last_us = 0;
    bool full = false;
  };
  mutable std::mutex mutex_;
  std::map<std::string, Failure> failures_;  // by operation; of those whose last try failed
};

}  // namespace nibble::server

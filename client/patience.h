// How long something that is under way puts up with a server that is away: a transfer of gigabytes,
// a script that waits for a job. One thread.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "client/client.h"

namespace nibble::client {

// The server does not answer; it may later. Not one whose certificate is refused.
bool IsAway(const absl::Status& status);

class Patience {
 public:
  explicit Patience(const Client& client) : client_(client) {}

  // Something came of it: all is forgotten.
  void Reset();
  // After a try that brought nothing: waits a moment and says whether there should be another. A
  // server that has answered before and does not now is tried for options().patience_ms, anything else a few
  // times.
  bool Again(const absl::Status& why);

 private:
  const Client& client_;
  int tries_ = 0;
  int64_t since_us_ = 0;  // of the first in a row
};

}  // namespace nibble::client

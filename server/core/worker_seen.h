// When a worker was last heard of: in its row with whatever else is written, and worth a row of its own now
// and then, but never a commit. Used by Apply alone.
#pragma once

#include <cstdlib>

#include "server/core/state.h"

namespace nibble::core {

inline constexpr int64_t kSeenStoredUs = 600 * kSecondUs;

inline void Seen(State* state, Worker* worker, const Now& now) {
  worker->last_seen_unix_us = now.unix_us;
  if (std::abs(now.unix_us - worker->stored_seen_unix_us) < kSeenStoredUs) return;
  worker->stored_seen_unix_us = now.unix_us;
  state->touched.seen.insert(worker->id);
}

// What rows from before these were stored lack is counted from the start of the server.
inline void SeenAtStart(State* state, Worker* worker, const Now& now) {
  if (worker->last_seen_unix_us == 0) worker->last_seen_unix_us = now.unix_us;
  worker->stored_seen_unix_us = worker->last_seen_unix_us;
  if (!worker->lost || worker->lost_unix_us != 0) return;
  worker->lost_unix_us = now.unix_us;
  state->touched.workers.insert(worker->id);
}

}  // namespace nibble::core

// How long a worker that is to go waits for the server: two minutes for it to take what is here, and once
// nothing is, five seconds for it to hear so.
//
// Pure; not thread-safe.
#pragma once

#include <cstdint>
#include <optional>

namespace nibble::worker {

class DrainLimit {
 public:
  static constexpr int64_t kDrainUs = 120'000'000;
  static constexpr int64_t kIdleUs = 5'000'000;

  void Begin(int64_t now_us) { since_us_ = now_us; }
  bool begun() const { return since_us_.has_value(); }
  // Asked again and again, with the attempts that are here.
  bool Passed(int64_t attempts, int64_t now_us) {
    if (attempts > 0) idle_since_us_.reset();
    if (!since_us_) return false;
    if (attempts > 0) return now_us - *since_us_ > kDrainUs;
    if (!idle_since_us_) idle_since_us_ = now_us;
    return now_us - *idle_since_us_ > kIdleUs;
  }

 private:
  std::optional<int64_t> since_us_;
  std::optional<int64_t> idle_since_us_;  // in the drain
};

}  // namespace nibble::worker

// One clock, one generator, one queue of things to come: all there is of time and chance in a run.
//
// Everything that happens is a function called at a simulated time; equal times run in the order
// they were asked for. `Trace` folds what happened into a hash, so that two runs of a seed can be
// compared.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "base/clock.h"
#include "base/random.h"

namespace nibble::sim {

inline constexpr int64_t kMs = 1'000;
inline constexpr int64_t kSecond = 1'000'000;

// The monotonic clock of the run, and a wall clock that somebody sets now and then.
class SkewedClock : public SimClock {
 public:
  int64_t NowUnixUs() const override { return NowMonotonicUs() + skew_us_; }
  void SetSkew(int64_t skew_us) { skew_us_ = skew_us; }

 private:
  int64_t skew_us_ = 0;
};

class World {
 public:
  explicit World(uint64_t seed) : rng_(seed) {}

  const Clock& clock() const { return clock_; }
  void SetWallClock(int64_t skew_us) { clock_.SetSkew(skew_us); }
  int64_t now_us() const { return clock_.NowMonotonicUs(); }
  Random& rng() { return rng_; }

  void After(int64_t delay_us, std::function<void()> what) {
    queue_.emplace(std::make_pair(now_us() + (delay_us > 0 ? delay_us : 0), next_++),
                   std::move(what));
  }
  // Runs what is due until `until_us`, or until `stop` says so; false when it said so.
  bool RunUntil(int64_t until_us, const std::function<bool()>& stop) {
    while (!queue_.empty() && queue_.begin()->first.first <= until_us) {
      auto node = queue_.extract(queue_.begin());
      clock_.AdvanceUs(node.key().first - now_us());
      node.mapped()();
      ++steps_;
      if (stop()) return false;
    }
    if (now_us() < until_us) clock_.AdvanceUs(until_us - now_us());
    return true;
  }

  // Everything is stopped for so long: time passes, and whatever was to come comes that much later.
  void Sleep(int64_t us) {
    std::map<std::pair<int64_t, int64_t>, std::function<void()>> later;
    for (auto& [key, what] : queue_)
      later.emplace(std::make_pair(key.first + us, key.second), std::move(what));
    queue_ = std::move(later);
    clock_.AdvanceUs(us);
  }

  void Trace(std::string_view what) {
    for (const char c : what) hash_ = (hash_ ^ static_cast<unsigned char>(c)) * 1099511628211u;
    hash_ = (hash_ ^ static_cast<uint64_t>(now_us())) * 1099511628211u;
    if (verbose_) Print(what);
  }
  void set_verbose(bool verbose) { verbose_ = verbose; }
  uint64_t hash() const { return hash_; }
  int64_t steps() const { return steps_; }

 private:
  void Print(std::string_view what) const;

  SkewedClock clock_;
  Random rng_;
  std::map<std::pair<int64_t, int64_t>, std::function<void()>> queue_;
  int64_t next_ = 0;
  int64_t steps_ = 0;
  uint64_t hash_ = 14695981039346656037u;
  bool verbose_ = false;
};

}  // namespace nibble::sim

// Time, as something one is given.
//
// The quiet rooms never read a clock: they get `now` in their input. Everything else takes a Clock, so
// that tests can hold the time still. Implementations are thread-safe.
#pragma once

#include <atomic>
#include <cstdint>

namespace nibble {

class Clock {
 public:
  virtual ~Clock() = default;
  // Wall clock, microseconds since the Unix epoch. For people only; may jump.
  virtual int64_t NowUnixUs() const = 0;
  // CLOCK_BOOTTIME, microseconds: never goes back, counts suspended time. Every deadline uses it.
  virtual int64_t NowMonotonicUs() const = 0;
};

class RealClock : public Clock {
 public:
  static const RealClock& Get();
  int64_t NowUnixUs() const override;
  int64_t NowMonotonicUs() const override;
};

// Stands still until told.
class SimClock : public Clock {
 public:
  explicit SimClock(int64_t start_us = 1'700'000'000'000'000) : now_us_(start_us) {}
  int64_t NowUnixUs() const override { return now_us_; }
  int64_t NowMonotonicUs() const override { return now_us_; }
  void AdvanceUs(int64_t us) { now_us_ += us; }

 private:
  std::atomic<int64_t> now_us_;
};

}  // namespace nibble

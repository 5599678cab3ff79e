#include "base/clock.h"

#include <time.h>

namespace nibble {
namespace {
int64_t ReadUs(clockid_t id) {
  timespec ts;
  clock_gettime(id, &ts);
  return int64_t{ts.tv_sec} * 1'000'000 + ts.tv_nsec / 1000;
}
}  // namespace

const RealClock& RealClock::Get() {
  static const RealClock clock;
  return clock;
}
int64_t RealClock::NowUnixUs() const { return ReadUs(CLOCK_REALTIME); }
int64_t RealClock::NowMonotonicUs() const { return ReadUs(CLOCK_BOOTTIME); }

}  // namespace nibble

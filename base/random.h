// The one seeded generator (splitmix64), for tests, the simulator and jitter. Not for numerics: those
// are counter-based and live in the kernels. Not thread-safe.
#pragma once

#include <cstdint>

namespace nibble {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next();
  // Uniform in [0, bound); bound > 0.
  uint64_t Below(uint64_t bound);
  // Uniform in [low, high].
  int64_t Between(int64_t low, int64_t high);
  // Uniform in [0, 1).
  double Unit();
  bool Chance(double probability) { return Unit() < probability; }

 private:
  uint64_t state_;
};

// A seed from the operating system; for ids and tokens.
uint64_t SystemEntropy();

}  // namespace nibble

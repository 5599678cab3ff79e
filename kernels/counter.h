// Counter-based randomness: a pure function of (seed, stream, index), so there is no state to save and
// recomputation, resume and every backend see the same bits.
#pragma once

#include <cstdint>

namespace nibble::kernels {

// splitmix64's finalizer over a keyed counter.
constexpr uint64_t CounterMix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// What (seed, stream) come to; many indices may then share it.
constexpr uint64_t CounterKey(uint64_t seed, uint64_t stream) {
  return CounterMix(seed + 0x9E3779B97F4A7C15ull * (stream + 1));
}

constexpr uint64_t CounterBitsOf(uint64_t key, uint64_t index) {
  return CounterMix(key + 0x9E3779B97F4A7C15ull * (index + 1));
}

constexpr uint64_t CounterBits(uint64_t seed, uint64_t stream, uint64_t index) {
  return CounterBitsOf(CounterKey(seed, stream), index);
}

// Uniform in [0, 1) with 24 bits, exact in float.
constexpr float CounterUniformOf(uint64_t bits) { return static_cast<float>(bits >> 40) * 0x1.0p-24f; }

constexpr float CounterUniform(uint64_t seed, uint64_t stream, uint64_t index) {
  return CounterUniformOf(CounterBits(seed, stream, index));
}

// True when the element survives dropout with probability 1 - p.
constexpr bool CounterKeep(uint64_t seed, uint64_t stream, uint64_t index, float p) {
  return CounterUniform(seed, stream, index) >= p;
}
constexpr bool CounterKeepOf(uint64_t key, uint64_t index, float p) {
  return CounterUniformOf(CounterBitsOf(key, index)) >= p;
}

}  // namespace nibble::kernels

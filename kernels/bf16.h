// bfloat16 as a storage type: the upper half of a float, rounded to nearest even.
//
// Always inlined: these are used in files compiled for different instruction sets, and no copy compiled
// for one may end up serving another.
#pragma once

#include <bit>
#include <cstdint>

namespace nibble::kernels {

struct BF16 {
  uint16_t bits;
};

__attribute__((always_inline)) inline float ToFloat(BF16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

__attribute__((always_inline)) inline BF16 ToBF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u)  // NaN stays NaN
    return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16)};
}

}  // namespace nibble::kernels

// IEEE half precision as a storage type: nearest even, subnormals kept, too large becomes infinite.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace nibble::kernels {

struct FP16 {
  uint16_t bits;
};

inline float ToFloat(FP16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t exponent = value.bits >> 10 & 31u, mantissa = value.bits & 1023u;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000u | mantissa << 13);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

inline FP16 ToFP16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return {static_cast<uint16_t>(sign | 0x7E00u)};
  if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7C00u)};
  if (magnitude < 0x1p-14f)  // subnormal, or rounds up to the smallest normal
    return {static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24f)))};
  const uint32_t rounded = (bits & 0x7FFFFFFFu) + 0xFFFu + (bits >> 13 & 1);
  return {static_cast<uint16_t>(sign | ((rounded >> 13) - (112u << 10)))};
}

}  // namespace nibble::kernels

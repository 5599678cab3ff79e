// 8-bit moments: a value's code and what is needed for it, the same bits as ref/adam8.h with fewer
// instructions.
#pragma once

#include <cmath>

#include "kernels/cuda/levels.h"

namespace nibble::kernels::NIBBLE_CUDA {

// A map, the midpoints between its entries, and how many of these are below each value, in shared memory.
//
// A search among 256 midpoints is eight steps, each a read from shared memory where lanes meet in few banks.
// So magnitudes up to 1 are sorted by exponent and first bits of the mantissa into buckets of which none has
// more than one midpoint (kernels/nf4.h's maps, whose decades are divided evenly): what is below a bucket is
// known, and one comparison tells the rest.
template <bool kSigned>
struct Map {
  static constexpr unsigned kBits = kSigned ? 6 : 7;  // of the mantissa
  static constexpr unsigned kFirst = (127 - 23) << kBits;  // what is below 2^-23 has no midpoint
  static constexpr unsigned kBuckets = (23 << kBits) + 1;
  float entries[256];
  Midpoints<256> points;
  uint8_t below[kSigned ? 2 * kBuckets : kBuckets];  // of positive values, then of negative ones
};

// Where bucket `i` begins.
template <bool kSigned>
__device__ __forceinline__ float EdgeOf(unsigned i) {
  return i == 0 ? 0.0f : __uint_as_float((Map<kSigned>::kFirst + i) << (23 - Map<kSigned>::kBits));
}

// By a whole block of threads, with a barrier; another one comes before the map is used.
template <int kThreads, bool kSigned>
__device__ __forceinline__ void LoadMap(Map<kSigned>& map, const float* from) {
  for (unsigned i = threadIdx.x; i < 256; i += kThreads) {
    map.entries[i] = from[i];
    map.points.middle[i] = i < 255 ? (from[i] + from[i + 1]) / 2 : INFINITY;
  }
  __syncthreads();
#pragma unroll 1
  for (unsigned i = threadIdx.x; i < map.kBuckets; i += kThreads) {
    map.below[i] = static_cast<uint8_t>(CountBelow(map.points, EdgeOf<kSigned>(i)));
    if constexpr (kSigned) {
      // The other end belongs to the next bucket: a midpoint there is below all of this one.
      const float end = -EdgeOf<kSigned>(i + 1);
      const unsigned below = CountBelow(map.points, end);
      map.below[map.kBuckets + i] = static_cast<uint8_t>(below + (map.points.middle[below] == end ? 1 : 0));
    }
  }
}

// CountBelow of a value from -1 to 1, unsigned from 0 without a sign. NaN gets some code.
template <bool kSigned>
__device__ __forceinline__ unsigned CodeOf(const Map<kSigned>& map, float value) {
  const unsigned bits = __float_as_uint(value);
  const int bucket = static_cast<int>((kSigned ? bits & 0x7FFFFFFFu : bits) >> (23 - map.kBits)) -
                     static_cast<int>(map.kFirst);
  auto at = static_cast<unsigned>(Min(Max(bucket, 0), static_cast<int>(map.kBuckets) - 1));
  if (kSigned && value < 0) at += map.kBuckets;
  const unsigned below = map.below[at];
  return map.points.middle[below] < value ? below + 1 : below;
}

// value / divisor as division rounds it, from the divisor's rounded reciprocal (Markstein, IBM Journal of
// Research and Development 34, 1990). Each correction is exact while nothing on the way is too small for a
// float's precision.
__device__ __forceinline__ float Divide(float value, float divisor, float reciprocal) {
  float quotient = value * reciprocal;
  quotient = fmaf(fmaf(-quotient, divisor, value), reciprocal, quotient);
  return fmaf(fmaf(-quotient, divisor, value), reciprocal, quotient);
}

}  // namespace nibble::kernels::NIBBLE_CUDA

// Two vectors of consecutive elements, for ops that treat every element alike.
//
// Which lane holds which element is the bodies' own business, the same for all types. With AVX2 bf16 become
// floats in two instructions for sixteen, where they lie: the even ones in one vector, the odd ones in
// the other, and go back likewise. In their order they would have to be moved apart and together again.
#pragma once

#include "kernels/cpu/body/simd.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

struct Two {
  F32 a, b;
};
constexpr int64_t kTwoLanes = 2 * kLanes;

// fn of each vector.
template <typename F, typename... More>
NIBBLE_INLINE Two Each(const F& fn, const More&... vectors) {
  return {fn(vectors.a...), fn(vectors.b...)};
}

#if defined(__AVX512F__)

// Of two vectors of pairs the first and the second ones, in their order.
NIBBLE_INLINE void TakeApart(F32 low, F32 high, F32* first, F32* second) {
  alignas(64) static constexpr int32_t kEven[kLanes] = {0,  2,  4,  6,  8,  10, 12, 14,
                                                        16, 18, 20, 22, 24, 26, 28, 30};
  const I32 even = LoadInt(kEven);
  *first = _mm512_permutex2var_ps(low, even, high);
  *second = _mm512_permutex2var_ps(low, _mm512_add_epi32(even, SetInt(1)), high);
}

// Two vectors of consecutive floats, in the lanes where LoadTwo has them.
NIBBLE_INLINE Two TwoOf(F32 low, F32 high) { return {low, high}; }
template <typename T>
NIBBLE_INLINE Two LoadTwo(const T* p) {
  return {Load(p), Load(p + kLanes)};
}
template <bool kOfBF16 = false>
NIBBLE_INLINE void StoreTwo(BF16* p, Two two) {
  Store(p, two.a);
  Store(p + kLanes, two.b);
}

#else

NIBBLE_INLINE Two LoadTwo(const BF16* p) {
  const I32 words = LoadInt(p);
  return {FirstOfPairs(words), SecondOfPairs(words)};
}
// Of two vectors of pairs the first and the second ones, in their order.
NIBBLE_INLINE void TakeApart(F32 low, F32 high, F32* first, F32* second) {
  const auto in_order = [](F32 halves) {  // shuffling works in halves
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(halves), 0xD8));
  };
  *first = in_order(_mm256_shuffle_ps(low, high, 0x88));
  *second = in_order(_mm256_shuffle_ps(low, high, 0xDD));
}
// Two vectors of consecutive floats, in the lanes where LoadTwo has them.
NIBBLE_INLINE Two TwoOf(F32 low, F32 high) {
  Two two;
  TakeApart(low, high, &two.a, &two.b);
  return two;
}
NIBBLE_INLINE Two LoadTwo(const float* p) { return TwoOf(Load(p), Load(p + kLanes)); }
template <bool kOfBF16 = false>
NIBBLE_INLINE void StoreTwo(BF16* p, Two two) {
  const auto rounded = [](F32 a) __attribute__((always_inline)) {
    return kOfBF16 ? RoundedNumber(a) : RoundedBits(a);
  };
  StoreInt(p, _mm256_blend_epi16(_mm256_srli_epi32(rounded(two.a), 16), rounded(two.b), 0xAA));
}

#endif

// Of `lanes` elements, which may be more than two vectors have; behind them zeros are read and nothing is
// written.
template <typename T>
NIBBLE_INLINE Two LoadTwo(const T* p, int64_t lanes) {
  if (lanes >= kTwoLanes) return LoadTwo(p);
  alignas(64) T some[kTwoLanes] = {};
  std::memcpy(some, p, static_cast<size_t>(lanes) * sizeof(T));
  return LoadTwo(some);
}
// kOfBF16: results of arithmetic on bf16 alone (RoundedNumber).
template <bool kOfBF16>
NIBBLE_INLINE void StoreTwo(BF16* p, Two two, int64_t lanes) {
  if (lanes >= kTwoLanes) return StoreTwo<kOfBF16>(p, two);
  alignas(64) BF16 some[kTwoLanes];
  StoreTwo<kOfBF16>(some, two);
  std::memcpy(p, some, static_cast<size_t>(lanes) * sizeof(BF16));
}

// fn(i, lanes, slot) over `count` elements, two vectors at a time; slot says which of two pairs of sums they
// belong to, so that additions do not wait for each other. `lanes` is less than kTwoLanes in the last call
// only.
template <typename F>
NIBBLE_INLINE void EachTwo(int64_t count, const F& fn) {
  int64_t i = 0;
  for (; i + 2 * kTwoLanes <= count; i += 2 * kTwoLanes) {
    fn(i, kTwoLanes, 0);
    fn(i + kTwoLanes, kTwoLanes, 1);
  }
  if (i + kTwoLanes <= count) {
    fn(i, kTwoLanes, 0);
    i += kTwoLanes;
  }
  if (i < count) fn(i, count - i, 0);
}
#define NIBBLE_TWO (int64_t i, int64_t lanes, [[maybe_unused]] int slot) __attribute__((always_inline))

}  // namespace nibble::kernels::cpu::NIBBLE_BODY

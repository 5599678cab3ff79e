// Vectors of 16-bit integers, for fixed point (fixed.h): a thin layer like simd.h.
#pragma once

#include "kernels/cpu/body/simd.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

constexpr int64_t kWords = 2 * kLanes;  // of an I32

// The largest of 16 words below 2^15.
NIBBLE_INLINE int MaxWord256(__m256i words) {
  const __m128i eight = _mm_max_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  const __m128i least = _mm_minpos_epu16(_mm_sub_epi16(_mm_set1_epi16(0x7FFF), eight));
  return 0x7FFF - (_mm_cvtsi128_si32(least) & 0xFFFF);
}

#if defined(__AVX512F__)

NIBBLE_INLINE I32 NoWords() { return _mm512_setzero_si512(); }
NIBBLE_INLINE I32 MaxWords(I32 a, I32 b) { return _mm512_max_epi16(a, b); }
// a - b, nothing where that is below zero.
NIBBLE_INLINE I32 LessWords(I32 a, int16_t b) { return _mm512_subs_epu16(a, _mm512_set1_epi16(b)); }
NIBBLE_INLINE I32 Magnitudes(I32 words) { return _mm512_and_si512(words, _mm512_set1_epi16(0x7FFF)); }
NIBBLE_INLINE int MaxWord(I32 words) {
  return MaxWord256(_mm256_max_epi16(_mm512_castsi512_si256(words), _mm512_extracti64x4_epi64(words, 1)));
}
NIBBLE_INLINE I32 Rounded(F32 a) { return _mm512_cvtps_epi32(a); }
// Of each pair of words the first and the second, those of 32-bit integers.
NIBBLE_INLINE I32 PairWords(I32 first, I32 second) {
  return _mm512_mask_blend_epi16(0xAAAAAAAA, first, _mm512_slli_epi32(second, 16));
}
// The upper words of magnitudes of floats rounded up, but of what is not finite and of the largest.
NIBBLE_INLINE I32 UpperRoundedUp(F32 a) {
  const I32 bits = _mm512_castps_si512(Abs(a));
  const __mmask16 finite = _mm512_cmplt_epi32_mask(bits, _mm512_set1_epi32(0x7F7F0000));
  return _mm512_srli_epi32(_mm512_mask_add_epi32(bits, finite, bits, _mm512_set1_epi32(0x10000)), 16);
}
// Two vectors of 32-bit integers as words in their order.
NIBBLE_INLINE void StoreWords(int16_t* out, I32 low, I32 high) {
  _mm256_storeu_si256((__m256i*)out, _mm512_cvtsepi32_epi16(low));
  _mm256_storeu_si256((__m256i*)(out + kLanes), _mm512_cvtsepi32_epi16(high));
}
// Adds the products of pairs of words. GCC keeps sums of the intrinsic in memory and copies them about.
NIBBLE_INLINE void AddPairProducts(I32& sum, I32 a, I32 b) {
#if defined(__AVX512VNNI__)
  asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
  sum = AddInt(sum, _mm512_madd_epi16(a, b));
#endif
}

// kLanes words.
using HalfWords = __m256i;
NIBBLE_INLINE HalfWords LoadHalf(const BF16* p) { return _mm256_loadu_si256((const __m256i*)p); }
NIBBLE_INLINE void StoreHalf(uint16_t* p, HalfWords a) { _mm256_storeu_si256((__m256i*)p, a); }
NIBBLE_INLINE HalfWords MaxMagnitudes(HalfWords most, HalfWords words) {
  return _mm256_max_epi16(most, _mm256_and_si256(words, _mm256_set1_epi16(0x7FFF)));
}

#else

NIBBLE_INLINE I32 NoWords() { return _mm256_setzero_si256(); }
NIBBLE_INLINE I32 MaxWords(I32 a, I32 b) { return _mm256_max_epi16(a, b); }
NIBBLE_INLINE I32 LessWords(I32 a, int16_t b) { return _mm256_subs_epu16(a, _mm256_set1_epi16(b)); }
NIBBLE_INLINE I32 Magnitudes(I32 words) { return _mm256_and_si256(words, _mm256_set1_epi16(0x7FFF)); }
NIBBLE_INLINE int MaxWord(I32 words) { return MaxWord256(words); }
NIBBLE_INLINE I32 Rounded(F32 a) { return _mm256_cvtps_epi32(a); }
NIBBLE_INLINE I32 PairWords(I32 first, I32 second) {
  return _mm256_blend_epi16(first, _mm256_slli_epi32(second, 16), 0xAA);
}
NIBBLE_INLINE I32 UpperRoundedUp(F32 a) {
  const I32 bits = _mm256_castps_si256(Abs(a));
  const I32 finite = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x7F7F0000), bits);
  return _mm256_srli_epi32(_mm256_sub_epi32(bits, _mm256_slli_epi32(finite, 16)), 16);
}
NIBBLE_INLINE void StoreWords(int16_t* out, I32 low, I32 high) {
  StoreInt(out, _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xD8));  // packing works in halves
}
using HalfWords = __m128i;
NIBBLE_INLINE HalfWords LoadHalf(const BF16* p) { return _mm_loadu_si128((const __m128i*)p); }
NIBBLE_INLINE void StoreHalf(uint16_t* p, HalfWords a) { _mm_storeu_si128((__m128i*)p, a); }
NIBBLE_INLINE HalfWords MaxMagnitudes(HalfWords most, HalfWords words) {
  return _mm_max_epi16(most, _mm_and_si128(words, _mm_set1_epi16(0x7FFF)));
}

#endif

}  // namespace nibble::kernels::cpu::NIBBLE_BODY

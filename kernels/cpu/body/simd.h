// A thin layer over AVX-512 and AVX2: float vectors, bf16 loads and stores, and the one multiply-add the
// products are made of.
//
// The files of this folder are compiled once per body, each time with that body's instruction set and
// inside its own namespace NIBBLE_BODY, so nothing of theirs is shared between bodies. They use no
// standard containers and no inline functions of other headers beyond the trivial: a copy compiled for
// one instruction set must never be linked into another.
//
// Operand: what products multiply. With bf16 dot products (kPairs) it is a bf16, and a step of depth
// takes two of them; otherwise it is a float, and a step takes one. Either way a step of one column or
// row is four bytes, so packed panels and micro-kernels are the same code.
//
// NIBBLE_FIXED: the body multiplies frozen weights in fixed point (fixed.h), where integers have twice the
// products of floats in an instruction and bf16 has no products.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/bf16.h"

#define NIBBLE_INLINE inline __attribute__((always_inline))
#if !defined(__AVX512F__) || (defined(__AVX512VNNI__) && !defined(__AVX512BF16__))
#define NIBBLE_FIXED
#endif

namespace nibble::kernels::cpu::NIBBLE_BODY {

#if defined(__AVX512BF16__)
constexpr bool kPairs = true;
using Operand = BF16;
NIBBLE_INLINE Operand ToOperand(BF16 a) { return a; }
NIBBLE_INLINE Operand ToOperand(float a) { return ToBF16(a); }
#else
constexpr bool kPairs = false;
using Operand = float;
NIBBLE_INLINE Operand ToOperand(BF16 a) { return ToFloat(a); }
NIBBLE_INLINE Operand ToOperand(float a) { return a; }
#endif
constexpr int64_t kDepthPerStep = kPairs ? 2 : 1;
#if defined(NIBBLE_AMX)
constexpr int64_t kStepUnit = 16;  // a tile instruction takes 16 steps
#else
constexpr int64_t kStepUnit = 1;
#endif
// Depth is padded with zeros to a multiple of this.
constexpr int64_t kDepthUnit = kStepUnit * kDepthPerStep;

#if defined(__AVX512F__)

constexpr int64_t kLanes = 16;
using F32 = __m512;
using I32 = __m512i;

NIBBLE_INLINE F32 Zero() { return _mm512_setzero_ps(); }
NIBBLE_INLINE F32 Set1(float a) { return _mm512_set1_ps(a); }
NIBBLE_INLINE F32 Add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
NIBBLE_INLINE F32 Sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
NIBBLE_INLINE F32 Mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
NIBBLE_INLINE F32 Div(F32 a, F32 b) { return _mm512_div_ps(a, b); }
NIBBLE_INLINE F32 Max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
NIBBLE_INLINE F32 Min(F32 a, F32 b) { return _mm512_min_ps(a, b); }
NIBBLE_INLINE F32 Sqrt(F32 a) { return _mm512_sqrt_ps(a); }
NIBBLE_INLINE F32 Fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
NIBBLE_INLINE F32 NegFma(F32 a, F32 b, F32 c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a b
NIBBLE_INLINE F32 FmaSub(F32 a, F32 b, F32 c) { return _mm512_fmsub_ps(a, b, c); }     // a b - c
NIBBLE_INLINE float SumLanes(F32 a) { return _mm512_reduce_add_ps(a); }
NIBBLE_INLINE float MaxLanes(F32 a) { return _mm512_reduce_max_ps(a); }

NIBBLE_INLINE __mmask16 FirstLanes(int64_t n) {
  return static_cast<__mmask16>(n >= 16 ? 0xFFFF : n <= 0 ? 0 : (1u << n) - 1);
}
NIBBLE_INLINE F32 Load(const float* p) { return _mm512_loadu_ps(p); }
NIBBLE_INLINE F32 Load(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(FirstLanes(n), p); }
NIBBLE_INLINE void Store(float* p, F32 a) { _mm512_storeu_ps(p, a); }
NIBBLE_INLINE void Store(float* p, F32 a, int64_t n) { _mm512_mask_storeu_ps(p, FirstLanes(n), a); }

NIBBLE_INLINE F32 Widen(__m256i bits) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
// To bf16, nearest even.
NIBBLE_INLINE __m256i Narrow(F32 a) {
#if defined(__AVX512BF16__)
  return (__m256i)_mm512_cvtneps_pbh(a);
#else
  const I32 bits = _mm512_castps_si512(a);
  const I32 odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const I32 rounded =
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(
      nan, _mm512_srli_epi32(rounded, 16), _mm512_set1_epi32(0x7FC0)));
#endif
}
NIBBLE_INLINE F32 Load(const BF16* p) { return Widen(_mm256_loadu_si256((const __m256i*)p)); }
NIBBLE_INLINE F32 Load(const BF16* p, int64_t n) {
  return Widen(_mm256_maskz_loadu_epi16(FirstLanes(n), p));
}
NIBBLE_INLINE void Store(BF16* p, F32 a) { _mm256_storeu_si256((__m256i*)p, Narrow(a)); }
NIBBLE_INLINE void Store(BF16* p, F32 a, int64_t n) {
  _mm256_mask_storeu_epi16(p, FirstLanes(n), Narrow(a));
}

// Lanes first <= lane < last of a, fill elsewhere.
NIBBLE_INLINE F32 KeepLanes(F32 a, int64_t first, int64_t last, F32 fill) {
  const __mmask16 keep = static_cast<__mmask16>(FirstLanes(last) & ~FirstLanes(first));
  return _mm512_mask_blend_ps(keep, fill, a);
}

// A power of two as the largest integer not above it and the rest.
struct SplitPower {
  explicit NIBBLE_INLINE SplitPower(F32 x)
      : fraction(_mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)), all(x) {}
  // a * 2^that integer.
  NIBBLE_INLINE F32 Scale(F32 a) const { return _mm512_scalef_ps(a, all); }
  F32 fraction, all;
};
// a * 2^n, n integral.
NIBBLE_INLINE F32 ScaleByPower(F32 a, F32 n) { return _mm512_scalef_ps(a, n); }
NIBBLE_INLINE F32 RoundToIntegral(F32 a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

NIBBLE_INLINE F32 MulAdd(F32 a, F32 b, F32 sum) {
#if defined(__AVX512BF16__)
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#else
  return _mm512_fmadd_ps(a, b, sum);
#endif
}
NIBBLE_INLINE void AddProduct(F32& sum, F32 a, F32 b) { sum = MulAdd(a, b, sum); }

NIBBLE_INLINE F32 Abs(F32 a) { return _mm512_abs_ps(a); }
NIBBLE_INLINE I32 SetInt(int a) { return _mm512_set1_epi32(a); }
NIBBLE_INLINE I32 WidenBytes(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
}
NIBBLE_INLINE void NarrowBytes(uint8_t* p, I32 a) {
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(a));
}
// table[index] of kEntries, a power of two; bits of the index above them are ignored.
template <int kEntries>
NIBBLE_INLINE F32 Lookup(const float* table, I32 index) {
  if constexpr (kEntries <= 16) {
    return _mm512_permutexvar_ps(index, Load(table));
  } else if constexpr (kEntries == 32) {
    return _mm512_permutex2var_ps(Load(table), index, Load(table + 16));
  } else {
    const F32 low = Lookup<kEntries / 2>(table, index);
    return _mm512_mask_blend_ps(_mm512_test_epi32_mask(index, _mm512_set1_epi32(kEntries / 2)), low,
                                Lookup<kEntries / 2>(table + kEntries / 2, index));
  }
}
NIBBLE_INLINE I32 AddInt(I32 a, I32 b) { return _mm512_add_epi32(a, b); }
NIBBLE_INLINE F32 ToFloats(I32 a) { return _mm512_cvtepi32_ps(a); }
// sum + step in lanes where a > b.
NIBBLE_INLINE I32 AddWhereAbove(I32 sum, F32 a, F32 b, int step) {
  return _mm512_mask_add_epi32(sum, _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), sum, SetInt(step));
}

NIBBLE_INLINE I32 LoadInt(const void* p) { return _mm512_loadu_si512(p); }
NIBBLE_INLINE void StoreInt(void* p, I32 a) { _mm512_storeu_si512(p, a); }

NIBBLE_INLINE F32 AsFloats(I32 a) { return _mm512_castsi512_ps(a); }

// Transposes a 16 x 16 block of 32-bit values held in 16 registers.
NIBBLE_INLINE void Transpose(I32* r) {
  I32 t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xDD);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xDD);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xDD);
  }
}

// Of pairs of bf16 in 32-bit lanes: the first and the second of each as floats.
NIBBLE_INLINE F32 FirstOfPairs(I32 a) { return _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)); }
NIBBLE_INLINE F32 SecondOfPairs(I32 a) {
  return _mm512_castsi512_ps(_mm512_and_si512(a, _mm512_set1_epi32(static_cast<int>(0xFFFF0000))));
}

#else  // AVX2 and FMA

constexpr int64_t kLanes = 8;
using F32 = __m256;
using I32 = __m256i;

NIBBLE_INLINE F32 Zero() { return _mm256_setzero_ps(); }
NIBBLE_INLINE F32 Set1(float a) { return _mm256_set1_ps(a); }
NIBBLE_INLINE F32 Add(F32 a, F32 b) { return _mm256_add_ps(a, b); }
NIBBLE_INLINE F32 Sub(F32 a, F32 b) { return _mm256_sub_ps(a, b); }
NIBBLE_INLINE F32 Mul(F32 a, F32 b) { return _mm256_mul_ps(a, b); }
NIBBLE_INLINE F32 Div(F32 a, F32 b) { return _mm256_div_ps(a, b); }
NIBBLE_INLINE F32 Max(F32 a, F32 b) { return _mm256_max_ps(a, b); }
NIBBLE_INLINE F32 Min(F32 a, F32 b) { return _mm256_min_ps(a, b); }
NIBBLE_INLINE F32 Sqrt(F32 a) { return _mm256_sqrt_ps(a); }
NIBBLE_INLINE F32 Fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
NIBBLE_INLINE F32 NegFma(F32 a, F32 b, F32 c) { return _mm256_fnmadd_ps(a, b, c); }
NIBBLE_INLINE F32 FmaSub(F32 a, F32 b, F32 c) { return _mm256_fmsub_ps(a, b, c); }
NIBBLE_INLINE float SumLanes(F32 a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
NIBBLE_INLINE float MaxLanes(F32 a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

// All ones in lanes below n.
NIBBLE_INLINE __m256i FirstLanes(int64_t n) {
  const int limit = static_cast<int>(n < 0 ? 0 : n > 8 ? 8 : n);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(limit), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
NIBBLE_INLINE F32 Load(const float* p) { return _mm256_loadu_ps(p); }
NIBBLE_INLINE F32 Load(const float* p, int64_t n) { return _mm256_maskload_ps(p, FirstLanes(n)); }
NIBBLE_INLINE void Store(float* p, F32 a) { _mm256_storeu_ps(p, a); }
NIBBLE_INLINE void Store(float* p, F32 a, int64_t n) { _mm256_maskstore_ps(p, FirstLanes(n), a); }

NIBBLE_INLINE F32 Widen(__m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
// bf16, nearest even, in the upper words; the lower ones are of no meaning. For results of arithmetic on bf16
// alone: what is no number among them is so by its upper word, and rounding leaves it.
NIBBLE_INLINE I32 RoundedNumber(F32 a) {
  const I32 bits = _mm256_castps_si256(a);
  const I32 odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
}
// The same for all floats.
NIBBLE_INLINE I32 RoundedBits(F32 a) {
  const I32 nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(RoundedNumber(a), _mm256_set1_epi32(0x7FC00000), nan);
}
NIBBLE_INLINE __m128i Narrow(F32 a) {
  const I32 words = _mm256_srli_epi32(RoundedBits(a), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
NIBBLE_INLINE F32 Load(const BF16* p) { return Widen(_mm_loadu_si128((const __m128i*)p)); }
NIBBLE_INLINE F32 Load(const BF16* p, int64_t n) {
  if (n >= 8) return Load(p);
  alignas(16) BF16 part[8] = {};
  std::memcpy(part, p, static_cast<size_t>(n > 0 ? 2 * n : 0));
  return Widen(_mm_load_si128((const __m128i*)part));
}
NIBBLE_INLINE void Store(BF16* p, F32 a) { _mm_storeu_si128((__m128i*)p, Narrow(a)); }
NIBBLE_INLINE void Store(BF16* p, F32 a, int64_t n) {
  if (n >= 8) return Store(p, a);
  alignas(16) BF16 part[8];
  _mm_store_si128((__m128i*)part, Narrow(a));
  std::memcpy(p, part, static_cast<size_t>(n > 0 ? 2 * n : 0));
}

NIBBLE_INLINE F32 KeepLanes(F32 a, int64_t first, int64_t last, F32 fill) {
  const __m256i keep = _mm256_andnot_si256(FirstLanes(first), FirstLanes(last));
  return _mm256_blendv_ps(fill, a, _mm256_castsi256_ps(keep));
}

// x is held in [-126, 128]; two to the power of 128 is infinity.
struct SplitPower {
  explicit NIBBLE_INLINE SplitPower(F32 x) {
    const F32 held = _mm256_max_ps(_mm256_set1_ps(-126.0f), _mm256_min_ps(_mm256_set1_ps(128.0f), x));
    whole = _mm256_floor_ps(held);
    fraction = _mm256_sub_ps(held, whole);
  }
  // a * 2^whole, for a in [1, 2]; 1 where the power is held.
  NIBBLE_INLINE F32 Scale(F32 a) const {
    const I32 power = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), power));
  }
  F32 fraction, whole;
};
// n in [-127, 127]: the exponent is added in two halves so that small results do not wrap.
NIBBLE_INLINE F32 ScaleByPower(F32 a, F32 n) {
  const I32 power = _mm256_cvtps_epi32(n);
  const I32 half = _mm256_srai_epi32(power, 1);
  const I32 bias = _mm256_set1_epi32(127);
  const auto two_to = [&](I32 e) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, bias), 23));
  };
  return _mm256_mul_ps(_mm256_mul_ps(a, two_to(half)), two_to(_mm256_sub_epi32(power, half)));
}
NIBBLE_INLINE F32 RoundToIntegral(F32 a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

NIBBLE_INLINE F32 MulAdd(F32 a, F32 b, F32 sum) { return _mm256_fmadd_ps(a, b, sum); }
// For loops in which sums take nearly all of the sixteen registers: there GCC picks forms of the
// instruction that overwrite a factor and copies registers to save it, two copies for twelve products.
NIBBLE_INLINE void AddProduct(F32& sum, F32 a, F32 b) {
  asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
}

NIBBLE_INLINE F32 Abs(F32 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
NIBBLE_INLINE I32 SetInt(int a) { return _mm256_set1_epi32(a); }
NIBBLE_INLINE I32 WidenBytes(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
NIBBLE_INLINE void NarrowBytes(uint8_t* p, I32 a) {
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  _mm_storel_epi64((__m128i*)p, _mm_packus_epi16(words, words));
}
template <int kEntries>
NIBBLE_INLINE F32 Lookup(const float* table, I32 index) {
  if constexpr (kEntries <= 8) {
    return _mm256_permutevar8x32_ps(Load(table), index);
  } else {
    return _mm256_i32gather_ps(table, index, 4);
  }
}
NIBBLE_INLINE I32 AddInt(I32 a, I32 b) { return _mm256_add_epi32(a, b); }
NIBBLE_INLINE F32 ToFloats(I32 a) { return _mm256_cvtepi32_ps(a); }
NIBBLE_INLINE I32 AddWhereAbove(I32 sum, F32 a, F32 b, int step) {
  const I32 above = _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
  return _mm256_add_epi32(sum, _mm256_and_si256(above, SetInt(step)));
}

NIBBLE_INLINE I32 LoadInt(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
NIBBLE_INLINE void StoreInt(void* p, I32 a) { _mm256_storeu_si256((__m256i*)p, a); }

NIBBLE_INLINE F32 AsFloats(I32 a) { return _mm256_castsi256_ps(a); }

// Transposes an 8 x 8 block of 32-bit values held in 8 registers.
NIBBLE_INLINE void Transpose(I32* r) {
  I32 t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = t[i];
}

NIBBLE_INLINE F32 FirstOfPairs(I32 a) { return _mm256_castsi256_ps(_mm256_slli_epi32(a, 16)); }
NIBBLE_INLINE F32 SecondOfPairs(I32 a) {
  return _mm256_castsi256_ps(_mm256_and_si256(a, _mm256_set1_epi32(static_cast<int>(0xFFFF0000))));
}

#endif

// exp to about 2 units in the last place. The argument is held in [-87.3, 88.3], so the result is never
// zero nor infinite; NaN stays NaN.
NIBBLE_INLINE F32 Exp(F32 x) {
  const F32 capped = Max(Set1(-87.3f), Min(Set1(88.3f), x));
  const F32 n = RoundToIntegral(Mul(capped, Set1(1.44269504088896341f)));
  F32 r = NegFma(n, Set1(0.693359375f), capped);
  r = NegFma(n, Set1(-2.12194440e-4f), r);
  F32 p = Set1(1.9875691500e-4f);
  p = Fma(p, r, Set1(1.3981999507e-3f));
  p = Fma(p, r, Set1(8.3334519073e-3f));
  p = Fma(p, r, Set1(4.1665795894e-2f));
  p = Fma(p, r, Set1(1.6666665459e-1f));
  p = Fma(p, r, Set1(5.0000001201e-1f));
  p = Add(Fma(Mul(r, r), p, r), Set1(1.0f));
  return ScaleByPower(p, n);
}

// 2^x to about one unit in the last place. Small results are zero or about 2^-126.
NIBBLE_INLINE F32 Exp2(F32 x) {
  const SplitPower power(x);
  const F32 f = power.fraction;
  F32 p = Set1(1.8671301659e-3f);
  p = Fma(p, f, Set1(9.0170297698e-3f));
  p = Fma(p, f, Set1(5.5799912661e-2f));
  p = Fma(p, f, Set1(2.4016444385e-1f));
  p = Fma(p, f, Set1(6.9315129519e-1f));
  p = Fma(p, f, Set1(1.0f));
  return power.Scale(p);
}
// The same with a relative error of 3.5e-6, for what becomes bf16; of whole numbers exact.
NIBBLE_INLINE F32 ShortExp2(F32 x) {
  const SplitPower power(x);
  const F32 f = power.fraction;
  F32 p = Set1(1.3555747233e-2f);
  p = Fma(p, f, Set1(5.2032369006e-2f));
  p = Fma(p, f, Set1(2.4137976294e-1f));
  p = Fma(p, f, Set1(6.9303212082e-1f));
  p = Fma(p, f, Set1(1.0f));
  return power.Scale(p);
}

// a / (1 + exp(-x)), for what becomes bf16: relative error about 4e-6, and 1e-7 times |x|. Zero where exp(-x)
// is more than a float holds: its product with the largest x must be nothing.
NIBBLE_INLINE F32 TimesSigmoid(F32 a, F32 x) {
  const F32 power = Mul(x, Set1(-1.44269504088896341f)), below = Add(Set1(1.0f), ShortExp2(power));
#if defined(__AVX512F__)
  // One Newton step; neither it nor what it starts from holds the inverse of 2^126 and more.
  const F32 near = _mm512_rcp14_ps(below);
  const F32 inverse = Mul(near, NegFma(below, near, Set1(2.0f)));
  return Mul(a, _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(power, Set1(126.0f), _CMP_NGE_UQ), inverse));
#else
  return Div(a, below);
#endif
}

// Absolute error about 1e-7.
NIBBLE_INLINE F32 Tanh(F32 x) {
  const F32 one = Set1(1.0f);
  return Sub(one, Div(Set1(2.0f), Add(Exp(Add(x, x)), one)));
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY

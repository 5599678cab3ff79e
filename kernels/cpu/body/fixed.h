// Fixed point by blocks: what AVX2 multiplies weights in, because its integer multiply-add takes two
// products where its floating one takes one.
//
// A block is 64 numbers in a row along the contracted dimension, the first at a multiple of 64: 16-bit
// integers times one scale. Rows of activations have up to 15 bits and a sign, weights 13 and a sign. The
// integers of a row's block sum up to no more than kRowSum, so that the sum of its products with any
// weights fits 32 bits: a block's sum is exact and has no order. Sums of blocks are added in fp32, in
// ascending order. A row's scale is a power of two, so a bf16 that is not much smaller than the largest of
// its block loses nothing. What is no finite number makes the scale of its block no number, and with it
// every sum the block goes into.
#pragma once

#include "kernels/cpu/body/decode.h"
#include "kernels/cpu/body/simd.h"

#if !defined(__AVX512F__)

namespace nibble::kernels::cpu::NIBBLE_BODY {

constexpr int64_t kFixedBlock = kTileBlock;
constexpr int kRowBits = 15, kWeightBits = 13, kRowSumBits = 18;
constexpr int64_t kWeightMost = (1 << kWeightBits) - 1;
// Magnitudes before rounding sum up to less than a thousandth below 2^18, and rounding adds half of each.
constexpr int64_t kRowSum = (int64_t{1} << kRowSumBits) - 262 + kFixedBlock / 2;
static_assert(kRowSum * kWeightMost < int64_t{1} << 31);

NIBBLE_INLINE float FloatOfBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
NIBBLE_INLINE int ExponentOf(float magnitude) {
  uint32_t bits;
  std::memcpy(&bits, &magnitude, 4);
  return static_cast<int>(bits >> 23);
}

// A block's power of two: `factor` makes integers of its numbers, `scale` is its inverse. `exponent` is
// that of a number (as a float has it, 255 for what is not finite) of which integers get `bits` bits.
struct BlockPower {
  NIBBLE_INLINE BlockPower(int exponent, int bits) {
    const int held = exponent < kLeastExponent ? kLeastExponent : exponent;
    factor = FloatOfBits(exponent == 255 ? 0 : static_cast<uint32_t>(253 + bits - held) << 23);
    scale = FloatOfBits(exponent == 255 ? 0x7FC00000u : static_cast<uint32_t>(held + 1 - bits) << 23);
  }
  static constexpr int kLeastExponent = 16;  // of smaller numbers a float could not hold the factor
  float factor, scale;
};

NIBBLE_INLINE I32 Magnitudes(I32 words) { return _mm256_and_si256(words, _mm256_set1_epi16(0x7FFF)); }
// The largest of 16 words below 2^15.
NIBBLE_INLINE int MaxWord(I32 words) {
  const __m128i eight = _mm_max_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  const __m128i least = _mm_minpos_epu16(_mm_sub_epi16(_mm_set1_epi16(0x7FFF), eight));
  return 0x7FFF - (_mm_cvtsi128_si32(least) & 0xFFFF);
}

// The power for a row's block. `most`: magnitudes of bf16, each the largest of four; so four times their
// sum is not less than the sum of all. They are added up 2^8 times smaller, that no sum is infinite; what is
// nothing then (below 2^-118) has small integers in any case, as no exponent is below kLeastExponent.
NIBBLE_INLINE BlockPower RowPower(I32 most) {
  constexpr float kMargin = 4 * 1.001f;
  constexpr int kSmaller = 8;
  static_assert(kSmaller < BlockPower::kLeastExponent);
  const I32 smaller = _mm256_subs_epu16(most, _mm256_set1_epi16(kSmaller << 7));
  const int exponent = MaxWord(most) >> 7;
  const int of_sum =
      ExponentOf(kMargin * SumLanes(Add(FirstOfPairs(smaller), SecondOfPairs(smaller)))) + kSmaller;
  // 2^(of_sum - 126) becomes 2^18, 2^(exponent - 126) at most 2^15.
  const int by_sum = of_sum - (kRowSumBits - kRowBits);
  return BlockPower(exponent == 255 || exponent > by_sum ? exponent : by_sum, kRowBits);
}

// Of two vectors of floats the integers side by side: of each pair of words the first and the second.
NIBBLE_INLINE I32 FixPairs(F32 first, F32 second) {
  const I32 low = _mm256_cvtps_epi32(first), high = _mm256_slli_epi32(_mm256_cvtps_epi32(second), 16);
  return _mm256_blend_epi16(low, high, 0xAA);
}
// 16 bf16 in their order.
NIBBLE_INLINE I32 Fix16(I32 words, F32 factor) {
  return FixPairs(Mul(FirstOfPairs(words), factor), Mul(SecondOfPairs(words), factor));
}

// A whole block, of a row or (kRow false) of a weight; returns its scale.
template <bool kRow>
NIBBLE_INLINE float FixBlock(const BF16* in, int16_t* out) {
  I32 words[4], most = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    words[i] = LoadInt(in + 16 * i);
    most = _mm256_max_epi16(most, Magnitudes(words[i]));
  }
  const BlockPower power = kRow ? RowPower(most) : BlockPower(MaxWord(most) >> 7, kWeightBits);
  const F32 factor = Set1(power.factor);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) StoreInt(out + 16 * i, Fix16(words[i], factor));
  return power.scale;
}
// A row's block of floats, with the power that they would have as bf16 rounded up.
template <bool kRow>
NIBBLE_INLINE float FixBlock(const float* in, int16_t* out) {
  static_assert(kRow);
  const auto upper = [&](int64_t i) __attribute__((always_inline)) {
    const I32 bits = _mm256_castps_si256(Abs(Load(in + i)));
    const I32 finite = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x7F7F0000), bits);  // and not the largest ones
    return _mm256_srli_epi32(_mm256_sub_epi32(bits, _mm256_slli_epi32(finite, 16)), 16);
  };
  I32 most = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int64_t i = 0; i < kFixedBlock; i += 2 * kLanes)
    most = _mm256_max_epi16(
        most, _mm256_blend_epi16(upper(i), _mm256_slli_epi32(upper(i + kLanes), 16), 0xAA));
  const BlockPower power = RowPower(most);
  const F32 factor = Set1(power.factor);
#pragma GCC unroll 4
  for (int64_t i = 0; i < kFixedBlock; i += 2 * kLanes) {
    const I32 words = _mm256_packs_epi32(_mm256_cvtps_epi32(Mul(Load(in + i), factor)),
                                         _mm256_cvtps_epi32(Mul(Load(in + i + kLanes), factor)));
    StoreInt(out + i, _mm256_permute4x64_epi64(words, 0xD8));  // packing works in halves
  }
  return power.scale;
}

// `count` numbers of a row in blocks, the last one filled up with zeros; a scale for each.
template <typename T>
static void FixRow(const T* in, int64_t count, int16_t* out, float* scales) {
  int64_t i = 0;
  for (; i + kFixedBlock <= count; i += kFixedBlock) *scales++ = FixBlock<true>(in + i, out + i);
  if (i == count) return;
  T last[kFixedBlock] = {};
  std::memcpy(last, in + i, static_cast<size_t>(count - i) * sizeof(T));
  *scales = FixBlock<true>(last, out + i);
}

// The tables of two blocks as integers.
NIBBLE_INLINE void FixTables(const float* code_book, float factor_a, float factor_b, ByteTable* a,
                             ByteTable* b) {
  const auto pairs = [](F32 x, F32 y) __attribute__((always_inline)) { return FixPairs(x, y); };
  MakeTables(code_book, factor_a, factor_b, pairs, a, b);
}

// A code book as integers, and what one of them is worth when the block's scale is one.
struct FixedBook {
  explicit FixedBook(const float* code_book) {
    float most = 0;
    for (int i = 0; i < 16; ++i) {
      const float magnitude = code_book[i] < 0 ? -code_book[i] : code_book[i];
      most = magnitude > most ? magnitude : most;
    }
    factor = most > 0 ? static_cast<float>(kWeightMost) / most : 0;
    unit = most / static_cast<float>(kWeightMost);
  }
  float factor, unit;
};

}  // namespace nibble::kernels::cpu::NIBBLE_BODY

#endif

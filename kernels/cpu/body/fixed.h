// Fixed point by blocks: what AVX2, and AVX-512 with VNNI but without bf16, multiply weights in, because
// their integer multiply-add takes two products where the floating one takes one; and every body 4-bit
// weights with one row of activations, because one table then serves all blocks.
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
#include "kernels/cpu/body/fixed_words.h"

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

// The power for a row's block. `most`: magnitudes of bf16, each the largest of kPerWord; so that many
// times their sum is not less than the sum of all. They are added up 2^8 times smaller, that no sum is
// infinite; what is nothing then (below 2^-118) has small integers in any case, as no exponent is below
// kLeastExponent.
NIBBLE_INLINE BlockPower RowPower(I32 most) {
  constexpr int64_t kPerWord = kFixedBlock / kWords;
  constexpr float kMargin = kPerWord * 1.001f;
  constexpr int kSmaller = 8;
  static_assert(kSmaller < BlockPower::kLeastExponent);
  const I32 smaller = LessWords(most, kSmaller << 7);
  const int exponent = MaxWord(most) >> 7;
  const int of_sum =
      ExponentOf(kMargin * SumLanes(Add(FirstOfPairs(smaller), SecondOfPairs(smaller)))) + kSmaller;
  // 2^(of_sum - 126) becomes 2^18, 2^(exponent - 126) at most 2^15.
  const int by_sum = of_sum - (kRowSumBits - kRowBits);
  return BlockPower(exponent == 255 || exponent > by_sum ? exponent : by_sum, kRowBits);
}

// Of two vectors of floats the integers side by side: of each pair of words the first and the second.
NIBBLE_INLINE I32 FixPairs(F32 first, F32 second) { return PairWords(Rounded(first), Rounded(second)); }
// kWords bf16 in their order.
NIBBLE_INLINE I32 FixWords(I32 words, F32 factor) {
  return FixPairs(Mul(FirstOfPairs(words), factor), Mul(SecondOfPairs(words), factor));
}

// A whole block, of a row or (kRow false) of a weight; returns its scale.
template <bool kRow>
NIBBLE_INLINE float FixBlock(const BF16* in, int16_t* out) {
  constexpr int64_t kVectors = kFixedBlock / kWords;
  I32 words[kVectors], most = NoWords();
#pragma GCC unroll 4
  for (int64_t i = 0; i < kVectors; ++i) {
    words[i] = LoadInt(in + kWords * i);
    most = MaxWords(most, Magnitudes(words[i]));
  }
  const BlockPower power = kRow ? RowPower(most) : BlockPower(MaxWord(most) >> 7, kWeightBits);
  const F32 factor = Set1(power.factor);
#pragma GCC unroll 4
  for (int64_t i = 0; i < kVectors; ++i) StoreInt(out + kWords * i, FixWords(words[i], factor));
  return power.scale;
}
// A row's block of floats, with the power that they would have as bf16 rounded up.
template <bool kRow>
NIBBLE_INLINE float FixBlock(const float* in, int16_t* out) {
  static_assert(kRow);
  I32 most = NoWords();
#pragma GCC unroll 4
  for (int64_t i = 0; i < kFixedBlock; i += kWords)
    most = MaxWords(most, PairWords(UpperRoundedUp(Load(in + i)), UpperRoundedUp(Load(in + i + kLanes))));
  const BlockPower power = RowPower(most);
  const F32 factor = Set1(power.factor);
#pragma GCC unroll 4
  for (int64_t i = 0; i < kFixedBlock; i += kWords)
    StoreWords(out + i, Rounded(Mul(Load(in + i), factor)), Rounded(Mul(Load(in + i + kLanes), factor)));
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

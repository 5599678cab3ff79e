// Blocks of 64 4-bit weights against their share of one row of activations: how that share waits, and what
// the blocks of some rows sum up to. In fixed point (fixed.h): the code book is one table of integers for all
// blocks, and what a block's integers sum up to is scaled.
#pragma once

#include "kernels/cpu/body/fixed_table.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

constexpr int64_t kNibbleBlock = 64;

#if defined(__AVX512F__)

// Rows whose sums share a register, one in each half.
constexpr int kRowsOfSum = 2;

// Where element i of a block waits: words of two bytes of codes are four nibbles, an element's place in them
// is given by its last two bits, and a byte's high nibble is the even element.
struct BlockOrder {
  constexpr BlockOrder() {
    for (int at = 0; at < kNibbleBlock; ++at)
      element[at] = static_cast<uint16_t>(at % 16 * 4 + (at / 16 ^ 1));
  }
  alignas(64) uint16_t element[kNibbleBlock] = {};
};
NIBBLE_INLINE void OrderFixed(const int16_t* block, int16_t* out) {
  static constexpr BlockOrder kOrder;
  const I32 a = LoadInt(block), b = LoadInt(block + 32);
  StoreInt(out, _mm512_permutex2var_epi16(a, LoadInt(kOrder.element), b));
  StoreInt(out + 32, _mm512_permutex2var_epi16(a, LoadInt(kOrder.element + 32), b));
}
// The codes of two rows' blocks; of tiles they lie side by side.
NIBBLE_INLINE I32 LoadBlocks(const uint8_t* const* codes, bool together) {
  if (together) return LoadInt(codes[0]);
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)codes[0])),
                            _mm256_loadu_si256((const __m256i*)codes[1]), 1);
}
// What the integers of two rows' blocks sum up to, by lanes, each row in its half. Look-ups see five bits, of
// which the first may be anything.
NIBBLE_INLINE I32 SumBlocks(const FixedTable& table, I32 nibbles, const int16_t* words) {
  const auto x = [&](int64_t place) __attribute__((always_inline)) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)(words + 16 * place)));
  };
  const auto look = [&](I32 index) __attribute__((always_inline)) {
    return _mm512_permutexvar_epi16(index, table.twice.words);
  };
  I32 sum = NoWords();
  AddPairProducts(sum, look(nibbles), x(0));
  AddPairProducts(sum, look(_mm512_srli_epi16(nibbles, 4)), x(1));
  AddPairProducts(sum, look(_mm512_srli_epi16(nibbles, 8)), x(2));
  AddPairProducts(sum, look(_mm512_srli_epi16(nibbles, 12)), x(3));
  return sum;
}
NIBBLE_INLINE F32 RowScales(const float* scales) {
  return _mm512_mask_blend_ps(0xFF00, Set1(scales[0]), Set1(scales[1]));
}
NIBBLE_INLINE float SumOfRow(F32 sums, int row) {
  return _mm512_mask_reduce_add_ps(row == 0 ? 0x00FF : 0xFF00, sums);
}

#else  // AVX2

constexpr int kRowsOfSum = 1;

// A block's order: elements of high nibbles before those of low ones; of each, as unpacking bytes of 16-byte
// lanes to words leaves them.
struct BlockOrder {
  constexpr BlockOrder() {
    for (int at = 0; at < kNibbleBlock; ++at) {
      const int vector = at / 16, lane = at % 16 / 8, byte = lane * 16 + vector % 2 * 8 + at % 8;
      element[at] = static_cast<uint8_t>(2 * byte + vector / 2);
    }
  }
  uint8_t element[kNibbleBlock] = {};
};
NIBBLE_INLINE void OrderFixed(const int16_t* block, int16_t* out) {
  static constexpr BlockOrder kOrder;
  for (int64_t i = 0; i < kNibbleBlock; ++i) out[i] = block[kOrder.element[i]];
}
NIBBLE_INLINE I32 LoadBlocks(const uint8_t* const* codes, bool) { return LoadInt(codes[0]); }
// What a block's integers sum up to, by lanes.
NIBBLE_INLINE I32 SumBlocks(const FixedTable& table, I32 bytes, const int16_t* words) {
  I32 even[2], odd[2];
  table.Look(HighNibbles(bytes), &even[0], &even[1]);
  table.Look(LowNibbles(bytes), &odd[0], &odd[1]);
  const auto products = [&](I32 some, int64_t at) __attribute__((always_inline)) {
    return _mm256_madd_epi16(some, LoadInt(words + at));
  };
  const I32 of_even = AddInt(products(even[0], 0), products(even[1], 16));
  const I32 of_odd = AddInt(products(odd[0], 32), products(odd[1], 48));
  return AddInt(of_even, of_odd);
}
NIBBLE_INLINE F32 RowScales(const float* scales) { return Set1(scales[0]); }
NIBBLE_INLINE float SumOfRow(F32 sums, int) { return SumLanes(sums); }

#endif

// x in fixed point, in that order. And what is the same for all rows: the code book as integers.
struct NibbleX {
  static constexpr int64_t Bytes(int64_t k) { return 2 * k + 4 * (k / kNibbleBlock); }
  // `memory`: Bytes(k).
  NibbleX(const WeightView& w, const BF16* x, void* memory)
      : words(static_cast<int16_t*>(memory)),
        scales(reinterpret_cast<float*>(words + w.k)),
        table(w.code_book, FixedBook(w.code_book).factor) {
    const float unit = FixedBook(w.code_book).unit;
    for (int64_t k = 0; k < w.k; k += kNibbleBlock) {
      alignas(64) int16_t block[kNibbleBlock];
      scales[k / kNibbleBlock] = unit * FixBlock<true>(x + k, block);
      OrderFixed(block, words + k);
    }
  }
  int16_t* words;
  float* scales;  // one a block, times what an integer of the code book is worth
  FixedTable table;
};

// The sums of kRowsOfSum rows, and one block of each.
struct NibbleSums {
  F32 sums = Zero();
  NIBBLE_INLINE void AddBlocks(I32 codes, const float* row_scales, const NibbleX& x, int64_t block) {
    const I32 integers = SumBlocks(x.table, codes, x.words + block * kNibbleBlock);
    sums = Fma(ToFloats(integers), Mul(RowScales(row_scales), Set1(x.scales[block])), sums);
  }
};

}  // namespace nibble::kernels::cpu::NIBBLE_BODY

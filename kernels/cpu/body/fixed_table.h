// 4-bit codes as integers (fixed.h).
#pragma once

#include "kernels/cpu/body/fixed.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

#if defined(__AVX512F__)

// The integers of a code book.
struct FixedTable {
  FixedTable() = default;
  NIBBLE_INLINE FixedTable(const float* code_book, float factor) {
    alignas(64) static constexpr uint16_t kLowerTwice[32] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20,
                                                             22, 24, 26, 28, 30, 0,  2,  4,  6,  8,  10,
                                                             12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
    twice.words =
        _mm512_permutexvar_epi16(LoadInt(kLowerTwice), Rounded(Mul(Load(code_book), Set1(factor))));
  }
  NibbleTable twice;
};

#else  // AVX2

// The tables of two blocks.
NIBBLE_INLINE void FixTables(const float* code_book, float factor_a, float factor_b, ByteTable* a,
                             ByteTable* b) {
  const auto pairs = [](F32 x, F32 y) __attribute__((always_inline)) { return FixPairs(x, y); };
  MakeTables(code_book, factor_a, factor_b, pairs, a, b);
}

// The integers of a code book, one table of low and one of high bytes, in both halves of a register.
struct FixedTable {
  NIBBLE_INLINE FixedTable(const float* code_book, float factor) {
    ByteTable table, other;
    FixTables(code_book, factor, factor, &table, &other);
    Load(table);
  }
  explicit NIBBLE_INLINE FixedTable(const ByteTable& table) { Load(table); }
  NIBBLE_INLINE void Load(const ByteTable& table) {
    low = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)table.low));
    high = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)table.high));
  }
  // Words of the first and of the last eight indices of each half.
  NIBBLE_INLINE void Look(I32 index, I32* first, I32* last) const {
    const I32 l = _mm256_shuffle_epi8(low, index), h = _mm256_shuffle_epi8(high, index);
    *first = _mm256_unpacklo_epi8(l, h);
    *last = _mm256_unpackhi_epi8(l, h);
  }
  I32 low, high;
};

NIBBLE_INLINE I32 HighNibbles(I32 bytes) {
  return _mm256_and_si256(_mm256_srli_epi16(bytes, 4), _mm256_set1_epi8(15));
}
NIBBLE_INLINE I32 LowNibbles(I32 bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }

#endif

}  // namespace nibble::kernels::cpu::NIBBLE_BODY

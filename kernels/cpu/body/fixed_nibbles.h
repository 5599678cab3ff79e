// Panels in fixed point (fixed_panel.h) from 4-bit rows of whole blocks of 64: codes are looked up as
// integers and go to the panel without a buffer in between.
#pragma once

#include "kernels/cpu/body/fixed_panel.h"
#include "kernels/cpu/body/fixed_table.h"

#if defined(NIBBLE_FIXED)

namespace nibble::kernels::cpu::NIBBLE_BODY {

#if defined(__AVX512F__)

// Blocks of kLanes rows become columns of a block: 32 weights of each, which are 16 steps, at a time.
NIBBLE_INLINE void LookAcross(const FixedTable& table, const uint8_t* const* codes, float* block) {
#pragma GCC unroll 2
  for (int64_t half = 0; half < 2; ++half) {
    I32 pairs[kLanes];
#pragma GCC unroll 16
    for (int64_t r = 0; r < kLanes; ++r) pairs[r] = table.twice.Look32(codes[r] + 16 * half);
    Transpose(pairs);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) StoreInt(block + (16 * half + i) * kTileColumns, pairs[i]);
  }
}

// The tables of two rows' blocks.
using RowTable = FixedTable;
NIBBLE_INLINE void FixTables(const float* code_book, float factor_a, float factor_b, RowTable* a,
                             RowTable* b) {
  *a = FixedTable(code_book, factor_a);
  *b = FixedTable(code_book, factor_b);
}
// 64 weights of a row, a tile's columns in each of the words.
NIBBLE_INLINE void LookColumns(const RowTable& table, const uint8_t* codes, I32* words) {
  words[0] = table.twice.Look32(codes);
  words[1] = table.twice.Look32(codes + 16);
}
// A step of a tile from two rows.
NIBBLE_INLINE void StoreTwoRows(I32 a, I32 b, float* out) { StoreStepOfPairs(a, b, out); }

#else  // AVX2

using RowTable = ByteTable;

// Blocks of kLanes rows become columns of a block: their codes are transposed as bytes, each of which is a
// step of its column.
NIBBLE_INLINE void LookAcross(const FixedTable& table, const uint8_t* const* codes, float* block) {
  const I32 by_step = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  I32 rows[kLanes];
#pragma GCC unroll 8
  for (int64_t r = 0; r < kLanes; ++r) rows[r] = LoadInt(codes[r]);
  Transpose(rows);
#pragma GCC unroll 8
  for (int64_t j = 0; j < kLanes; ++j) {  // four steps
    const I32 bytes = _mm256_shuffle_epi8(rows[j], by_step);
    I32 even[2], odd[2];
    table.Look(HighNibbles(bytes), &even[0], &even[1]);
    table.Look(LowNibbles(bytes), &odd[0], &odd[1]);
    float* const steps = block + 4 * j * kTileColumns;
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      StoreInt(steps + (2 * i) * kTileColumns, _mm256_unpacklo_epi16(even[i], odd[i]));
      StoreInt(steps + (2 * i + 1) * kTileColumns, _mm256_unpackhi_epi16(even[i], odd[i]));
    }
  }
}

// 64 weights of a row, a tile's columns in each of the words: the halves are four and four columns that
// belong to one vector of columns or to the next, which unpacking with another row's puts together.
NIBBLE_INLINE void LookColumns(const RowTable& scaled, const uint8_t* codes, I32* words) {
  const I32 even_first =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
  const I32 bytes = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(LoadInt(codes), even_first), 0xD8);
  const I32 even = HighNibbles(bytes), odd = LowNibbles(bytes);
  const FixedTable table(scaled);
  table.Look(_mm256_unpacklo_epi8(even, odd), &words[0], &words[1]);
  table.Look(_mm256_unpackhi_epi8(even, odd), &words[2], &words[3]);
}
// A step of a tile from two rows.
NIBBLE_INLINE void StoreTwoRows(I32 a, I32 b, float* out) {
  StoreInt(out, _mm256_unpacklo_epi16(a, b));
  StoreInt(out + kLanes, _mm256_unpackhi_epi16(a, b));
}

#endif

// Rows become columns. The code book is the same for all blocks; their scales stay beside. row0 is a multiple
// of 16, `first` and `depth` of 64.
static void PackFixedNibbleRows(const WeightView& w, int64_t row0, int64_t columns, int64_t first,
                                int64_t depth, float* panel) {
  constexpr int64_t kAhead = 4;  // blocks
  const int64_t tile_floats = FixedTileFloats(depth), row_blocks = w.k / kTileBlock;
  const auto* codes = static_cast<const uint8_t*>(w.data);
  const FixedBook book(w.code_book);
  const FixedTable table(w.code_book, book.factor);
  for (int64_t column = 0; column < columns; column += kLanes) {
    float* const tile = panel + column / kTileColumns * tile_floats + column % kTileColumns;
    const int64_t present = columns - column < kLanes ? columns - column : kLanes;
    const int64_t row = row0 + column, in_group = row % kTileHeight;
    const GroupBlocks group(w, row - in_group);
    for (int64_t b = 0; b < depth / kFixedBlock; ++b) {
      const int64_t block = first / kTileBlock + b;
      const int64_t at = group.first + in_group * group.row_step + block * group.block_step;
      float* const out = tile + b * kFixedBlockFloats;
      const uint8_t* rows[kLanes];
#pragma GCC unroll 16
      for (int64_t r = 0; r < kLanes; ++r) {
        const int64_t stored = at + (r < present ? r : 0) * group.row_step;
        __builtin_prefetch(codes + (stored + kAhead * group.block_step) * (kTileBlock / 2));
        rows[r] = codes + stored * (kTileBlock / 2);
        FixedScales(out)[r] =
            r < present ? book.unit * BlockAbsmax(w, stored, (row + r) * row_blocks + block) : 0.0f;
      }
      LookAcross(table, rows, out);
    }
  }
}

// Where the blocks of up to 64 rows at one place of them are stored, and their scales; what is missing is
// zero. Returns the largest magnitude of the scales, or what is no number there.
static float BlocksBelow(const WeightView& w, int64_t row0, int64_t rows, int64_t block, int64_t* stored,
                         float* scales) {
  const int64_t row_blocks = w.k / kTileBlock;
  uint32_t most_bits = 0;  // no number is more than infinity here
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = row0 + r, in_group = row % kTileHeight;
    const GroupBlocks group(w, row - in_group);
    stored[r] = group.first + in_group * group.row_step + block * group.block_step;
    scales[r] = BlockAbsmax(w, stored[r], row * row_blocks + block);
    uint32_t bits;
    std::memcpy(&bits, scales + r, 4);
    bits &= 0x7FFFFFFFu;
    most_bits = bits > most_bits ? bits : most_bits;
  }
  for (int64_t r = rows; r < kFixedBlock; ++r) {
    stored[r] = stored[0];
    scales[r] = 0;
  }
  return FloatOfBits(most_bits);
}

// Columns are wanted. Each row has a scale of its own, so its table is made for the largest of the 64 rows
// of a block. row0 is a multiple of 64, `first` and `columns` of kTileColumns.
static void PackFixedNibbleColumns(const WeightView& w, int64_t row0, int64_t depth, int64_t first,
                                   int64_t columns, float* panel) {
  constexpr int64_t kTiles = kTileBlock / kTileColumns;
  const int64_t tile_floats = FixedTileFloats(depth);
  const auto* codes = static_cast<const uint8_t*>(w.data);
  const FixedBook book(w.code_book);
  const WeightSource source{w};
  RowTable tables[kFixedBlock];
  float scales[kFixedBlock];
  int64_t stored[kFixedBlock];
  for (int64_t d = 0; d < depth; d += kFixedBlock) {
    const int64_t height = depth - d < kFixedBlock ? depth - d : kFixedBlock;
    source.Load(row0 + d, height, first, columns);
    for (int64_t block = first / kTileBlock; block * kTileBlock < first + columns; ++block) {
      const float most = BlocksBelow(w, row0 + d, height, block, stored, scales);
      const float factor = most > 0 && most < __builtin_inff() ? book.factor / most : 0;
      for (int64_t r = 0; r < kFixedBlock; r += 2)
        FixTables(w.code_book, factor * scales[r], factor * scales[r + 1], tables + r, tables + r + 1);
      const auto out_of = [&](int64_t tile) __attribute__((always_inline)) {
        const int64_t column = block * kTileBlock + tile * kTileColumns - first;
        return column < 0 || column >= columns ? nullptr
                                               : panel + column / kTileColumns * tile_floats +
                                                     d / kFixedBlock * kFixedBlockFloats;
      };
      for (int64_t tile = 0; tile < kTiles; ++tile) {
        float* const out = out_of(tile);
        if (out == nullptr) continue;
        Store(FixedScales(out), Set1(book.unit * most));
        Store(FixedScales(out) + kLanes, Set1(book.unit * most));
      }
      for (int64_t r = 0; r < kFixedBlock; r += 2) {
        I32 a[kTiles], b[kTiles];
        LookColumns(tables[r], codes + stored[r] * (kTileBlock / 2), a);
        LookColumns(tables[r + 1], codes + stored[r + 1] * (kTileBlock / 2), b);
#pragma GCC unroll 4
        for (int64_t tile = 0; tile < kTiles; ++tile)
          if (float* const out = out_of(tile); out != nullptr)
            StoreTwoRows(a[tile], b[tile], out + r / 2 * kTileColumns);
      }
    }
  }
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY

#endif

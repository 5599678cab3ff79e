// Panels in fixed point: what pack.h makes of a weight, for the integer micro-kernel (fixed_kernel.h).
//
// A tile of kTileColumns columns is blocks of 64 of depth; a block is 32 steps of two words for each
// column, the two consecutive in depth, and then the scales of the columns. What is missing of the last
// block is zero.
#pragma once

#include "kernels/cpu/body/fixed.h"
#include "kernels/cpu/body/pack.h"

#if !defined(__AVX512F__)

namespace nibble::kernels::cpu::NIBBLE_BODY {

constexpr int64_t kFixedSteps = kFixedBlock / 2;
constexpr int64_t kFixedBlockFloats = (kFixedSteps + 1) * kTileColumns;

NIBBLE_INLINE int64_t FixedBlocks(int64_t depth) { return (depth + kFixedBlock - 1) / kFixedBlock; }
NIBBLE_INLINE int64_t FixedTileFloats(int64_t depth) { return FixedBlocks(depth) * kFixedBlockFloats; }
NIBBLE_INLINE float* FixedScales(float* block) { return block + kFixedSteps * kTileColumns; }

// Two vectors of columns are a tile.
static_assert(kTileColumns == 2 * kLanes && kTileHeight % kLanes == 0);

// Eight rows of 64 words become eight columns of a block.
NIBBLE_INLINE void StoreAcross(const int16_t (*rows)[kFixedBlock], float* block) {
#pragma GCC unroll 4
  for (int64_t d = 0; d < kFixedBlock; d += 2 * kLanes) {
    I32 pairs[kLanes];
#pragma GCC unroll 8
    for (int64_t r = 0; r < kLanes; ++r) pairs[r] = LoadInt(rows[r] + d);
    Transpose(pairs);
#pragma GCC unroll 8
    for (int64_t i = 0; i < kLanes; ++i) StoreInt(block + (d / 2 + i) * kTileColumns, pairs[i]);
  }
}

// Rows row0 .. row0 + columns - 1 of the source become columns; depth runs along its rows from `first`, a
// multiple of 64.
template <typename Source>
static void PackFixedRows(const Source& source, int64_t row0, int64_t columns, int64_t first, int64_t depth,
                          float* panel) {
  constexpr int64_t kSpan = 256;  // of depth fetched at a time
  const int64_t tile_floats = FixedTileFloats(depth);
  alignas(64) BF16 values[kSpan];
  alignas(64) int16_t words[kSpan / kFixedBlock][kLanes][kFixedBlock];
  for (int64_t column = 0; column < columns; column += kLanes) {
    float* const tile = panel + column / kTileColumns * tile_floats + column % kTileColumns;
    for (int64_t d = 0; d < depth; d += kSpan) {
      const int64_t span = depth - d < kSpan ? depth - d : kSpan, blocks = FixedBlocks(span);
      float* const out = tile + d / kFixedBlock * kFixedBlockFloats;
      for (int64_t r = 0; r < kLanes; ++r) {
        const int64_t row = row0 + column + r;
        const BF16* from = values;
        if (column + r < columns) {
          source.Prefetch(row, first + d + kSpan);
          const BF16* const there = source.At(row, first + d);
          if (there != nullptr && span % kFixedBlock == 0) {
            from = there;
          } else {
            source.Fetch(row, first + d, span, values);
            for (int64_t i = span; i < blocks * kFixedBlock; ++i) values[i] = BF16{};
          }
        } else {
          std::memset(values, 0, sizeof(values));
        }
        for (int64_t b = 0; b < blocks; ++b)
          FixedScales(out + b * kFixedBlockFloats)[r] = FixBlock<false>(from + b * kFixedBlock, words[b][r]);
      }
      for (int64_t b = 0; b < blocks; ++b) StoreAcross(words[b], out + b * kFixedBlockFloats);
    }
  }
}

// Eight columns of up to 64 rows, `stride` apart, become eight columns of a block.
static void FixColumns(const BF16* in, int64_t stride, int64_t rows, float* block) {
  __m128i most = _mm_setzero_si128();
  for (int64_t r = 0; r < rows; ++r) {
    const __m128i words = _mm_loadu_si128((const __m128i*)(in + r * stride));
    most = _mm_max_epi16(most, _mm_and_si128(words, _mm_set1_epi16(0x7FFF)));
  }
  alignas(16) uint16_t magnitudes[kLanes];
  _mm_store_si128((__m128i*)magnitudes, most);
  alignas(32) float factors[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) {
    const BlockPower power(magnitudes[i] >> 7, kWeightBits);
    factors[i] = power.factor;
    FixedScales(block)[i] = power.scale;
  }
  const F32 factor = Load(factors);
  for (int64_t r = 0; r < kFixedBlock; r += 2) {
    const F32 a = r < rows ? Mul(Load(in + r * stride), factor) : Zero();
    const F32 b = r + 1 < rows ? Mul(Load(in + (r + 1) * stride), factor) : Zero();
    StoreInt(block + r / 2 * kTileColumns, FixPairs(a, b));
  }
}

// Columns first .. first + columns - 1 of the source; depth runs over its rows from row0, a multiple of 64.
template <typename Source>
static void PackFixedColumns(const Source& source, int64_t row0, int64_t depth, int64_t first,
                             int64_t columns, float* panel) {
  constexpr int64_t kSpan = 64;  // columns fetched at a time
  const int64_t tile_floats = FixedTileFloats(depth);
  alignas(64) BF16 rows[kFixedBlock][kSpan];
  for (int64_t d = 0; d < depth; d += kFixedBlock) {
    const int64_t height = depth - d < kFixedBlock ? depth - d : kFixedBlock;
    for (int64_t c = 0; c < columns; c += kSpan) {
      const int64_t span = columns - c < kSpan ? columns - c : kSpan;
      const int64_t padded = RoundUp(span, kTileColumns);
      if constexpr (Source::kLoads) source.Load(row0 + d, height, first + c, span);
      const BF16* from = span == padded ? source.At(row0 + d, first + c) : nullptr;
      const int64_t stride = from != nullptr ? source.At(row0 + d + 1, first + c) - from : kSpan;
      if (from == nullptr) {
        for (int64_t r = 0; r < height; ++r) {
          source.Fetch(row0 + d + r, first + c, span, rows[r]);
          for (int64_t i = span; i < padded; ++i) rows[r][i] = BF16{};
        }
        from = rows[0];
      }
      for (int64_t i = 0; i < padded; i += kLanes) {
        float* const tile = panel + (c + i) / kTileColumns * tile_floats + i % kTileColumns;
        FixColumns(from + i, stride, height, tile + d / kFixedBlock * kFixedBlockFloats);
      }
    }
  }
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

// Rows of whole blocks of 64 four-bit codes become columns: the codes of eight rows are transposed as
// bytes, each of which is a step of its column. The code book is the same for all blocks; their scales
// stay beside. row0 is a multiple of 16, `first` and `depth` of 64.
static void PackFixedNibbleRows(const WeightView& w, int64_t row0, int64_t columns, int64_t first,
                                int64_t depth, float* panel) {
  constexpr int64_t kAhead = 4;  // blocks
  const int64_t tile_floats = FixedTileFloats(depth), row_blocks = w.k / kTileBlock;
  const auto* codes = static_cast<const uint8_t*>(w.data);
  const FixedBook book(w.code_book);
  const FixedTable table(w.code_book, book.factor);
  const I32 by_step = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  for (int64_t column = 0; column < columns; column += kLanes) {
    float* const tile = panel + column / kTileColumns * tile_floats + column % kTileColumns;
    const int64_t present = columns - column < kLanes ? columns - column : kLanes;
    const int64_t row = row0 + column, in_group = row % kTileHeight;
    const GroupBlocks group(w, row - in_group);
    for (int64_t b = 0; b < depth / kFixedBlock; ++b) {
      const int64_t block = first / kTileBlock + b;
      const int64_t at = group.first + in_group * group.row_step + block * group.block_step;
      float* const out = tile + b * kFixedBlockFloats;
      I32 rows[kLanes];
#pragma GCC unroll 8
      for (int64_t r = 0; r < kLanes; ++r) {
        const int64_t stored = at + (r < present ? r : 0) * group.row_step;
        __builtin_prefetch(codes + (stored + kAhead * group.block_step) * (kTileBlock / 2));
        rows[r] = LoadInt(codes + stored * (kTileBlock / 2));
        FixedScales(out)[r] =
            r < present ? book.unit * BlockAbsmax(w, stored, (row + r) * row_blocks + block) : 0.0f;
      }
      Transpose(rows);
#pragma GCC unroll 8
      for (int64_t j = 0; j < kLanes; ++j) {  // four steps
        const I32 bytes = _mm256_shuffle_epi8(rows[j], by_step);
        I32 even[2], odd[2];
        table.Look(HighNibbles(bytes), &even[0], &even[1]);
        table.Look(LowNibbles(bytes), &odd[0], &odd[1]);
        float* const steps = out + 4 * j * kTileColumns;
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          StoreInt(steps + (2 * i) * kTileColumns, _mm256_unpacklo_epi16(even[i], odd[i]));
          StoreInt(steps + (2 * i + 1) * kTileColumns, _mm256_unpackhi_epi16(even[i], odd[i]));
        }
      }
    }
  }
}

// 64 weights of a row as words: of each result the halves are four and four columns that belong to one vector
// of columns or to the next, which unpacking with another row's puts together.
NIBBLE_INLINE void LookColumns(const ByteTable& scaled, const uint8_t* codes, I32* words) {
  const I32 even_first =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
  const I32 bytes = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(LoadInt(codes), even_first), 0xD8);
  const I32 even = HighNibbles(bytes), odd = LowNibbles(bytes);
  const FixedTable table(scaled);
  table.Look(_mm256_unpacklo_epi8(even, odd), &words[0], &words[1]);
  table.Look(_mm256_unpackhi_epi8(even, odd), &words[2], &words[3]);
}

// Rows of whole blocks of 64 four-bit codes, of which columns are wanted. Each row has a scale of its own, so
// its table is made for the largest of the 64 rows of a block. row0 is a multiple of 64, `first` and
// `columns` of 16.
static void PackFixedNibbleColumns(const WeightView& w, int64_t row0, int64_t depth, int64_t first,
                                   int64_t columns, float* panel) {
  const int64_t tile_floats = FixedTileFloats(depth), row_blocks = w.k / kTileBlock;
  const auto* codes = static_cast<const uint8_t*>(w.data);
  const FixedBook book(w.code_book);
  const WeightSource source{w};
  ByteTable tables[kFixedBlock];
  float scales[kFixedBlock];
  int64_t stored[kFixedBlock];
  for (int64_t d = 0; d < depth; d += kFixedBlock) {
    const int64_t height = depth - d < kFixedBlock ? depth - d : kFixedBlock;
    source.Load(row0 + d, height, first, columns);
    for (int64_t block = first / kTileBlock; block * kTileBlock < first + columns; ++block) {
      uint32_t most_bits = 0;  // no number is more than infinity here
      for (int64_t r = 0; r < height; ++r) {
        const int64_t row = row0 + d + r, in_group = row % kTileHeight;
        const GroupBlocks group(w, row - in_group);
        stored[r] = group.first + in_group * group.row_step + block * group.block_step;
        scales[r] = BlockAbsmax(w, stored[r], row * row_blocks + block);
        uint32_t bits;
        std::memcpy(&bits, scales + r, 4);
        bits &= 0x7FFFFFFFu;
        most_bits = bits > most_bits ? bits : most_bits;
      }
      const float most = FloatOfBits(most_bits);
      const float factor = most > 0 && most_bits < 0x7F800000u ? book.factor / most : 0;
      for (int64_t r = height; r < kFixedBlock; ++r) {
        stored[r] = stored[0];
        scales[r] = 0;
      }
      for (int64_t r = 0; r < kFixedBlock; r += 2)
        FixTables(w.code_book, factor * scales[r], factor * scales[r + 1], tables + r, tables + r + 1);
      for (int64_t c = 0; c < kTileBlock; c += kTileColumns) {
        const int64_t column = block * kTileBlock + c - first;
        if (column < 0 || column >= columns) continue;
        float* const out =
            panel + column / kTileColumns * tile_floats + d / kFixedBlock * kFixedBlockFloats;
        Store(FixedScales(out), Set1(book.unit * most));
        Store(FixedScales(out) + kLanes, Set1(book.unit * most));
      }
      for (int64_t r = 0; r < kFixedBlock; r += 2) {
        I32 a[4], b[4];
        LookColumns(tables[r], codes + stored[r] * (kTileBlock / 2), a);
        LookColumns(tables[r + 1], codes + stored[r + 1] * (kTileBlock / 2), b);
#pragma GCC unroll 4
        for (int64_t i = 0; i < 4; ++i) {
          const int64_t column = block * kTileBlock + i * kTileColumns - first;
          if (column < 0 || column >= columns) continue;
          float* const out = panel + column / kTileColumns * tile_floats +
                             d / kFixedBlock * kFixedBlockFloats + r / 2 * kTileColumns;
          StoreInt(out, _mm256_unpacklo_epi16(a[i], b[i]));
          StoreInt(out + kLanes, _mm256_unpackhi_epi16(a[i], b[i]));
        }
      }
    }
  }
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY

#endif

// Panels in fixed point: what pack.h makes of a weight, for the integer micro-kernel (fixed_product.h).
//
// A tile of kTileColumns columns is blocks of 64 of depth; a block is 32 steps of two words for each
// column, the two consecutive in depth, and then the scales of the columns. What is missing of the last
// block is zero.
#pragma once

#include "kernels/cpu/body/fixed.h"
#include "kernels/cpu/body/pack.h"

#if defined(NIBBLE_FIXED)

namespace nibble::kernels::cpu::NIBBLE_BODY {

constexpr int64_t kFixedSteps = kFixedBlock / 2;
constexpr int64_t kFixedBlockFloats = (kFixedSteps + 1) * kTileColumns;

NIBBLE_INLINE int64_t FixedBlocks(int64_t depth) { return (depth + kFixedBlock - 1) / kFixedBlock; }
NIBBLE_INLINE int64_t FixedTileFloats(int64_t depth) { return FixedBlocks(depth) * kFixedBlockFloats; }
NIBBLE_INLINE float* FixedScales(float* block) { return block + kFixedSteps * kTileColumns; }

// Two vectors of columns are a tile.
static_assert(kTileColumns == 2 * kLanes && kTileHeight % kLanes == 0);

// kLanes rows of 64 words become as many columns of a block.
NIBBLE_INLINE void StoreAcross(const int16_t (*rows)[kFixedBlock], float* block) {
#pragma GCC unroll 4
  for (int64_t d = 0; d < kFixedBlock; d += kWords) {
    I32 pairs[kLanes];
#pragma GCC unroll 16
    for (int64_t r = 0; r < kLanes; ++r) pairs[r] = LoadInt(rows[r] + d);
    Transpose(pairs);
#pragma GCC unroll 16
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

// kLanes columns of up to 64 rows, `stride` apart, become as many columns of a block.
static void FixColumns(const BF16* in, int64_t stride, int64_t rows, float* block) {
  HalfWords most{};
  for (int64_t r = 0; r < rows; ++r) most = MaxMagnitudes(most, LoadHalf(in + r * stride));
  alignas(32) uint16_t magnitudes[kLanes];
  StoreHalf(magnitudes, most);
  alignas(64) float factors[kLanes];
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

}  // namespace nibble::kernels::cpu::NIBBLE_BODY

#endif

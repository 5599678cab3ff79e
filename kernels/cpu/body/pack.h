// Panels: the right-hand side of a product in the order the micro-kernel reads it.
//
// A panel holds `columns` columns and `depth` of the contracted dimension as tiles of kTileColumns columns;
// a tile is [steps][kTileColumns] of four bytes: two bf16 consecutive in depth, or one float. What is
// missing of the last steps is zero.
//
// A source gives rows of bf16: Fetch(row, first, count, out), and Prefetch(row, first) announces one: a
// weight's rows are too far apart for the processor to guess. At(row, first) is where they already are, or
// null. Load(row, rows, first, count) brings short pieces of many rows into the first-level cache at
// once, where a source has that (kLoads). Columns of the product are rows of the source (PackRows, for
// x W^T) or columns of it (PackColumns, for dy W).
#pragma once

#include "kernels/cpu/body/decode.h"
#include "kernels/cpu/body/simd.h"
#include "kernels/cpu/workspace.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

constexpr int64_t kTileColumns = 2 * kLanes;

NIBBLE_INLINE int64_t Steps(int64_t depth) {
  return (depth + kDepthUnit - 1) / kDepthUnit * kStepUnit;
}

// Steps of a packed panel from `first` on are zero.
static void ZeroSteps(float* panel, int64_t first, int64_t steps, int64_t columns) {
  if (first == steps) return;
  for (int64_t c = 0; c < columns; c += kTileColumns)
    std::memset(panel + (c / kTileColumns * steps + first) * kTileColumns, 0,
                static_cast<size_t>((steps - first) * kTileColumns * 4));
}

// Ahead of use; an address outside of the array does no harm.
NIBBLE_INLINE void FetchLines(const void* address) {
  __builtin_prefetch(address);
  __builtin_prefetch(static_cast<const char*>(address) + 64);
}

// Of groups of kTileHeight rows.
constexpr int64_t kGroupsAhead = 4, kGroupsTogether = 8;

struct WeightSource {
  static constexpr bool kLoads = true;
  const WeightView& w;
#if defined(NIBBLE_FIXED)
  NIBBLE_INLINE const BF16* At(int64_t row, int64_t first) const {
    return w.type == QuantType::kBF16 ? static_cast<const BF16*>(w.data) + row * w.k + first : nullptr;
  }
#else
  NIBBLE_INLINE const BF16* At(int64_t, int64_t) const { return nullptr; }
#endif
  void Fetch(int64_t row, int64_t first, int64_t count, BF16* out) const {
    DecodeRow(w, row, first, count, out);
  }
  void Prefetch(int64_t row, int64_t first) const {
    if (row >= w.n || first >= w.k) return;
    int64_t at = row * w.k + first;
    if (w.order == WeightOrder::kTiles) {
      // Rows of a tile are asked for one after the other: each announces its share of all of them.
      const TiledRow tile(w, row);
      const int64_t in_group = row % kTileHeight;
      at = (tile.first - in_group + first / kTileBlock * tile.step) * kTileBlock + in_group * kPrefetched;
    }
    FetchLines(static_cast<const char*>(w.data) + BytesBefore(w, at));
  }
  // By loading and not by prefetching: the loads wait for each other's lines at the same time, and announcing
  // rows one by one, however far ahead, left a product of 512 rows waiting for 9 % of its time.
  void Load(int64_t row, int64_t rows, int64_t first, int64_t count) const {
    const int64_t end = row + rows < w.n ? row + rows : w.n;
    if (w.order == WeightOrder::kTiles) {
      const int64_t begin = first / kTileBlock;
      const int64_t blocks = (first + count + kTileBlock - 1) / kTileBlock - begin;
      for (row -= row % kTileHeight; row < end; row += kTileHeight) {
        const TiledRow tile(w, row);
        LoadBytes((tile.first + begin * tile.step) * kTileBlock, blocks * tile.step * kTileBlock);
      }
      return;
    }
    for (; row < end; ++row) LoadBytes(row * w.k + first, count);
  }
  // Before blocks of a group of rows that begins at `begin` are looked up: brings what lies in tiles from
  // there on into the first-level cache, scales as well, kGroupsTogether groups at once; announces flat rows
  // kGroupsAhead groups ahead. `groups`: how many have been looked up before.
  void Bring(int64_t begin, int64_t groups, int64_t first_block, int64_t blocks) const {
    if (w.order == WeightOrder::kFlat) {
      const int64_t row = begin + kGroupsAhead * kTileHeight;
      for (int64_t i = 0; i < kTileHeight && row + i < w.n; ++i) {
        const char* at = static_cast<const char*>(w.data) +
                         BytesBefore(w, (row + i) * w.k + first_block * kTileBlock);
        for (int64_t b = 0; b < blocks * (kTileBlock / 2); b += 64) __builtin_prefetch(at + b);
      }
      return;
    }
    if (groups % kGroupsTogether != 0) return;
    const int64_t rows = kGroupsTogether * kTileHeight, end = begin + rows < w.n ? begin + rows : w.n;
    Load(begin, rows, first_block * kTileBlock, blocks * kTileBlock);
    uint32_t any = 0;
    for (int64_t row = begin; row < end; row += kTileHeight) {
      const TiledRow tile(w, row);
      const int64_t at = tile.first + first_block * tile.step;
      const void* scale = w.absmax_codes + at;
      if (w.absmax != nullptr) scale = w.absmax + at;
      any |= *static_cast<const volatile uint8_t*>(scale);
    }
    (void)any;
  }

 private:
  static constexpr int64_t kPrefetched = 256;  // elements of four bits in two lines
  // The lines of `count` elements that are stored one behind the other.
  void LoadBytes(int64_t first, int64_t count) const {
    const auto* at = static_cast<const volatile uint8_t*>(w.data) + BytesBefore(w, first);
    const int64_t last = BytesBefore(w, first + count - 1) - BytesBefore(w, first);
    uint32_t any = 0;
    for (int64_t b = 0; b < last; b += 64) any |= at[b];
    any |= at[last];
    (void)any;
  }
};

struct MatrixSource {
  static constexpr bool kLoads = false;
  const BF16* data = nullptr;
  int64_t stride = 0;
  NIBBLE_INLINE const BF16* At(int64_t row, int64_t first) const { return data + row * stride + first; }
  void Prefetch(int64_t row, int64_t first) const { FetchLines(data + row * stride + first); }
  void Fetch(int64_t row, int64_t first, int64_t count, BF16* out) const {
    std::memcpy(out, data + row * stride + first, static_cast<size_t>(2 * count));
  }
};

// A matrix with dropout, without the scaling.
struct DroppedSource {
  static constexpr bool kLoads = false;
  const BF16* data;
  int64_t stride;
  const Dropout& dropout;
  NIBBLE_INLINE const BF16* At(int64_t, int64_t) const { return nullptr; }
  void Prefetch(int64_t row, int64_t first) const { FetchLines(data + row * stride + first); }
  void Fetch(int64_t row, int64_t first, int64_t count, BF16* out) const {
    std::memcpy(out, data + row * stride + first, static_cast<size_t>(2 * count));
    ZeroDropped(dropout, static_cast<uint64_t>(row * stride + first), count, out);
  }
};

// Rows row0 .. row0 + columns - 1 of the source become columns; depth runs along its rows from first.
template <typename Source>
static void PackRows(const Source& source, int64_t row0, int64_t columns, int64_t first, int64_t depth,
                     float* panel) {
  constexpr int64_t kSpan = 256;  // of depth fetched at a time
  const int64_t steps = Steps(depth);
  alignas(64) BF16 rows[kLanes][kSpan];
  for (int64_t column = 0; column < columns; column += kLanes) {
    float* tile = panel + column / kTileColumns * steps * kTileColumns + column % kTileColumns;
    const int64_t present = columns - column < kLanes ? columns - column : kLanes;
    for (int64_t d = 0; d < depth; d += kSpan) {
      const int64_t span = depth - d < kSpan ? depth - d : kSpan;
      const int64_t padded = RoundUp(span, 2 * kLanes);
      const BF16* at[kLanes];
      const bool whole = present == kLanes && span == padded;
      for (int64_t row = 0; row < kLanes; ++row) {
        at[row] = whole ? source.At(row0 + column + row, first + d) : nullptr;
        if (at[row] != nullptr) continue;
        at[row] = rows[row];
        if (row >= present) {
          std::memset(rows[row], 0, static_cast<size_t>(2 * padded));
          continue;
        }
        source.Prefetch(row0 + column + row, first + d + kSpan);
        source.Fetch(row0 + column + row, first + d, span, rows[row]);
        for (int64_t i = span; i < padded; ++i) rows[row][i] = BF16{};
      }
      for (int64_t s = 0; s < span; s += 2 * kLanes) {
        I32 pairs[kLanes];
        for (int64_t row = 0; row < kLanes; ++row) pairs[row] = LoadInt(at[row] + s);
        Transpose(pairs);
        float* out = tile + (d + s) / kDepthPerStep * kTileColumns;
        const int64_t left = steps - (d + s) / kDepthPerStep;
        if constexpr (kPairs) {
          const int64_t valid = left < kLanes ? left : kLanes;
          for (int64_t i = 0; i < valid; ++i) StoreInt(out + i * kTileColumns, pairs[i]);
        } else {
          const int64_t valid = left < 2 * kLanes ? left : 2 * kLanes;
          for (int64_t i = 0; i < valid; ++i)
            Store(out + i * kTileColumns,
                  i % 2 == 0 ? FirstOfPairs(pairs[i / 2]) : SecondOfPairs(pairs[i / 2]));
        }
      }
    }
  }
}

#if defined(__AVX512F__)

// A step of a tile from 32 columns of two rows of words, which are pairs there.
NIBBLE_INLINE void StoreStepOfPairs(I32 a, I32 b, float* out) {
  alignas(64) static constexpr uint16_t kFirst[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,
                                                      37, 6, 38, 7, 39, 8,  40, 9,  41, 10, 42,
                                                      11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const I32 first = LoadInt(kFirst);
  const I32 second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
  StoreInt(out, _mm512_permutex2var_epi16(a, first, b));
  StoreInt(out + kLanes, _mm512_permutex2var_epi16(a, second, b));
}
// The same of operands: 32 columns of a row (float), or of two rows (bf16), as bf16 in registers.
NIBBLE_INLINE void StoreStep(I32 a, I32 b, float* out) {
#if defined(__AVX512BF16__)
  StoreStepOfPairs(a, b, out);
#else
  (void)b;
  const auto floats = [](__m256i values) { return _mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16); };
  StoreInt(out, floats(_mm512_castsi512_si256(a)));
  StoreInt(out + kLanes, floats(_mm512_extracti64x4_epi64(a, 1)));
#endif
}

#endif

// One step of a tile from one (float) or two (bf16) rows of kTileColumns values.
NIBBLE_INLINE void InterleaveRows(const BF16* a, const BF16* b, float* out) {
#if defined(__AVX512BF16__)
  StoreStep(LoadInt(a), LoadInt(b), out);
#else
  (void)b;
  Store(out, Load(a));
  Store(out + kLanes, Load(a + kLanes));
#endif
}

// Columns first .. first + columns - 1 of the source; depth runs over its rows from row0.
template <typename Source>
static void PackColumns(const Source& source, int64_t row0, int64_t depth, int64_t first, int64_t columns,
                        float* panel) {
  constexpr int64_t kSpan = 256;  // columns fetched at a time
  constexpr int64_t kRows = 64;   // rows loaded at a time
  static_assert(kSpan % kTileColumns == 0);
  const int64_t steps = Steps(depth);
  alignas(64) BF16 rows[2][kSpan];
  for (int64_t c = 0; c < columns; c += kSpan) {
    const int64_t span = columns - c < kSpan ? columns - c : kSpan;
    const int64_t padded = RoundUp(span, kTileColumns);
    for (int64_t row = 0; row < 2; ++row)
      for (int64_t i = span; i < padded; ++i) rows[row][i] = BF16{};
    for (int64_t d = 0; d < depth; d += kDepthPerStep) {
      if constexpr (Source::kLoads)
        if (d % kRows == 0) source.Load(row0 + d, depth - d < kRows ? depth - d : kRows, first + c, span);
      const BF16* at[2] = {nullptr, nullptr};
      for (int64_t i = 0; i < kDepthPerStep; ++i) {
        if (span == padded && d + i < depth) at[i] = source.At(row0 + d + i, first + c);
        if (at[i] != nullptr) continue;
        at[i] = rows[i];
        if (d + i >= depth) {
          std::memset(rows[i], 0, static_cast<size_t>(2 * span));
          continue;
        }
        if constexpr (!Source::kLoads) source.Prefetch(row0 + d + 16 + i, first + c);
        source.Fetch(row0 + d + i, first + c, span, rows[i]);
      }
      float* out = panel + (c / kTileColumns * steps + d / kDepthPerStep) * kTileColumns;
      for (int64_t s = 0; s < span; s += kTileColumns, out += steps * kTileColumns)
        InterleaveRows(at[0] + s, kPairs ? at[1] + s : nullptr, out);
    }
  }
  ZeroSteps(panel, (depth + kDepthPerStep - 1) / kDepthPerStep, steps, columns);
}

#if !defined(NIBBLE_FIXED)

// Rows of whole blocks of 64 four-bit codes become columns: 16 rows, which are one group, are looked up and
// transposed in registers. row0 is a multiple of 16, `first` and `depth` of 32.
static void PackNibbleRows(const WeightView& w, int64_t row0, int64_t columns, int64_t first, int64_t depth,
                           float* panel) {
  static_assert(kLanes == kTileHeight);
  constexpr int64_t kAhead = 4;  // blocks
  const int64_t steps = Steps(depth), row_blocks = w.k / kTileBlock;
  const auto* codes = static_cast<const uint8_t*>(w.data);
  NibbleTable tables[kLanes];
  for (int64_t column = 0; column < columns; column += kLanes) {
    float* const tile = panel + column / kTileColumns * steps * kTileColumns + column % kTileColumns;
    const int64_t present = columns - column < kLanes ? columns - column : kLanes;
    const int64_t row = row0 + column;
    const GroupBlocks group(w, row);
    for (int64_t block = first / kTileBlock; block * kTileBlock < first + depth; ++block) {
      const int64_t at = group.first + block * group.block_step;
      for (int64_t r = 0; r < present; ++r) {
        const int64_t stored = at + r * group.row_step;
        __builtin_prefetch(codes + (stored + kAhead * group.block_step) * (kTileBlock / 2));
        tables[r] = NibbleTable(w.code_book, BlockAbsmax(w, stored, (row + r) * row_blocks + block));
      }
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t d = block * kTileBlock + 32 * half - first;
        if (d < 0 || d >= depth) continue;
        const uint8_t* from = codes + at * (kTileBlock / 2) + 16 * half;
        I32 pairs[kLanes];
        for (int64_t r = 0; r < kLanes; ++r) {
          pairs[r] = r < present ? tables[r].Look32(from) : _mm512_setzero_si512();
          if (r + 1 < present) from += group.row_step * (kTileBlock / 2);
        }
        Transpose(pairs);
        float* const out = tile + d / kDepthPerStep * kTileColumns;
        for (int64_t i = 0; i < kLanes; ++i) {
          if constexpr (kPairs) {
            StoreInt(out + i * kTileColumns, pairs[i]);
          } else {
            Store(out + 2 * i * kTileColumns, FirstOfPairs(pairs[i]));
            Store(out + (2 * i + 1) * kTileColumns, SecondOfPairs(pairs[i]));
          }
        }
      }
    }
  }
}

// Rows of whole blocks of 64 four-bit codes: two tiles of columns at a time go from the codes to the panel
// without a stop. `first` and `columns` are multiples of 32, row0 and depth of kDepthPerStep.
static void PackNibbleColumns(const WeightView& w, int64_t row0, int64_t depth, int64_t first,
                              int64_t columns, float* panel) {
  static_assert(kTileColumns == 32);
  const int64_t steps = Steps(depth), row_blocks = w.k / kTileBlock;
  const int64_t first_block = first / kTileBlock, end_block = (first + columns + kTileBlock - 1) / kTileBlock;
  const auto* codes = static_cast<const uint8_t*>(w.data);
  const WeightSource source{w};
  const int64_t end = row0 + depth;
  int64_t groups = 0;
  for (int64_t row = row0; row < end;) {
    const int64_t begin = row / kTileHeight * kTileHeight;
    const int64_t stop = begin + kTileHeight < end ? begin + kTileHeight : end;
    const GroupBlocks group(w, begin);
    source.Bring(begin, groups++, first_block, end_block - first_block);
    for (; row < stop; row += kDepthPerStep) {
      float* const out = panel + (row - row0) / kDepthPerStep * kTileColumns;
      for (int64_t block = first_block; block < end_block; ++block) {
        const int64_t at = group.first + (row - begin) * group.row_step + block * group.block_step;
        const NibbleTable a(w.code_book, BlockAbsmax(w, at, row * row_blocks + block));
        const uint8_t* const codes_a = codes + at * (kTileBlock / 2);
        const auto both = [&](const NibbleTable& b, const uint8_t* codes_b) {
          for (int64_t half = 0; half < 2; ++half) {
            const int64_t column = block * kTileBlock + 32 * half;
            if (column < first || column >= first + columns) continue;
            StoreStep(a.Look32(codes_a + 16 * half), b.Look32(codes_b + 16 * half),
                      out + (column - first) / kTileColumns * steps * kTileColumns);
          }
        };
        if constexpr (kPairs) {
          const int64_t next = at + group.row_step;
          both(NibbleTable(w.code_book, BlockAbsmax(w, next, (row + 1) * row_blocks + block)),
               codes + next * (kTileBlock / 2));
        } else {
          both(a, codes_a);
        }
      }
    }
  }
  ZeroSteps(panel, depth / kDepthPerStep, steps, columns);
}

#endif

}  // namespace nibble::kernels::cpu::NIBBLE_BODY

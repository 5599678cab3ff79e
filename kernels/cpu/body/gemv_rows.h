// 4-bit rows against one row of activations (gemv.h): how a block finds its scale, and the sums of some rows.
#pragma once

#include "kernels/cpu/body/gemv_block.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

// How far ahead lines are fetched into the second-level cache: the first has too few places for lines that
// are under way.
constexpr int64_t kFetchAhead = 8192;        // bytes
constexpr int64_t kTileFetchAhead = 16384;   // one stream has to be asked for earlier than several
constexpr int64_t kPlainFetchAhead = 1024;   // of what the hardware follows by itself
constexpr int kRowsTogether = 4 * kRowsOfSum;
// Of a row in tiles, before the next rows, where not all rows of a group have registers for their sums.
constexpr int64_t kBlocksTogether = 32;
constexpr bool kGroupTogether = kRowsOfSum > 1;

// How the scales of a weight are found.
enum class ScaleKind { kPlain, kNested, kAny };

NIBBLE_INLINE bool WholeNibbleBlocks(const WeightView& w) {
  const bool four_bits =
      w.type == QuantType::kNF4 || w.type == QuantType::kFP4 || w.type == QuantType::kINT4;
  return four_bits && w.k % kNibbleBlock == 0 && w.block % kNibbleBlock == 0;
}

// What will be read later, fetched with the block at `place` of row r, the `read`-th that is read here: of
// flat rows, which are apart, a line with every block, of tiles one with every two.
template <bool kTiled>
NIBBLE_INLINE void FetchLater(const uint8_t* ahead, int64_t place, int64_t read, int r) {
  if (kTiled && r % 2 != 0) return;
  const uint8_t* later = ahead + (kTiled ? read : place) * (kNibbleBlock / 2);
  _mm_prefetch(reinterpret_cast<const char*>(later), _MM_HINT_T1);
}

// Doubly quantized scales, ready: the whole map times one nested absmax, plus the offset. A nested block's
// 256 scales cost one pass over 256 values instead of 256 gathers; tables are made when first asked for.
class NestedScales {
 public:
  // Rows that are read together need tables less than kTables apart.
  static constexpr int64_t kTables = 16;
  static bool Suits(const WeightView& w, int64_t rows) {
    return w.absmax == nullptr && rows * (w.k / kNibbleBlock) + 256 <= 256 * kTables;
  }
  // [256] by code.
  NIBBLE_INLINE const float* Of(const WeightView& w, int64_t nested) {
    float* table = tables_[nested % kTables];
    if (made_[nested % kTables] != nested + 1) Make(w, nested, table);
    return table;
  }

 private:
  void Make(const WeightView& w, int64_t nested, float* table) {
    const F32 absmax = Set1(w.nested_absmax[nested]), offset = Set1(w.offset);
    for (int64_t i = 0; i < 256; i += kLanes)
      Store(table + i, Add(Mul(Load(w.nested_map + i), absmax), offset));
    made_[nested % kTables] = nested + 1;
  }
  alignas(64) float tables_[kTables][256];
  int64_t made_[kTables] = {};  // nested block + 1
};

// Blocks begin .. end - 1 of kRows consecutive rows against x, added to their sums; of tiles, the rows are of
// one group. `ahead`: see FetchLater.
template <int kRows, ScaleKind kKind, bool kTiled>
static void NibbleRows(const WeightView& w, int64_t row, int64_t begin, int64_t end, const NibbleX& x,
                       NestedScales* nested, const uint8_t* ahead, NibbleSums* sums) {
  constexpr int64_t kBytes = kNibbleBlock / 2;
  constexpr int kSums = (kRows + kRowsOfSum - 1) / kRowsOfSum;
  const int64_t blocks = w.k / kNibbleBlock, per_scale = w.block / kNibbleBlock;
  int64_t first = row * blocks, row_step = blocks, block_step = 1;  // in blocks
  if constexpr (kTiled) {
    const TiledRow tile(w, row);
    first = tile.first;
    row_step = 1;
    block_step = tile.step;
  }
  const auto* codes = static_cast<const uint8_t*>(w.data) + first * kBytes;
  const uint8_t* scale_codes = kKind == ScaleKind::kNested ? w.absmax_codes + first : nullptr;
  const float* scales = kKind == ScaleKind::kPlain ? w.absmax + first : nullptr;
  NibbleSums rows[kSums];
#pragma GCC unroll 16
  for (int s = 0; s < kSums; ++s) rows[s] = sums[s];
  for (int64_t b = begin; b < end;) {
    const float* table[kRows];
    int64_t stop = end;
    if constexpr (kKind == ScaleKind::kNested) {  // to where the first of the rows needs its next table
      for (int r = 0; r < kRows; ++r) {
        const int64_t block = (row + r) * blocks + b;
        table[r] = nested->Of(w, block >> 8);
        const int64_t left = 256 - (block & 255);
        if (stop - b > left) stop = b + left;
      }
    }
    for (; b < stop; ++b) {
#pragma GCC unroll 16
      for (int s = 0; s < kSums; ++s) {
        const uint8_t* at[kRowsOfSum];
        float scale[kRowsOfSum];
#pragma GCC unroll 2
        for (int i = 0; i < kRowsOfSum; ++i) {
          const int r = s * kRowsOfSum + i < kRows ? s * kRowsOfSum + i : kRows - 1;
          const int64_t place = r * row_step + b * block_step;
          FetchLater<kTiled>(ahead, place, (b - begin) * kRows + r, r);
          at[i] = codes + place * kBytes;
          if constexpr (kKind == ScaleKind::kNested) {
            scale[i] = table[r][scale_codes[place]];
          } else if constexpr (kKind == ScaleKind::kPlain) {
            scale[i] = scales[place];
          } else {
            scale[i] = BlockAbsmax(w, (first + place) / per_scale, ((row + r) * blocks + b) / per_scale);
          }
        }
        rows[s].AddBlocks(LoadBlocks(at, kTiled && kRows > 1), scale, x, b);
      }
    }
  }
#pragma GCC unroll 16
  for (int s = 0; s < kSums; ++s) sums[s] = rows[s];
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY

// Products of some rows with one tile of a panel, in operands (simd.h): the micro-kernel, its rows, and how a
// product (gemm.h) holds both.
#pragma once

#include "kernels/check.h"
#if defined(NIBBLE_AMX)
#include "kernels/cpu/body/amx.h"
#endif
#include "kernels/cpu/body/pack.h"
#include "kernels/cpu/body/simd.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/workspace.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

#if defined(NIBBLE_AMX)
constexpr int64_t kTileRows = 32;
#elif defined(__AVX512F__)
constexpr int64_t kTileRows = 12;  // x 2 registers of columns: 24 sums of the 32 registers
#else
constexpr int64_t kTileRows = 6;   // 12 sums of 16
#endif

// Rows that are wanted soon, as they lie in memory; null = none.
struct NextRows {
  const char* data = nullptr;
  int64_t stride_bytes = 0;
  int64_t bytes_per_step = 0;
};

#if !defined(NIBBLE_AMX)

// Steps of depth between two looks at the counters. With 12 multiply-adds in a step the loop's own ten
// instructions count where a core is shared with another's thread, which takes half of the issue
// slots; with 24 they do not.
#if defined(__AVX512F__)
constexpr int64_t kStepsAtOnce = 1;
#else
constexpr int64_t kStepsAtOnce = 8;
#endif

// c[rows, vectors * kLanes] (+)= lhs * one tile of a panel. lhs rows are steps of 4 bytes.
// `next` is what will be multiplied soon: it is fetched into the second-level cache on the way (12 % at 4096
// deep).
template <int kRows, int kVectors>
static void MicroKernel(const char* lhs, int64_t lhs_stride, const float* tile, int64_t steps, float* c,
                        int64_t c_stride, bool accumulate, const NextRows& next) {
  F32 sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      sums[r][v] = accumulate ? Load(c + r * c_stride + v * kLanes) : Zero();
  // Four row pointers instead of twelve: the others are one or two strides away.
  const char* rows[4];
  for (int i = 0; i < 4; ++i) rows[i] = lhs + 3 * i * lhs_stride;
  // One step of depth, `ahead` steps from where the pointers are.
  const auto multiply = [&](int64_t ahead) __attribute__((always_inline)) {
    F32 columns[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) columns[v] = Load(tile + ahead * kTileColumns + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      float value;
      std::memcpy(&value, rows[r / 3] + (r % 3) * lhs_stride + 4 * ahead, 4);
      const F32 a = Set1(value);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) AddProduct(sums[r][v], a, columns[v]);
    }
  };
  int64_t s = 0;
  for (; s + kStepsAtOnce <= steps; s += kStepsAtOnce) {
    if (s % 16 == 0 && next.data != nullptr) {  // a cache line of every row, or half of one
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r)
        __builtin_prefetch(next.data + r * next.stride_bytes + next.bytes_per_step * s, 0, 2);
    }
#pragma GCC unroll 8
    for (int ahead = 0; ahead < kStepsAtOnce; ++ahead) multiply(ahead);
    tile += kStepsAtOnce * kTileColumns;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) rows[i] += 4 * kStepsAtOnce;
  }
  for (; s < steps; ++s) {
    multiply(0);
    tile += kTileColumns;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) rows[i] += 4;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) Store(c + r * c_stride + v * kLanes, sums[r][v]);
}

using MicroKernelFn = void (*)(const char*, int64_t, const float*, int64_t, float*, int64_t, bool,
                               const NextRows&);

template <int... kIndex>
struct MicroKernels {
  static constexpr MicroKernelFn kTable[] = {&MicroKernel<kIndex / 2 + 1, kIndex % 2 + 1>...};
};
#if defined(__AVX512F__)
using AllMicroKernels = MicroKernels<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,
                                     20, 21, 22, 23>;
#else
using AllMicroKernels = MicroKernels<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11>;
#endif

#endif

// One tile: rows <= kTileRows, columns <= kTileColumns; c is written up to a multiple of kLanes columns.
NIBBLE_INLINE void MultiplyTile(const void* lhs, int64_t lhs_stride_bytes, const float* tile, int64_t steps,
                                int64_t rows, int64_t columns, float* c, int64_t c_stride,
                                bool accumulate, const NextRows& next = {}) {
#if defined(NIBBLE_AMX)
  (void)next;
  MultiplyWithTiles(static_cast<const char*>(lhs), lhs_stride_bytes, tile, steps, rows, columns, c,
                    c_stride, accumulate);
#else
  const int64_t kernel = (rows - 1) * 2 + (columns > kLanes ? 1 : 0);
  AllMicroKernels::kTable[kernel](static_cast<const char*>(lhs), lhs_stride_bytes, tile, steps, c,
                                  c_stride, accumulate, next);
#endif
}

// Rows of one tile: full tiles would leave a thin last one, which is slow in registers, so they are
// evened out.
NIBBLE_INLINE int64_t EvenRows(int64_t rows, int64_t most = kTileRows) {
  if (kTileRows == 32) return kTileRows;
  if (rows <= most) return rows > 0 ? rows : 1;
  const int64_t tiles = (rows + most - 1) / most;
  return (rows + tiles - 1) / tiles;
}

// The left-hand side: rows of bf16 as ops get them, or of operands we made.
struct Lhs {
  const void* data = nullptr;
  int64_t stride = 0;                // in elements
  bool operands = false;             // float in a float body; says nothing new in a bf16 body
  const Dropout* dropout = nullptr;  // element (row, column) has index row * stride + column

  NIBBLE_INLINE int64_t ElementBytes() const {
    return operands ? static_cast<int64_t>(sizeof(Operand)) : 2;
  }
  // Of rows a multiple of 4 KiB apart a first-level cache of 32 KiB holds eight: each of more would be thrown
  // out before it is read again.
  NIBBLE_INLINE bool Crowded(int64_t rows) const {
    return kTileRows != 32 && stride * ElementBytes() % 4096 == 0 && rows > FirstLevelWays();
  }
  // Whether the micro-kernel can read the rows where they are: operands already, whole steps, and room.
  NIBBLE_INLINE bool Direct(int64_t depth, int64_t rows) const {
    return (operands || kPairs) && dropout == nullptr && depth % kDepthUnit == 0 && !Crowded(rows);
  }
};

NIBBLE_INLINE void CopyOperands(const BF16* in, int64_t count, Operand* out) {
#if defined(__AVX512BF16__)
  std::memcpy(out, in, static_cast<size_t>(2 * count));
#else
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Store(out + i, Load(in + i));
  for (; i < count; ++i) out[i] = ToFloat(in[i]);
#endif
}

// Rows row .. row + rows - 1, columns first .. first + depth - 1 as operands; returns where, and the
// stride in bytes. `copy` is used when they cannot stay where they are.
struct PreparedRows {
  const void* data;
  int64_t stride_bytes;
  NextRows next;  // the rows behind them, where they lie
};
// A little more than the depth, so that the rows spread over cache sets.
NIBBLE_INLINE int64_t CopyStride(int64_t depth) { return Steps(depth) * kDepthPerStep + 32; }
static PreparedRows PrepareRows(const Lhs& lhs, int64_t row, int64_t rows, int64_t first, int64_t depth,
                                Operand* copy) {
  const int64_t stride_bytes = lhs.stride * lhs.ElementBytes();
  const char* data = static_cast<const char*>(lhs.data) + row * stride_bytes + first * lhs.ElementBytes();
  const NextRows next{data + rows * stride_bytes, stride_bytes, lhs.ElementBytes() * kDepthPerStep};
  if (lhs.Direct(depth, rows)) return {data, stride_bytes, next};
  const int64_t stride = CopyStride(depth);
  for (int64_t i = 0; i < rows; ++i) {
    Operand* out = copy + i * stride;
    const int64_t at = (row + i) * lhs.stride + first;
    if (lhs.operands) {
      std::memcpy(out, static_cast<const Operand*>(lhs.data) + at,
                  static_cast<size_t>(depth) * sizeof(Operand));
    } else {
      CopyOperands(static_cast<const BF16*>(lhs.data) + at, depth, out);
      if (lhs.dropout != nullptr) ZeroDropped(*lhs.dropout, static_cast<uint64_t>(at), depth, out);
    }
    for (int64_t d = depth; d < Steps(depth) * kDepthPerStep; ++d) out[d] = Operand{};
  }
  return {copy, stride * static_cast<int64_t>(sizeof(Operand)), next};
}

// How a product holds its two sides: rows and panels of operands.
struct OperandFormat {
  static constexpr bool kFixed = false;
  using Rows = PreparedRows;
  static constexpr int64_t kRows = kTileRows;  // of a tile
  static constexpr int64_t kMostDepth = kPairs && kTileRows < 32 ? 4096 : 2048;  // of a panel
  static constexpr int64_t kDepthMultiple = 32;
  static int64_t TileFloats(int64_t depth) { return Steps(depth) * kTileColumns; }
  // The deepest panel of `columns` columns in so many bytes.
  static int64_t DepthWithin(int64_t bytes, int64_t columns) {
    return bytes / (4 * columns) * kDepthPerStep;
  }
  static int64_t RowBytes(int64_t depth) {
    return kRows * CopyStride(depth) * static_cast<int64_t>(sizeof(Operand));
  }
  static Rows Prepare(const Lhs& lhs, int64_t row, int64_t rows, int64_t first, int64_t depth, void* memory) {
    return PrepareRows(lhs, row, rows, first, depth, static_cast<Operand*>(memory));
  }
  // `c` (+)= rows * tile; with `ahead` the rows behind them are fetched meanwhile.
  static void Multiply(const Rows& a, int64_t depth, const float* tile, int64_t rows, int64_t columns,
                       float* c, int64_t c_stride, bool accumulate, bool ahead) {
    MultiplyTile(a.data, a.stride_bytes, tile, Steps(depth), rows, columns, c, c_stride, accumulate,
                 ahead ? a.next : NextRows{});
  }
};

}  // namespace nibble::kernels::cpu::NIBBLE_BODY

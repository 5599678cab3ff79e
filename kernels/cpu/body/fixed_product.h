// Products of some rows with one tile of a panel in fixed point (fixed.h): the integer micro-kernel, its
// rows, and how a product (gemm.h) holds both.
#pragma once

#include "kernels/check.h"
#include "kernels/cpu/body/fixed_panel.h"
#include "kernels/cpu/body/tile_product.h"

#if defined(NIBBLE_FIXED)

namespace nibble::kernels::cpu::NIBBLE_BODY {

#if defined(__AVX512F__)
constexpr int64_t kFixedRows = 12;  // 24 sums of 32 registers
constexpr int64_t kFixedStepsAtOnce = 1;
#else
// 8 or 10 sums of 16 registers: two rows' products wait for their sums in four others.
constexpr int64_t kFixedRows = 5;
constexpr int64_t kFixedStepsAtOnce = 8;
#endif

struct FixedRows {
  const int16_t* data;
  int64_t stride;
  const float* scales;  // [rows][scale_stride], one a block
  int64_t scale_stride;
  NextRows next;
};

using WordPair = int32_t __attribute__((may_alias));

#if defined(__AVX512F__)
NIBBLE_INLINE void AddStep(const int16_t* a, I32 first, I32 second, I32* sums) {
  const I32 pair = SetInt(*(const WordPair*)a);
  AddPairProducts(sums[0], pair, first);
  AddPairProducts(sums[1], pair, second);
}
NIBBLE_INLINE void AddSteps(const int16_t* a, const int16_t* b, I32 first, I32 second, I32* sums_a,
                            I32* sums_b) {
  AddStep(a, first, second, sums_a);
  AddStep(b, first, second, sums_b);
}
#else
// The sums of two rows, and of one, with a step added. In this order because adding would otherwise keep
// the units busy that alone multiply: 24.4 products a cycle on Zen 3, with sums right behind each row's
// products 22.3.
NIBBLE_INLINE void AddSteps(const int16_t* a, const int16_t* b, I32 first, I32 second, I32* sums_a,
                            I32* sums_b) {
  I32 x, y, p, q;
  asm("vpbroadcastd %8, %0\n\t"
      "vpbroadcastd %9, %1\n\t"
      "vpmaddwd %11, %0, %2\n\t"
      "vpmaddwd %10, %0, %0\n\t"
      "vpmaddwd %11, %1, %3\n\t"
      "vpmaddwd %10, %1, %1\n\t"
      "vpaddd %2, %5, %5\n\t"
      "vpaddd %0, %4, %4\n\t"
      "vpaddd %3, %7, %7\n\t"
      "vpaddd %1, %6, %6"
      : "=&x"(x), "=&x"(y), "=&x"(p), "=&x"(q), "+x"(sums_a[0]), "+x"(sums_a[1]), "+x"(sums_b[0]),
        "+x"(sums_b[1])
      : "m"(*(const WordPair*)a), "m"(*(const WordPair*)b), "x"(first), "x"(second));
}
NIBBLE_INLINE void AddStep(const int16_t* a, I32 first, I32 second, I32* sums) {
  I32 x, p;
  asm("vpbroadcastd %4, %0\n\t"
      "vpmaddwd %6, %0, %1\n\t"
      "vpmaddwd %5, %0, %0\n\t"
      "vpaddd %1, %3, %3\n\t"
      "vpaddd %0, %2, %2"
      : "=&x"(x), "=&x"(p), "+x"(sums[0]), "+x"(sums[1])
      : "m"(*(const WordPair*)a), "x"(first), "x"(second));
}
#endif

// c[rows, kTileColumns] += rows * one tile of a panel, block by block.
template <int kRows>
static void FixedMicroKernel(const FixedRows& rows, const float* tile, int64_t blocks, float* c,
                             int64_t c_stride, bool ahead) {
  constexpr int kPointers = (kRows + 2) / 3;
  const int16_t* at[kPointers];
  const int64_t stride = rows.stride;
#pragma GCC unroll 4
  for (int i = 0; i < kPointers; ++i) at[i] = rows.data + 3 * i * stride;
  const auto row = [&](int r) __attribute__((always_inline)) { return at[r / 3] + (r % 3) * stride; };
  for (int64_t b = 0; b < blocks; ++b) {
    I32 sums[kRows][2];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = NoWords();
    if (ahead) {
      const int64_t bytes = rows.next.bytes_per_step * kFixedSteps;
      for (int r = 0; r < kRows; ++r)
        for (int64_t line = 0; line < bytes; line += 64)
          __builtin_prefetch(rows.next.data + r * rows.next.stride_bytes + b * bytes + line, 0, 2);
    }
    for (int64_t s = 0; s < kFixedSteps; s += kFixedStepsAtOnce) {
#pragma GCC unroll 8
      for (int64_t i = 0; i < kFixedStepsAtOnce; ++i) {
        const I32 first = LoadInt(tile + i * kTileColumns);
        const I32 second = LoadInt(tile + i * kTileColumns + kLanes);
#pragma GCC unroll 8
        for (int r = 0; r + 1 < kRows; r += 2)
          AddSteps(row(r) + 2 * i, row(r + 1) + 2 * i, first, second, sums[r], sums[r + 1]);
        if constexpr (kRows % 2 != 0) AddStep(row(kRows - 1) + 2 * i, first, second, sums[kRows - 1]);
      }
      tile += kFixedStepsAtOnce * kTileColumns;
#pragma GCC unroll 4
      for (int i = 0; i < kPointers; ++i) at[i] += 2 * kFixedStepsAtOnce;
    }
    const F32 scales[2] = {Load(tile), Load(tile + kLanes)};
    tile += kTileColumns;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const F32 scale = Set1(rows.scales[r * rows.scale_stride + b]);
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        float* const out = c + r * c_stride + v * kLanes;
        Store(out, Fma(ToFloats(sums[r][v]), Mul(scale, scales[v]), Load(out)));
      }
    }
  }
}

using FixedKernelFn = void (*)(const FixedRows&, const float*, int64_t, float*, int64_t, bool);
template <int... kIndex>
struct FixedKernels {
  static constexpr FixedKernelFn kTable[] = {&FixedMicroKernel<kIndex + 1>...};
};
#if defined(__AVX512F__)
using AllFixedKernels = FixedKernels<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11>;
#else
using AllFixedKernels = FixedKernels<0, 1, 2, 3, 4>;
#endif

// How a product holds its two sides: rows and panels in fixed point. Rows are not dropped from.
struct FixedFormat {
  static constexpr bool kFixed = true;
  using Rows = FixedRows;
  static constexpr int64_t kRows = kFixedRows;
  static constexpr int64_t kMostDepth = 2048;
  static constexpr int64_t kDepthMultiple = kFixedBlock;
  static int64_t TileFloats(int64_t depth) { return FixedTileFloats(depth); }
  static int64_t DepthWithin(int64_t bytes, int64_t columns) {
    return bytes / (4 * columns * (kFixedBlockFloats / kTileColumns)) * kFixedBlock;
  }
  // A little more than the depth, so that the rows spread over cache sets.
  static int64_t Stride(int64_t depth) { return FixedBlocks(depth) * kFixedBlock + 32; }
  static int64_t RowBytes(int64_t depth) {
    return kRows * (2 * Stride(depth) + 4 * FixedBlocks(depth));
  }
  static Rows Prepare(const Lhs& lhs, int64_t row, int64_t rows, int64_t first, int64_t depth, void* memory) {
    KERNEL_CHECK(lhs.dropout == nullptr);
    const int64_t stride = Stride(depth), blocks = FixedBlocks(depth);
    auto* const words = static_cast<int16_t*>(memory);
    auto* const scales = reinterpret_cast<float*>(words + kRows * stride);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = (row + i) * lhs.stride + first;
      if (lhs.operands)
        FixRow(static_cast<const Operand*>(lhs.data) + at, depth, words + i * stride, scales + i * blocks);
      else
        FixRow(static_cast<const BF16*>(lhs.data) + at, depth, words + i * stride, scales + i * blocks);
    }
    const int64_t bytes = lhs.ElementBytes();
    const char* behind = static_cast<const char*>(lhs.data) + ((row + rows) * lhs.stride + first) * bytes;
    return {words, stride, scales, blocks, NextRows{behind, lhs.stride * bytes, 2 * bytes}};
  }
  static void Multiply(const Rows& a, int64_t depth, const float* tile, int64_t rows, int64_t columns,
                       float* c, int64_t c_stride, bool accumulate, bool ahead) {
    (void)columns;  // all of a tile's: what is behind the last one has room
    if (!accumulate)
      for (int64_t r = 0; r < rows; ++r)
        std::memset(c + r * c_stride, 0, sizeof(float) * static_cast<size_t>(kTileColumns));
    AllFixedKernels::kTable[rows - 1](a, tile, FixedBlocks(depth), c, c_stride, ahead);
  }
};

}  // namespace nibble::kernels::cpu::NIBBLE_BODY

#endif

// One row of activations against a frozen weight, for generation: every weight is read once, so the memory
// is the limit and nothing may be written in between.
//
// 4-bit rows of whole blocks of 64: 32 bytes are looked up in a table where they are (gemv_block.h), their
// high and low nibbles being the even and the odd elements; x waits in the order in which they come. Some
// rows at a time share x; in flat order they are as many streams, in tiles one. What is read is fetched into
// the second-level cache some pages ahead, because the hardware does not follow rows. Everything else is
// decoded in spans into the first-level cache, or multiplied where it is (bf16).
#pragma once

#include "kernels/cpu/body/gemm.h"
#include "kernels/cpu/body/gemv_rows.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

// Flat rows row .. end - 1, some at a time, each from its beginning to its end.
template <ScaleKind kKind, typename Emit>
static void FlatNibbleProducts(const WeightView& w, int64_t row, int64_t end, const NibbleX& x,
                               const Emit& emit) {
  const int64_t blocks = w.k / kNibbleBlock, row_bytes = w.k / 2;
  NestedScales nested;
  const auto some = [&]<int kRows>() {
    NibbleSums sums[(kRows + kRowsOfSum - 1) / kRowsOfSum];
    const auto* ahead =
        static_cast<const uint8_t*>(w.data) + row * row_bytes + RoundUp(kFetchAhead, kRows * row_bytes);
    NibbleRows<kRows, kKind, false>(w, row, 0, blocks, x, &nested, ahead, sums);
    for (int r = 0; r < kRows; ++r) emit(row + r, SumOfRow(sums[r / kRowsOfSum].sums, r % kRowsOfSum));
    row += kRows;
  };
  while (row + kRowsTogether <= end) some.template operator()<kRowsTogether>();
  while (row + kRowsOfSum <= end) some.template operator()<kRowsOfSum>();
  while (row < end) some.template operator()<1>();
}

// Whole groups of rows in tiles, read as they lie: all rows at once, or some blocks of all rows, some rows
// at a time, then the next blocks. Meanwhile the sums wait.
template <ScaleKind kKind, typename Emit>
static void TiledNibbleProducts(const WeightView& w, int64_t row, int64_t end, const NibbleX& x,
                                const Emit& emit) {
  const int64_t blocks = w.k / kNibbleBlock;
  // Scales of all rows of a group have to find room, or else their tables would be made again and again.
  const bool fits = w.absmax != nullptr || NestedScales::Suits(w, kTileHeight);
  NestedScales nested;
  for (; row < end; row += kTileHeight) {
    const TiledRow tile(w, row);
    const int64_t height = tile.step;
    const bool whole = kGroupTogether && fits && height == kTileHeight;
    const int64_t chunk = fits && !whole ? kBlocksTogether : blocks;
    NibbleSums sums[kTileHeight / kRowsOfSum];
    for (int64_t b = 0; b < blocks; b += chunk) {
      const int64_t stop = b + chunk < blocks ? b + chunk : blocks;
      const auto* ahead = static_cast<const uint8_t*>(w.data) + kTileFetchAhead +
                          (tile.first + b * height) * (kNibbleBlock / 2);
      int64_t r = 0;
      const auto some = [&]<int kRows>() {
        NibbleRows<kRows, kKind, true>(w, row + r, b, stop, x, &nested, ahead, sums + r / kRowsOfSum);
        ahead += (stop - b) * kRows * (kNibbleBlock / 2);
        r += kRows;
      };
      if constexpr (kGroupTogether) {
        if (whole) some.template operator()<kTileHeight>();
      }
      while (r + kRowsTogether <= height) some.template operator()<kRowsTogether>();
      while (r + kRowsOfSum <= height) some.template operator()<kRowsOfSum>();
      while (r < height) some.template operator()<1>();
    }
    for (int64_t r = 0; r < height; ++r)
      emit(row + r, SumOfRow(sums[r / kRowsOfSum].sums, static_cast<int>(r % kRowsOfSum)));
  }
}

template <ScaleKind kKind, typename Emit>
static void NibbleProducts(const WeightView& w, int64_t row, int64_t end, const NibbleX& x,
                           const Emit& emit) {
  if (w.order == WeightOrder::kTiles) {
    TiledNibbleProducts<kKind>(w, row, end, x, emit);
  } else {
    FlatNibbleProducts<kKind>(w, row, end, x, emit);
  }
}

// `count` bf16 weights against as many operands, both readable to a multiple of 32.
NIBBLE_INLINE void DotSpan(const BF16* weights, const Operand* x, int64_t count, F32* sums) {
  constexpr int64_t kStep = kPairs ? 2 * kLanes : kLanes;
  const auto step = [&](int64_t i, F32 sum) {
#if defined(__AVX512BF16__)
    return MulAdd((F32)LoadInt(weights + i), (F32)LoadInt(x + i), sum);
#else
    return Fma(Load(weights + i), Load(x + i), sum);
#endif
  };
  int64_t i = 0;
  for (; i + 4 * kStep <= count; i += 4 * kStep)
#pragma GCC unroll 4
    for (int64_t j = 0; j < 4; ++j) sums[j] = step(i + j * kStep, sums[j]);
  for (; i < count; i += kStep) sums[0] = step(i, sums[0]);
}

// Any row of any type.
static float PlainRow(const WeightView& w, int64_t row, const Operand* x) {
  constexpr int64_t kSpan = 256;
  F32 sums[4] = {Zero(), Zero(), Zero(), Zero()};
  if (w.type == QuantType::kBF16 && w.k % 32 == 0) {
    const BF16* at = static_cast<const BF16*>(w.data) + row * w.k;
    for (int64_t k = 0; k < w.k; k += 128) {
#pragma GCC unroll 4
      for (int64_t line = 0; line < 256; line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(at + k) + kPlainFetchAhead + line, _MM_HINT_T1);
      DotSpan(at + k, x + k, w.k - k < 128 ? w.k - k : 128, sums);
    }
  } else {
    alignas(64) BF16 decoded[kSpan];
    for (int64_t k = 0; k < w.k; k += kSpan) {
      const int64_t span = w.k - k < kSpan ? w.k - k : kSpan;
      DecodeRow(w, row, k, span, decoded);
      for (int64_t i = span; i < RoundUp(span, 32); ++i) decoded[i] = BF16{};
      DotSpan(decoded, x + k, span, sums);
    }
  }
  return SumLanes(Add(Add(sums[0], sums[1]), Add(sums[2], sums[3])));
}

// Rows of a piece: a few pieces a thread, so that none waits long for another, but enough bytes that handing
// one out costs nothing beside it. A row's sum does not depend on the piece it is in.
static int64_t RowsOfPiece(const WeightView& w, int threads) {
  constexpr int64_t kPieceBytes = 32768;
  const int64_t row_bytes = w.type == QuantType::kF32    ? 4 * w.k
                            : w.type == QuantType::kBF16 ? 2 * w.k
                            : w.type == QuantType::kINT8 ? w.k
                                                         : (w.k + 1) / 2;
  const int64_t share = (w.n + 4 * threads - 1) / (4 * threads), least = kPieceBytes / row_bytes + 1;
  return RoundUp(share > least ? share : least, kTileHeight);
}

// emit(n, x . row n of w) for every row; x bf16 [k]. The workspace's beginning holds x.
template <typename Emit>
static void RowProducts(Context* ctx, const WeightView& w, const BF16* x, const Emit& emit) {
  auto* operands = static_cast<Operand*>(ctx->workspace);
  const int64_t padded = RoundUp(w.k, 64);
  KERNEL_CHECK(padded * static_cast<int64_t>(sizeof(Operand)) <= ctx->workspace_bytes);
  KERNEL_CHECK(NibbleX::Bytes(padded) <= ctx->workspace_bytes);
  const int64_t rows = RowsOfPiece(w, PoolThreads(ctx->pool));
  const auto run = [&](const auto& products) {
    RunPieces(ctx->pool, (w.n + rows - 1) / rows, [&](int64_t piece, int) {
      products(piece * rows, (piece + 1) * rows < w.n ? (piece + 1) * rows : w.n);
    });
  };
  if (!WholeNibbleBlocks(w)) {
    CopyOperands(x, w.k, operands);
    for (int64_t k = w.k; k < padded; ++k) operands[k] = Operand{};
    return run([&](int64_t row, int64_t end) {
      for (int64_t n = row; n < end; ++n) emit(n, PlainRow(w, n, operands));
    });
  }
  const NibbleX ordered(w, x, operands);
  run([&](int64_t row, int64_t end) {
    if (w.block == kNibbleBlock && NestedScales::Suits(w, kRowsTogether)) {
      NibbleProducts<ScaleKind::kNested>(w, row, end, ordered, emit);
    } else if (w.block == kNibbleBlock && w.absmax != nullptr) {
      NibbleProducts<ScaleKind::kPlain>(w, row, end, ordered, emit);
    } else {
      NibbleProducts<ScaleKind::kAny>(w, row, end, ordered, emit);
    }
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY

// One row of activations against a frozen weight, for generation: every weight is read once, so the memory
// is the limit and nothing may be written in between.
//
// 4-bit rows of whole blocks, AVX-512: 32 bytes are widened to 32 words whose low and high nibbles are the
// odd and the even elements; the table look-up ignores the other bits. x waits in that order. Everything
// else is decoded in spans into the first-level cache, or multiplied where it is (bf16).
#pragma once

#include "kernels/cpu/body/gemm.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

constexpr int64_t kGemvRows = 32;  // weight rows of a piece

#if defined(__AVX512F__)

constexpr int64_t kNibbleBlock = 64;

NIBBLE_INLINE bool WholeNibbleBlocks(const WeightView& w) {
  const bool four_bits =
      w.type == QuantType::kNF4 || w.type == QuantType::kFP4 || w.type == QuantType::kINT4;
  return four_bits && w.k % kNibbleBlock == 0 && w.block % kNibbleBlock == 0;
}

// Where element i of a block of 64 waits: even before odd; in a float body also by halves of words.
NIBBLE_INLINE int64_t NibbleOrder(int64_t i) {
  return kPairs ? i % 2 * 32 + i / 2 : i % 2 * 32 + i / 2 % 2 * 16 + i / 4;
}

// absmax of 16 consecutive blocks from `block` on; those past `last` repeat it.
NIBBLE_INLINE F32 SixteenScales(const WeightView& w, int64_t block, int64_t last) {
  const int64_t count = last + 1 - block < 16 ? last + 1 - block : 16;
  if (w.absmax != nullptr) return Load(w.absmax + block, count);
  const __m128i codes = _mm_maskz_loadu_epi8(FirstLanes(count), w.absmax_codes + block);
  const F32 values = _mm512_i32gather_ps(_mm512_cvtepu8_epi32(codes), w.nested_map, 4);
  F32 nested = Set1(w.nested_absmax[block >> 8]);
  if ((block + count - 1) >> 8 != block >> 8) {
    const F32 next = Set1(w.nested_absmax[(block >> 8) + 1]);
    nested = KeepLanes(nested, 0, ((block >> 8) + 1) * 256 - block, next);
  }
  return Add(Mul(values, nested), Set1(w.offset));
}

// kRows consecutive rows of `blocks` blocks of 64 against x.
template <int kRows>
static void NibbleRows(const WeightView& w, int64_t row, const Operand* x, float* sums) {
  const int64_t row_bytes = w.k / 2, blocks = w.k / kNibbleBlock, per_scale = w.block / kNibbleBlock;
  const auto* codes = static_cast<const uint8_t*>(w.data) + row * row_bytes;
  const F32 book = Load(w.code_book);
  alignas(64) float scales[kRows][16];
  F32 even[kRows], odd[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) even[r] = odd[r] = Zero();
  for (int64_t b = 0; b < blocks; ++b) {
    // With blocks of 64, sixteen scales at a time; larger ones are read as they come.
    if (per_scale == 1 && b % 16 == 0) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const int64_t first = (row + r) * blocks;
        Store(scales[r], SixteenScales(w, first + b, first + blocks - 1));
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const float scale = per_scale == 1 ? scales[r][b % 16]
                                         : BlockAbsmax(w, ((row + r) * blocks + b) / per_scale);
      const __m256i half = Narrow(Mul(book, Set1(scale)));
      const I32 table = _mm512_inserti64x4(_mm512_castsi256_si512(half), half, 1);
      const uint8_t* at = codes + r * row_bytes + b * 32;
      _mm_prefetch(reinterpret_cast<const char*>(at + 1024), _MM_HINT_T0);
      const I32 words = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)at));
      const I32 odds = _mm512_permutexvar_epi16(words, table);
      const I32 evens = _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4), table);
      const Operand* in = x + b * kNibbleBlock;
#if defined(__AVX512BF16__)
      even[r] = MulAdd((F32)evens, (F32)LoadInt(in), even[r]);
      odd[r] = MulAdd((F32)odds, (F32)LoadInt(in + 32), odd[r]);
#else
      even[r] = Fma(FirstOfPairs(evens), Load(in), even[r]);
      odd[r] = Fma(FirstOfPairs(odds), Load(in + 32), odd[r]);
      even[r] = Fma(SecondOfPairs(evens), Load(in + 16), even[r]);
      odd[r] = Fma(SecondOfPairs(odds), Load(in + 48), odd[r]);
#endif
    }
  }
  for (int r = 0; r < kRows; ++r) sums[r] = SumLanes(Add(even[r], odd[r]));
}

#else

NIBBLE_INLINE bool WholeNibbleBlocks(const WeightView&) { return false; }
NIBBLE_INLINE int64_t NibbleOrder(int64_t i) { return i; }
template <int kRows>
static void NibbleRows(const WeightView&, int64_t, const Operand*, float*) {}

#endif

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
      _mm_prefetch(reinterpret_cast<const char*>(at + k + 1024), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(at + k + 1056), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(at + k + 1088), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(at + k + 1120), _MM_HINT_T0);
      DotSpan(at + k, x + k, w.k - k < 128 ? w.k - k : 128, sums);
    }
  } else {
    alignas(64) BF16 decoded[kSpan];
    for (int64_t k = 0; k < w.k; k += kSpan) {
      const int64_t span = w.k - k < kSpan ? w.k - k : kSpan;
      DecodeSpan(w, row * w.k + k, span, decoded);
      for (int64_t i = span; i < RoundUp(span, 32); ++i) decoded[i] = BF16{};
      DotSpan(decoded, x + k, span, sums);
    }
  }
  return SumLanes(Add(Add(sums[0], sums[1]), Add(sums[2], sums[3])));
}

// emit(n, x . row n of w) for every row; x bf16 [k]. The workspace's beginning holds x.
template <typename Emit>
static void RowProducts(Context* ctx, const WeightView& w, const BF16* x, const Emit& emit) {
  auto* operands = static_cast<Operand*>(ctx->workspace);
  const int64_t padded = RoundUp(w.k, 64);
  KERNEL_CHECK(padded * static_cast<int64_t>(sizeof(Operand)) <= ctx->workspace_bytes);
  const bool nibbles = WholeNibbleBlocks(w);
  for (int64_t k = 0; k < padded; ++k) {
    const int64_t to = nibbles ? k / 64 * 64 + NibbleOrder(k % 64) : k;
    operands[to] = k < w.k ? ToOperand(x[k]) : Operand{};
  }
  RunPieces(ctx->pool, (w.n + kGemvRows - 1) / kGemvRows, [&](int64_t piece, int) {
    const int64_t end = (piece + 1) * kGemvRows < w.n ? (piece + 1) * kGemvRows : w.n;
    int64_t row = piece * kGemvRows;
    for (; nibbles && row + 4 <= end; row += 4) {
      float sums[4];
      NibbleRows<4>(w, row, operands, sums);
      for (int64_t r = 0; r < 4; ++r) emit(row + r, sums[r]);
    }
    for (; row < end; ++row) {
      float sum;
      if (nibbles)
        NibbleRows<1>(w, row, operands, &sum);
      else
        sum = PlainRow(w, row, operands);
      emit(row, sum);
    }
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY

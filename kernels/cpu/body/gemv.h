// One row of activations against a frozen weight, for generation: every weight is read once, so the memory
// is the limit and nothing may be written in between.
//
// 4-bit rows of whole blocks of 64: 32 bytes are looked up in the block's scaled table where they are, their
// high and low nibbles being the even and the odd elements; x waits in the order in which they come. Four
// rows at a time share x; in flat order they are four streams, in tiles one. What is read is fetched into the
// first-level cache two pages ahead, because the hardware does not follow rows. Everything else is decoded in
// spans into the first-level cache, or multiplied where it is (bf16).
#pragma once

#include "kernels/cpu/body/gemm.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

constexpr int64_t kNibbleBlock = 64;
constexpr int64_t kFetchAhead = 8192;       // bytes
constexpr int64_t kTileFetchAhead = 16384;  // one stream has to be asked for earlier than four
constexpr int64_t kBlocksTogether = 32;     // of a row in tiles, before the next rows

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

// How the scales of a weight are found.
enum class ScaleKind { kPlain, kNested, kAny };

NIBBLE_INLINE bool WholeNibbleBlocks(const WeightView& w) {
  const bool four_bits =
      w.type == QuantType::kNF4 || w.type == QuantType::kFP4 || w.type == QuantType::kINT4;
  return four_bits && w.k % kNibbleBlock == 0 && w.block % kNibbleBlock == 0;
}

#if defined(__AVX512F__)

constexpr int kRowsTogether = 4;

// Where element i of a block of 64 waits: even before odd; in a float body also by halves of words.
NIBBLE_INLINE void OrderBlock(const BF16* x, Operand* out) {
  alignas(64) static constexpr uint16_t kEven[32] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20,
                                                     22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 42,
                                                     44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
  const I32 even = LoadInt(kEven), odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
  const I32 a = LoadInt(x), b = LoadInt(x + 32);
  const I32 evens = _mm512_permutex2var_epi16(a, even, b), odds = _mm512_permutex2var_epi16(a, odd, b);
#if defined(__AVX512BF16__)
  StoreInt(out, evens);
  StoreInt(out + 32, odds);
#else
  Store(out, FirstOfPairs(evens));
  Store(out + 16, SecondOfPairs(evens));
  Store(out + 32, FirstOfPairs(odds));
  Store(out + 48, SecondOfPairs(odds));
#endif
}

// The sums of one row, and one block of it.
struct NibbleSums {
  F32 even = Zero(), odd = Zero();
  NIBBLE_INLINE void AddBlock(const uint8_t* codes, const float* book, float scale, const Operand* x) {
    // The scaled table twice: look-ups see five bits, of which the first may be anything.
    const F32 products = Mul(Load(book), Set1(scale));
#if defined(__AVX512BF16__)
    const I32 table = (I32)_mm512_cvtne2ps_pbh(products, products);
#else
    const I32 table = UpperTwice(RoundedUpper(products));
#endif
    // An even element is the high nibble of its byte.
    const I32 words = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)codes));
    const I32 odds = _mm512_permutexvar_epi16(words, table);
    const I32 evens = _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4), table);
#if defined(__AVX512BF16__)
    even = MulAdd((F32)evens, (F32)LoadInt(x), even);
    odd = MulAdd((F32)odds, (F32)LoadInt(x + 32), odd);
#else
    even = Fma(FirstOfPairs(evens), Load(x), even);
    odd = Fma(FirstOfPairs(odds), Load(x + 32), odd);
    even = Fma(SecondOfPairs(evens), Load(x + 16), even);
    odd = Fma(SecondOfPairs(odds), Load(x + 48), odd);
#endif
  }
  NIBBLE_INLINE float Sum() const { return SumLanes(Add(even, odd)); }
};

#else  // AVX2

constexpr int kRowsTogether = 2;

// Where element i of a block of 64 waits: even before odd; of each, as unpacking bytes of 16-byte lanes to
// words, and words to floats, leaves them.
NIBBLE_INLINE void OrderBlock(const BF16* x, Operand* out) {
  for (int64_t i = 0; i < kNibbleBlock; ++i) {
    const int64_t j = i / 2, in_lane = j % 16;
    out[i % 2 * 32 + (in_lane / 8 * 2 + in_lane % 2) * 8 + j / 16 * 4 + in_lane % 8 / 2] = ToFloat(x[i]);
  }
}

struct NibbleSums {
  F32 even = Zero(), odd = Zero();
  NIBBLE_INLINE void AddBlock(const uint8_t* codes, const float* book, float scale, const Operand* x) {
    // The scaled table as a table of low and one of high bytes, each in both halves of a register.
    const F32 factor = Set1(scale);
    const I32 bytes_of = _mm256_setr_epi8(2, 6, 10, 14, 3, 7, 11, 15, 2, 6, 10, 14, 3, 7, 11, 15,  //
                                          2, 6, 10, 14, 3, 7, 11, 15, 2, 6, 10, 14, 3, 7, 11, 15);
    const I32 first = _mm256_shuffle_epi8(RoundedUpper(Mul(Load(book), factor)), bytes_of);
    const I32 second = _mm256_shuffle_epi8(RoundedUpper(Mul(Load(book + 8), factor)), bytes_of);
    const I32 both = _mm256_blend_epi32(first, second, 0xCC);
    const I32 low = _mm256_permutevar8x32_epi32(both, _mm256_setr_epi32(0, 4, 2, 6, 0, 4, 2, 6));
    const I32 high = _mm256_permutevar8x32_epi32(both, _mm256_setr_epi32(1, 5, 3, 7, 1, 5, 3, 7));
    const I32 bytes = LoadInt(codes), nibble = _mm256_set1_epi8(15);
    even = Half(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble), low, high, x, even);
    odd = Half(_mm256_and_si256(bytes, nibble), low, high, x + 32, odd);
  }
  NIBBLE_INLINE static F32 Half(I32 index, I32 low, I32 high, const Operand* x, F32 sum) {
    const I32 l = _mm256_shuffle_epi8(low, index), h = _mm256_shuffle_epi8(high, index);
    const I32 a = _mm256_unpacklo_epi8(l, h), b = _mm256_unpackhi_epi8(l, h);
    sum = Fma(FirstOfPairs(a), Load(x), sum);
    sum = Fma(SecondOfPairs(a), Load(x + 8), sum);
    sum = Fma(FirstOfPairs(b), Load(x + 16), sum);
    return Fma(SecondOfPairs(b), Load(x + 24), sum);
  }
  NIBBLE_INLINE float Sum() const { return SumLanes(Add(even, odd)); }
};

#endif

// Blocks begin .. end - 1 of kRows consecutive rows against x, added to their sums; of tiles, the rows are of
// one group. `ahead`: what will be read later, fetched a line with every two blocks, or with every block of
// flat rows, which are apart.
template <int kRows, ScaleKind kKind, bool kTiled>
static void NibbleRows(const WeightView& w, int64_t row, int64_t begin, int64_t end, const Operand* x,
                       NestedScales* nested, const uint8_t* ahead, NibbleSums* sums) {
  constexpr int64_t kBytes = kNibbleBlock / 2;
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
  NibbleSums rows[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) rows[r] = sums[r];
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
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const int64_t place = r * row_step + b * block_step;
        if (!kTiled) {
          _mm_prefetch(reinterpret_cast<const char*>(ahead + place * kBytes), _MM_HINT_T0);
        } else if (r % 2 == 0) {
          const uint8_t* later = ahead + ((b - begin) * kRows + r) * kBytes;
          _mm_prefetch(reinterpret_cast<const char*>(later), _MM_HINT_T0);
        }
        float scale;
        if constexpr (kKind == ScaleKind::kNested) {
          scale = table[r][scale_codes[place]];
        } else if constexpr (kKind == ScaleKind::kPlain) {
          scale = scales[place];
        } else {
          scale = BlockAbsmax(w, (first + place) / per_scale, ((row + r) * blocks + b) / per_scale);
        }
        rows[r].AddBlock(codes + place * kBytes, w.code_book, scale, x + b * kNibbleBlock);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) sums[r] = rows[r];
}

// Flat rows row .. end - 1, some at a time, each from its beginning to its end.
template <ScaleKind kKind, typename Emit>
static void FlatNibbleProducts(const WeightView& w, int64_t row, int64_t end, const Operand* x,
                               const Emit& emit) {
  const int64_t blocks = w.k / kNibbleBlock, row_bytes = w.k / 2;
  NestedScales nested;
  const auto some = [&]<int kRows>() {
    NibbleSums sums[kRows];
    const auto* ahead =
        static_cast<const uint8_t*>(w.data) + row * row_bytes + RoundUp(kFetchAhead, kRows * row_bytes);
    NibbleRows<kRows, kKind, false>(w, row, 0, blocks, x, &nested, ahead, sums);
    for (int64_t r = 0; r < kRows; ++r) emit(row + r, sums[r].Sum());
    row += kRows;
  };
  while (row + kRowsTogether <= end) some.template operator()<kRowsTogether>();
  while (row < end) some.template operator()<1>();
}

// Whole groups of rows in tiles, read as they lie: some blocks of all rows, then the next blocks. Meanwhile
// the sums wait.
template <ScaleKind kKind, typename Emit>
static void TiledNibbleProducts(const WeightView& w, int64_t row, int64_t end, const Operand* x,
                                const Emit& emit) {
  const int64_t blocks = w.k / kNibbleBlock;
  // Scales of all rows of a group have to find room, or else their tables would be made again and again.
  const bool fits = w.absmax != nullptr || NestedScales::Suits(w, kTileHeight);
  const int64_t chunk = fits ? kBlocksTogether : blocks;
  NestedScales nested;
  for (; row < end; row += kTileHeight) {
    const TiledRow tile(w, row);
    const int64_t height = tile.step;
    NibbleSums sums[kTileHeight];
    for (int64_t b = 0; b < blocks; b += chunk) {
      const int64_t stop = b + chunk < blocks ? b + chunk : blocks;
      const auto* ahead = static_cast<const uint8_t*>(w.data) + kTileFetchAhead +
                          (tile.first + b * height) * (kNibbleBlock / 2);
      int64_t r = 0;
      const auto some = [&]<int kRows>() {
        NibbleRows<kRows, kKind, true>(w, row + r, b, stop, x, &nested, ahead, sums + r);
        ahead += (stop - b) * kRows * (kNibbleBlock / 2);
        r += kRows;
      };
      while (r + kRowsTogether <= height) some.template operator()<kRowsTogether>();
      while (r < height) some.template operator()<1>();
    }
    for (int64_t r = 0; r < height; ++r) emit(row + r, sums[r].Sum());
  }
}

template <ScaleKind kKind, typename Emit>
static void NibbleProducts(const WeightView& w, int64_t row, int64_t end, const Operand* x,
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
        _mm_prefetch(reinterpret_cast<const char*>(at + k) + kFetchAhead + line, _MM_HINT_T0);
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
  const bool nibbles = WholeNibbleBlocks(w);
  if (nibbles) {
    for (int64_t k = 0; k < padded; k += kNibbleBlock) OrderBlock(x + k, operands + k);
  } else {
    CopyOperands(x, w.k, operands);
    for (int64_t k = w.k; k < padded; ++k) operands[k] = Operand{};
  }
  const int64_t rows = RowsOfPiece(w, PoolThreads(ctx->pool));
  RunPieces(ctx->pool, (w.n + rows - 1) / rows, [&](int64_t piece, int) {
    const int64_t end = (piece + 1) * rows < w.n ? (piece + 1) * rows : w.n;
    const int64_t row = piece * rows;
    if (!nibbles) {
      for (int64_t n = row; n < end; ++n) emit(n, PlainRow(w, n, operands));
    } else if (w.block == kNibbleBlock && NestedScales::Suits(w, kRowsTogether)) {
      NibbleProducts<ScaleKind::kNested>(w, row, end, operands, emit);
    } else if (w.block == kNibbleBlock && w.absmax != nullptr) {
      NibbleProducts<ScaleKind::kPlain>(w, row, end, operands, emit);
    } else {
      NibbleProducts<ScaleKind::kAny>(w, row, end, operands, emit);
    }
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY

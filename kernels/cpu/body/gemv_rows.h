// Blocks of 4-bit rows against one row of activations (gemv.h): where x waits, how a block's scale finds its
// table, and the sums of some rows.
#pragma once

#include "kernels/cpu/body/decode.h"
#include "kernels/cpu/body/fixed_nibbles.h"
#include "kernels/cpu/body/simd.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

constexpr int64_t kNibbleBlock = 64;
constexpr int64_t kFetchAhead = 8192;       // bytes
constexpr int64_t kTileFetchAhead = 16384;  // one stream has to be asked for earlier than four
constexpr int64_t kBlocksTogether = 32;     // of a row in tiles, before the next rows
constexpr int kRowsTogether = 4;

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
  _mm_prefetch(reinterpret_cast<const char*>(later), _MM_HINT_T0);
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

#if !defined(NIBBLE_FIXED)

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

// x in that order.
struct NibbleX {
  // `memory` has room for as many operands as x has numbers.
  NibbleX(const WeightView& w, const BF16* x, void* memory)
      : values(static_cast<Operand*>(memory)), book(w.code_book) {
    for (int64_t k = 0; k < w.k; k += kNibbleBlock) OrderBlock(x + k, values + k);
  }
  Operand* values;
  const float* book;
};

// The sums of one row, and one block of it.
struct NibbleSums {
  F32 even = Zero(), odd = Zero();
  NIBBLE_INLINE void AddBlock(const uint8_t* codes, float scale, const NibbleX& ordered, int64_t block) {
    const Operand* const x = ordered.values + block * kNibbleBlock;
    // The scaled table twice: look-ups see five bits, of which the first may be anything.
    const F32 products = Mul(Load(ordered.book), Set1(scale));
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

#else

#if defined(__AVX512F__)

// A block's order: even elements before odd ones.
NIBBLE_INLINE void OrderFixed(const int16_t* block, int16_t* out) {
  alignas(64) static constexpr uint16_t kEven[32] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20,
                                                     22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 42,
                                                     44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
  const I32 even = LoadInt(kEven), odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
  const I32 a = LoadInt(block), b = LoadInt(block + 32);
  StoreInt(out, _mm512_permutex2var_epi16(a, even, b));
  StoreInt(out + 32, _mm512_permutex2var_epi16(a, odd, b));
}
// What a block's integers sum up to, by lanes. An even element is the high nibble of its byte.
NIBBLE_INLINE I32 SumBlock(const FixedTable& table, const uint8_t* codes, const int16_t* words) {
  const I32 bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)codes));
  const I32 odds = _mm512_permutexvar_epi16(bytes, table.twice.words);
  const I32 evens = _mm512_permutexvar_epi16(_mm512_srli_epi16(bytes, 4), table.twice.words);
  I32 sum = NoWords();
  AddPairProducts(sum, evens, LoadInt(words));
  AddPairProducts(sum, odds, LoadInt(words + 32));
  return sum;
}

#else  // AVX2

// A block's order: elements of high nibbles before those of low ones; of each, as unpacking bytes of 16-byte
// lanes to words leaves them.
struct BlockOrder {
  constexpr BlockOrder() {
    for (int at = 0; at < kNibbleBlock; ++at) {
      const int vector = at / 16, lane = at % 16 / 8, byte = lane * 16 + vector % 2 * 8 + at % 8;
      element[at] = static_cast<uint8_t>(2 * byte + vector / 2);
    }
  }
  uint8_t element[kNibbleBlock] = {};
};
NIBBLE_INLINE void OrderFixed(const int16_t* block, int16_t* out) {
  static constexpr BlockOrder kOrder;
  for (int64_t i = 0; i < kNibbleBlock; ++i) out[i] = block[kOrder.element[i]];
}
NIBBLE_INLINE I32 SumBlock(const FixedTable& table, const uint8_t* codes, const int16_t* words) {
  const I32 bytes = LoadInt(codes);
  I32 even[2], odd[2];
  table.Look(HighNibbles(bytes), &even[0], &even[1]);
  table.Look(LowNibbles(bytes), &odd[0], &odd[1]);
  const auto products = [&](I32 some, int64_t at) __attribute__((always_inline)) {
    return _mm256_madd_epi16(some, LoadInt(words + at));
  };
  const I32 of_even = AddInt(products(even[0], 0), products(even[1], 16));
  const I32 of_odd = AddInt(products(odd[0], 32), products(odd[1], 48));
  return AddInt(of_even, of_odd);
}

#endif

// x in fixed point, in that order. And what is the same for all rows: the code book as integers.
struct NibbleX {
  // `memory` has room for as many floats as x has numbers.
  NibbleX(const WeightView& w, const BF16* x, void* memory)
      : words(static_cast<int16_t*>(memory)),
        scales(reinterpret_cast<float*>(words + w.k)),
        table(w.code_book, FixedBook(w.code_book).factor) {
    const float unit = FixedBook(w.code_book).unit;
    for (int64_t k = 0; k < w.k; k += kNibbleBlock) {
      alignas(64) int16_t block[kNibbleBlock];
      scales[k / kNibbleBlock] = unit * FixBlock<true>(x + k, block);
      OrderFixed(block, words + k);
    }
  }
  int16_t* words;
  float* scales;  // one a block, times what an integer of the code book is worth
  FixedTable table;
};

// The sums of one row, and one block of it: the code book is the same for all blocks, what a block's integers
// sum up to is scaled.
struct NibbleSums {
  F32 sum = Zero();
  NIBBLE_INLINE void AddBlock(const uint8_t* codes, float scale, const NibbleX& x, int64_t block) {
    const I32 integers = SumBlock(x.table, codes, x.words + block * kNibbleBlock);
    sum = Fma(ToFloats(integers), Mul(Set1(scale), Set1(x.scales[block])), sum);
  }
  NIBBLE_INLINE float Sum() const { return SumLanes(sum); }
};

#endif

// Blocks begin .. end - 1 of kRows consecutive rows against x, added to their sums; of tiles, the rows are of
// one group. `ahead`: see FetchLater.
template <int kRows, ScaleKind kKind, bool kTiled>
static void NibbleRows(const WeightView& w, int64_t row, int64_t begin, int64_t end, const NibbleX& x,
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
        FetchLater<kTiled>(ahead, place, (b - begin) * kRows + r, r);
        float scale;
        if constexpr (kKind == ScaleKind::kNested) {
          scale = table[r][scale_codes[place]];
        } else if constexpr (kKind == ScaleKind::kPlain) {
          scale = scales[place];
        } else {
          scale = BlockAbsmax(w, (first + place) / per_scale, ((row + r) * blocks + b) / per_scale);
        }
        rows[r].AddBlock(codes + place * kBytes, scale, x, b);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) sums[r] = rows[r];
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY

// Frozen weights to bf16: out[i] = bf16(code_book[code] * absmax), the product in fp32, nearest even. Every
// body gives the same bits.
//
// 4-bit codes: the 16 entries of the code book are scaled and rounded once per block, and each weight is
// then a table look-up of 16-bit values. INT8 codes are numbers: they are converted.
#pragma once

#include "kernels/counter.h"
#include "kernels/cpu/body/simd.h"
#include "kernels/kernel_table.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

// `stored`: where the scale of a block of the flat order lies.
NIBBLE_INLINE float BlockAbsmax(const WeightView& w, int64_t stored, int64_t block) {
  if (w.absmax != nullptr) return w.absmax[stored];
  const float nested = w.nested_map[w.absmax_codes[stored]] * w.nested_absmax[block >> 8];
  return nested + w.offset;
}
NIBBLE_INLINE float BlockAbsmax(const WeightView& w, int64_t block) { return BlockAbsmax(w, block, block); }

// Where the blocks of a row lie in WeightOrder::kTiles, in blocks: block b at first + b * step.
struct TiledRow {
  NIBBLE_INLINE TiledRow(const WeightView& w, int64_t row) {
    const int64_t in_group = row % kTileHeight, begin = row - in_group;
    step = w.n - begin < kTileHeight ? w.n - begin : kTileHeight;
    first = begin * (w.k / kTileBlock) + in_group;
  }
  int64_t first, step;
};

// Where the blocks of a group of up to kTileHeight rows that begins at `row` lie, in either order, in blocks:
// block b of the group's row i at first + i * row_step + b * block_step. Rows are whole blocks.
struct GroupBlocks {
  NIBBLE_INLINE GroupBlocks(const WeightView& w, int64_t row) {
    const int64_t row_blocks = w.k / kTileBlock;
    const bool tiles = w.order == WeightOrder::kTiles;
    first = row * row_blocks;
    row_step = tiles ? 1 : row_blocks;
    block_step = tiles ? TiledRow(w, row).step : 1;
  }
  int64_t first, row_step, block_step;
};

// Rows of whole blocks of 64 four-bit codes.
NIBBLE_INLINE bool NibbleBlocks(const WeightView& w) {
  const bool four_bits =
      w.type == QuantType::kNF4 || w.type == QuantType::kFP4 || w.type == QuantType::kINT4;
  return four_bits && w.block == kTileBlock && w.k % kTileBlock == 0;
}

// Bytes before element `at` of a weight's data.
NIBBLE_INLINE int64_t BytesBefore(const WeightView& w, int64_t at) {
  return w.type == QuantType::kF32    ? 4 * at
         : w.type == QuantType::kBF16 ? 2 * at
         : w.type == QuantType::kINT8 ? at
                                      : at / 2;
}

// The code of stored element i.
NIBBLE_INLINE uint32_t CodeAt(const WeightView& w, int64_t i) {
  const auto* codes = static_cast<const uint8_t*>(w.data);
  if (w.type == QuantType::kINT8) return codes[i];
  return i & 1 ? codes[i >> 1] & 15u : codes[i >> 1] >> 4;
}

// The levels of INT8, (code - 127) / 127 for codes up to 254, computed because 256 of them fit no register:
// 1/127 as a sum of two floats gives each of these quotients correctly rounded.
NIBBLE_INLINE F32 ByteLevels(I32 codes) {
  constexpr float kInverse = 1.0f / 127.0f;
  constexpr auto kRest = static_cast<float>(1.0 / 127.0 - static_cast<double>(kInverse));
  const F32 whole = Sub(ToFloats(codes), Set1(127.0f));
  return Fma(whole, Set1(kInverse), Mul(whole, Set1(kRest)));
}

#if defined(__AVX512F__)

// The upper halves are the values as bf16, nearest even; the lower halves are of no use. In integers:
// vcvtneps2bf16 would flush subnormal products to zero, and bodies must agree.
NIBBLE_INLINE I32 RoundedUpper(F32 values) {
  const I32 bits = _mm512_castps_si512(values);
  const I32 odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  return _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
}
// The upper halves twice: look-ups of words see five bits, of which the first may then be anything.
NIBBLE_INLINE I32 UpperTwice(I32 values) {
  alignas(64) static constexpr uint16_t kUpper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                      23, 25, 27, 29, 31, 1,  3,  5,  7,  9,  11,
                                                      13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
  return _mm512_permutexvar_epi16(LoadInt(kUpper), values);
}

// The scaled table in both halves, so that the word permutation needs no masking of its 5-bit indices.
struct NibbleTable {
  NibbleTable() = default;
  explicit NIBBLE_INLINE NibbleTable(const float* code_book, float absmax) {
    const F32 products = Mul(Load(code_book), Set1(absmax));
#if defined(__AVX512BF16__)
    // No level but zero is below 0.005, so no product is subnormal and the instruction rounds as we do.
    if (absmax >= 0x1p-100f) {
      words = (I32)_mm512_cvtne2ps_pbh(products, products);
      return;
    }
#endif
    words = UpperTwice(RoundedUpper(products));
  }
  // 32 weights of 16 bytes: every byte goes to two words, of which the first is shifted by a nibble.
  NIBBLE_INLINE I32 Look32(const uint8_t* codes) const {
    const I32 bytes = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)codes));
    const I32 spread = _mm512_set_epi32(
        static_cast<int>(0x800F800F), static_cast<int>(0x800E800E), static_cast<int>(0x800D800D),
        static_cast<int>(0x800C800C), static_cast<int>(0x800B800B), static_cast<int>(0x800A800A),
        static_cast<int>(0x80098009), static_cast<int>(0x80088008), static_cast<int>(0x80078007),
        static_cast<int>(0x80068006), static_cast<int>(0x80058005), static_cast<int>(0x80048004),
        static_cast<int>(0x80038003), static_cast<int>(0x80028002), static_cast<int>(0x80018001),
        static_cast<int>(0x80008000));
    const I32 index = _mm512_srlv_epi16(_mm512_shuffle_epi8(bytes, spread), _mm512_set1_epi32(4));
    return _mm512_permutexvar_epi16(index, words);
  }
  NIBBLE_INLINE void Decode32(const uint8_t* codes, BF16* out) const { StoreInt(out, Look32(codes)); }
  I32 words;
};

// 32 INT8 weights.
NIBBLE_INLINE void DecodeBytes32(const uint8_t* codes, float absmax, BF16* out) {
  alignas(64) static constexpr uint16_t kUpper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                      23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                      45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  const __m128i highest = _mm_set1_epi8(static_cast<char>(254));
  I32 part[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m128i bytes = _mm_min_epu8(_mm_loadu_si128((const __m128i*)(codes + 16 * i)), highest);
    part[i] = RoundedUpper(Mul(ByteLevels(_mm512_cvtepu8_epi32(bytes)), Set1(absmax)));
  }
  StoreInt(out, _mm512_permutex2var_epi16(part[0], LoadInt(kUpper), part[1]));
}

#else

NIBBLE_INLINE I32 RoundedUpper(F32 values) {
  const I32 bits = _mm256_castps_si256(values);
  const I32 odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
}

// A scaled table as one table of low and one of high bytes, for the byte shuffle.
struct alignas(32) ByteTable {
  uint8_t low[16], high[16];
};

// The tables of two blocks, one in each half of the registers: everything stays inside halves. pairs(first,
// second): two vectors of scaled entries as words side by side.
template <typename Pairs>
NIBBLE_INLINE void MakeTables(const float* code_book, float scale_a, float scale_b, const Pairs& pairs,
                              ByteTable* a, ByteTable* b) {
  const F32 scales = _mm256_blend_ps(Set1(scale_a), Set1(scale_b), 0xF0);
  const auto four = [&](int64_t at) __attribute__((always_inline)) {
    return Mul(_mm256_broadcast_ps((const __m128*)(code_book + at)), scales);
  };
  // Eight entries: the low bytes of all, then the high ones.
  const auto eight = [&](F32 first, F32 second) __attribute__((always_inline)) {
    const I32 words = pairs(first, second);
    const __m128i low_first = _mm_setr_epi8(0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15);
    return _mm256_shuffle_epi8(words, _mm256_broadcastsi128_si256(low_first));
  };
  const I32 begin = eight(four(0), four(4)), end = eight(four(8), four(12));
  const I32 low = _mm256_unpacklo_epi64(begin, end), high = _mm256_unpackhi_epi64(begin, end);
  _mm_store_si128((__m128i*)a->low, _mm256_castsi256_si128(low));
  _mm_store_si128((__m128i*)a->high, _mm256_castsi256_si128(high));
  _mm_store_si128((__m128i*)b->low, _mm256_extracti128_si256(low, 1));
  _mm_store_si128((__m128i*)b->high, _mm256_extracti128_si256(high, 1));
}
NIBBLE_INLINE void ScaleTables(const float* code_book, float scale_a, float scale_b, ByteTable* a,
                               ByteTable* b) {
  const auto pairs = [](F32 first, F32 second) __attribute__((always_inline)) {
    return _mm256_blend_epi16(_mm256_srli_epi32(RoundedUpper(first), 16), RoundedUpper(second), 0xAA);
  };
  MakeTables(code_book, scale_a, scale_b, pairs, a, b);
}

// A block of 64 weights.
NIBBLE_INLINE void Decode64(const ByteTable& table, const uint8_t* codes, BF16* out) {
  // Four bytes here and four there, so that unpacking halves twice leaves the weights in their order.
  const I32 bytes = _mm256_permutevar8x32_epi32(LoadInt(codes), _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
  const I32 nibble = _mm256_set1_epi8(15);
  const I32 even = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
  const I32 odd = _mm256_and_si256(bytes, nibble);
  const I32 low = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)table.low));
  const I32 high = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)table.high));
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const I32 index = half == 0 ? _mm256_unpacklo_epi8(even, odd) : _mm256_unpackhi_epi8(even, odd);
    const I32 l = _mm256_shuffle_epi8(low, index), h = _mm256_shuffle_epi8(high, index);
    StoreInt(out + 32 * half, _mm256_unpacklo_epi8(l, h));
    StoreInt(out + 32 * half + 16, _mm256_unpackhi_epi8(l, h));
  }
}

struct NibbleTable {
  explicit NIBBLE_INLINE NibbleTable(const float* code_book, float absmax) {
    ByteTable other;
    ScaleTables(code_book, absmax, absmax, &bytes, &other);
  }
  NIBBLE_INLINE void Decode32(const uint8_t* codes, BF16* out) const {
    const __m128i loaded = _mm_loadu_si128((const __m128i*)codes);
    const __m128i nibble = _mm_set1_epi8(15);
    const __m128i even = _mm_and_si128(_mm_srli_epi16(loaded, 4), nibble);
    const __m128i odd = _mm_and_si128(loaded, nibble);
    Look16(_mm_unpacklo_epi8(even, odd), out);
    Look16(_mm_unpackhi_epi8(even, odd), out + 16);
  }
  NIBBLE_INLINE void Look16(__m128i index, BF16* out) const {
    const __m128i l = _mm_shuffle_epi8(_mm_load_si128((const __m128i*)bytes.low), index);
    const __m128i h = _mm_shuffle_epi8(_mm_load_si128((const __m128i*)bytes.high), index);
    _mm_storeu_si128((__m128i*)out, _mm_unpacklo_epi8(l, h));
    _mm_storeu_si128((__m128i*)(out + 8), _mm_unpackhi_epi8(l, h));
  }
  ByteTable bytes;
};

NIBBLE_INLINE void DecodeBytes32(const uint8_t* codes, float absmax, BF16* out) {
  const I32 highest = _mm256_set1_epi8(static_cast<char>(254));
  const I32 bytes = _mm256_min_epu8(LoadInt(codes), highest);
  const __m128i part[2] = {_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)};
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const auto eight = [&](__m128i some) __attribute__((always_inline)) {
      return _mm256_srli_epi32(RoundedUpper(Mul(ByteLevels(_mm256_cvtepu8_epi32(some)), Set1(absmax))), 16);
    };
    const I32 words = _mm256_packus_epi32(eight(part[i]), eight(_mm_unpackhi_epi64(part[i], part[i])));
    StoreInt(out + 16 * i, _mm256_permute4x64_epi64(words, 0xD8));  // packing works in halves
  }
}

#endif

#if !defined(__AVX512F__)

// `count` blocks of 64 four-bit codes: blocks `block`, `block` + 1 ... of the flat order, of which the first
// is stored at `stored` and each `step` behind the one before. The tables of some of them wait in the
// first-level cache: made and used one at a time, each block would wait for the whole way from its scale to
// its weights.
static void DecodeNibbleBlocks(const WeightView& view, int64_t stored, int64_t step, int64_t block,
                               int64_t count, BF16* out) {
  constexpr int64_t kTogether = 16;
  const WeightView w = view;  // bytes are written: what `view` refers to would be read again and again
  const auto* codes = static_cast<const uint8_t*>(w.data);
  ByteTable tables[kTogether];
  while (count > 0) {
    const int64_t here = count < kTogether ? count : kTogether;
    const auto absmax = [&](int64_t i) __attribute__((always_inline)) {
      return BlockAbsmax(w, stored + i * step, block + i);
    };
    for (int64_t i = 0; i < here; i += 2)
      ScaleTables(w.code_book, absmax(i), absmax(i + 1 < here ? i + 1 : i), tables + i, tables + i + 1);
    for (int64_t i = 0; i < here; ++i, stored += step, out += kTileBlock)
      Decode64(tables[i], codes + stored * (kTileBlock / 2), out);
    block += here;
    count -= here;
  }
}

#endif

// `count` stored elements inside one block.
static void DecodeInBlock(const WeightView& w, float absmax, int64_t first, int64_t count, BF16* out) {
  const auto* codes = static_cast<const uint8_t*>(w.data);
  int64_t i = 0;
  if (w.type == QuantType::kINT8) {
    for (; i + 32 <= count; i += 32) DecodeBytes32(codes + first + i, absmax, out + i);
  } else if (first % 2 == 0 && count >= 32) {
    const NibbleTable table(w.code_book, absmax);
    for (; i + 32 <= count; i += 32) table.Decode32(codes + (first + i) / 2, out + i);
  }
  for (; i < count; ++i) out[i] = ToBF16(w.code_book[CodeAt(w, first + i)] * absmax);
}

// Elements first .. first + count - 1 of the flat order.
static void DecodeSpan(const WeightView& w, int64_t first, int64_t count, BF16* out) {
  if (w.type == QuantType::kBF16) {
    std::memcpy(out, static_cast<const BF16*>(w.data) + first, static_cast<size_t>(2 * count));
    return;
  }
  if (w.type == QuantType::kF32) {
    const float* values = static_cast<const float*>(w.data) + first;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) Store(out + i, Load(values + i));
    for (; i < count; ++i) out[i] = ToBF16(values[i]);
    return;
  }
  int64_t block = first / w.block;
  int64_t in_block = first - block * w.block;
  const bool whole = w.type != QuantType::kINT8 && w.block % 32 == 0;
  for (int64_t done = 0; done < count; ++block, in_block = 0) {
#if !defined(__AVX512F__)
    if (whole && in_block == 0 && w.block == kTileBlock && count - done >= kTileBlock) {
      const int64_t blocks = (count - done) / kTileBlock;
      DecodeNibbleBlocks(w, block, 1, block, blocks, out + done);
      block += blocks;
      done += blocks * kTileBlock;
      if (done == count) break;
    }
#endif
    if (whole && in_block == 0) {  // the common case without its questions
      const auto* codes = static_cast<const uint8_t*>(w.data) + (first + done) / 2;
      for (; done + w.block <= count; ++block, done += w.block) {
        const NibbleTable table(w.code_book, BlockAbsmax(w, block));
        for (int64_t i = 0; i < w.block; i += 32, codes += 16) table.Decode32(codes, out + done + i);
      }
      if (done == count) break;
    }
    const int64_t left = w.block - in_block;
    const int64_t part = left < count - done ? left : count - done;
    DecodeInBlock(w, BlockAbsmax(w, block), first + done, part, out + done);
    done += part;
  }
}

// Elements first .. first + count - 1 of a row in WeightOrder::kTiles.
static void DecodeTiledRow(const WeightView& w, int64_t row, int64_t first, int64_t count, BF16* out) {
  const TiledRow at(w, row);
  const int64_t before = row * (w.k / kTileBlock);
  const bool whole = w.type != QuantType::kINT8;
  int64_t block = first / kTileBlock;
  for (int64_t done = 0, in_block = first % kTileBlock; done < count; ++block, in_block = 0) {
    const int64_t left = kTileBlock - in_block, part = left < count - done ? left : count - done;
    const int64_t stored = at.first + block * at.step;
#if !defined(__AVX512F__)
    if (whole && part == kTileBlock) {
      const int64_t blocks = (count - done) / kTileBlock;
      DecodeNibbleBlocks(w, stored, at.step, before + block, blocks, out + done);
      block += blocks - 1;
      done += blocks * kTileBlock;
      continue;
    }
#endif
    const float absmax = BlockAbsmax(w, stored, before + block);
    if (whole && part == kTileBlock) {
      const auto* codes = static_cast<const uint8_t*>(w.data) + stored * (kTileBlock / 2);
      const NibbleTable table(w.code_book, absmax);
      table.Decode32(codes, out + done);
      table.Decode32(codes + 16, out + done + 32);
    } else {
      DecodeInBlock(w, absmax, stored * kTileBlock + in_block, part, out + done);
    }
    done += part;
  }
}

// Elements first .. first + count - 1 of a row.
static void DecodeRow(const WeightView& w, int64_t row, int64_t first, int64_t count, BF16* out) {
  if (w.order == WeightOrder::kFlat) {
    DecodeSpan(w, row * w.k + first, count, out);
  } else {
    DecodeTiledRow(w, row, first, count, out);
  }
}

// Dropout masks: which of 8 consecutive elements are kept. `threshold` is p in units of 2^-24, rounded up:
// CounterKeep compares 24-bit integers.
struct Dropout {
  Dropout() = default;
  explicit Dropout(const DropoutKey& key)
      : mixed(CounterMix(key.seed + 0x9E3779B97F4A7C15ull * (key.stream + 1))),
        inverse(1.0f / (1.0f - key.p)) {
    const double scaled = static_cast<double>(key.p) * 0x1p24;
    threshold = static_cast<uint64_t>(scaled);
    if (static_cast<double>(threshold) < scaled) ++threshold;
  }
  NIBBLE_INLINE uint32_t Keep8(uint64_t index) const {
#if defined(__AVX512F__)
    const auto mix = [](__m512i z, int shift, uint64_t factor) {
      return _mm512_mullo_epi64(_mm512_xor_si512(z, _mm512_srli_epi64(z, static_cast<unsigned>(shift))),
                                _mm512_set1_epi64(static_cast<int64_t>(factor)));
    };
    const uint64_t step = 0x9E3779B97F4A7C15ull;
    __m512i z = _mm512_add_epi64(_mm512_set1_epi64(static_cast<int64_t>(mixed + step * (index + 1))),
                                 _mm512_mullo_epi64(_mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7),
                                                    _mm512_set1_epi64(static_cast<int64_t>(step))));
    z = mix(z, 30, 0xBF58476D1CE4E5B9ull);
    z = mix(z, 27, 0x94D049BB133111EBull);
    z = _mm512_xor_si512(z, _mm512_srli_epi64(z, 31));
    return _mm512_cmpge_epu64_mask(_mm512_srli_epi64(z, 40),
                                   _mm512_set1_epi64(static_cast<int64_t>(threshold)));
#else
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(KeepMask8(index))));
#endif
  }
#if !defined(__AVX512F__)
  // All ones in the lanes of the kept ones.
  NIBBLE_INLINE I32 KeepMask8(uint64_t index) const {
    const auto wide = [](uint64_t a) __attribute__((always_inline)) {
      return _mm256_set1_epi64x(static_cast<int64_t>(a));
    };
    // z * (high 2^32 + low), of which only the upper half is exact where the lower one is not wanted.
    const auto times = [&](I32 z, uint64_t factor) __attribute__((always_inline)) {
      const I32 low = wide(factor & 0xFFFFFFFF), high = wide(factor >> 32);
      const I32 across =
          _mm256_add_epi64(_mm256_mul_epu32(z, high), _mm256_mul_epu32(_mm256_srli_epi64(z, 32), low));
      return _mm256_add_epi64(_mm256_mul_epu32(z, low), _mm256_slli_epi64(across, 32));
    };
    constexpr uint64_t kStep = 0x9E3779B97F4A7C15ull;
    // The last shift of CounterMix (31) does not reach the 24 bits that are compared.
    const auto bits = [&](I32 steps) __attribute__((always_inline)) {
      I32 z = _mm256_add_epi64(wide(mixed + kStep * (index + 1)), steps);
      z = times(_mm256_xor_si256(z, _mm256_srli_epi64(z, 30)), 0xBF58476D1CE4E5B9ull);
      return times(_mm256_xor_si256(z, _mm256_srli_epi64(z, 27)), 0x94D049BB133111EBull);
    };
    // Upper halves of elements 0, 1, 4, 5 and of 2, 3, 6, 7, side by side in order.
    const F32 some = _mm256_castsi256_ps(bits(Steps4<0, 1, 4, 5>()));
    const F32 others = _mm256_castsi256_ps(bits(Steps4<2, 3, 6, 7>()));
    const I32 upper = _mm256_castps_si256(_mm256_shuffle_ps(some, others, 0xDD));
    const I32 value = _mm256_srli_epi32(upper, 8);  // below 2^24, as the threshold, which may be 2^24 itself
    return _mm256_cmpgt_epi32(value, _mm256_set1_epi32(static_cast<int>(threshold) - 1));
  }
#endif
  uint64_t mixed = 0;
  uint64_t threshold = 0;
  float inverse = 1;

#if !defined(__AVX512F__)
 private:
  template <uint64_t... kElements>
  NIBBLE_INLINE static I32 Steps4() {
    return _mm256_setr_epi64x(static_cast<int64_t>(0x9E3779B97F4A7C15ull * kElements)...);
  }
#endif
};

// Eight values with the dropped ones zeroed.
#if defined(__AVX512F__)
NIBBLE_INLINE void Keep8Of(BF16* values, uint32_t keep) {
  auto* at = reinterpret_cast<__m128i*>(values);
  _mm_storeu_si128(at, _mm_maskz_mov_epi16(static_cast<__mmask8>(keep), _mm_loadu_si128(at)));
}
NIBBLE_INLINE void Keep8Of(float* values, uint32_t keep) {
  _mm256_storeu_ps(values, _mm256_maskz_loadu_ps(static_cast<__mmask8>(keep), values));
}
#else
NIBBLE_INLINE void Keep8Of(BF16* values, I32 keep) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(keep), _mm256_extracti128_si256(keep, 1));
  auto* at = reinterpret_cast<__m128i*>(values);
  _mm_storeu_si128(at, _mm_and_si128(_mm_loadu_si128(at), words));
}
NIBBLE_INLINE void Keep8Of(float* values, I32 keep) {
  _mm256_storeu_ps(values, _mm256_and_ps(_mm256_loadu_ps(values), _mm256_castsi256_ps(keep)));
}
#endif

// Zeroes the dropped ones of `count` values whose first has this index.
template <typename T>
static void ZeroDropped(const Dropout& dropout, uint64_t index, int64_t count, T* values) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 8 <= count; i += 8) Keep8Of(values + i, dropout.Keep8(index + static_cast<uint64_t>(i)));
#else
  for (; i + 8 <= count; i += 8) Keep8Of(values + i, dropout.KeepMask8(index + static_cast<uint64_t>(i)));
#endif
  if (i == count) return;
  const uint32_t keep = dropout.Keep8(index + static_cast<uint64_t>(i));
  for (int64_t j = 0; i + j < count; ++j)
    if ((keep >> j & 1) == 0) values[i + j] = T{};
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY

#include "kernels/nf4.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/check.h"
#include "kernels/parallel.h"

namespace nibble::kernels {
namespace {

constexpr std::array<float, 16> kNf4 = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

// Sign in bit 3, and an e2m1-like magnitude in an order of its own.
constexpr std::array<float, 8> kFp4Magnitudes = {0.0f,      0.0625f / 12, 8.0f / 12, 1.0f,
                                                 4.0f / 12, 6.0f / 12,    2.0f / 12, 3.0f / 12};
// The same ascending, with their codes.
constexpr std::array<uint8_t, 8> kFp4Ascending = {0, 1, 6, 7, 4, 5, 2, 3};

struct Tables {
  std::array<float, 16> fp4;
  std::array<float, 16> int4;
  std::array<float, 256> int8;
  std::array<float, 256> dynamic;
  std::array<float, 256> unsigned_dynamic;
  std::array<float, 15> nf4_midpoints;
  std::array<float, 14> int4_midpoints;
  std::array<float, 7> fp4_midpoints;
  std::array<float, 255> dynamic_midpoints;
};

float Midpoint(float a, float b) { return (a + b) / 2; }

// Means of equally spaced boundaries in seven decades, with zero and one. Signed: 1, 2, .. 64 of them to a
// decade and both signs; unsigned: 2, 4, .. 128. The boundaries are torch.linspace's: from both ends
// inwards, each with one rounding.
std::array<float, 256> MakeDynamicMap(bool is_signed) {
  std::array<float, 256> map{};
  size_t count = 0;
  for (int decade = 0; decade < 7; ++decade) {
    const int boundaries = (is_signed ? 1 << decade : 2 << decade) + 1;
    const float start = 0.1f, end = 1.0f;
    const float step = (end - start) / static_cast<float>(boundaries - 1);
    const auto boundary = [&](int i) {
      return i < boundaries / 2 ? std::fma(step, static_cast<float>(i), start)
                                : std::fma(-step, static_cast<float>(boundaries - 1 - i), end);
    };
    const float scale = static_cast<float>(std::pow(10.0, decade - 6));
    for (int i = 0; i + 1 < boundaries; ++i) {
      const float value = scale * Midpoint(boundary(i), boundary(i + 1));
      map[count++] = value;
      if (is_signed) map[count++] = -value;
    }
  }
  map[count++] = 0.0f;
  map[count++] = 1.0f;
  KERNEL_CHECK(count == map.size());
  std::sort(map.begin(), map.end());
  return map;
}

Tables MakeTables() {
  Tables t{};
  for (size_t i = 0; i < 8; ++i) {
    t.fp4[i] = kFp4Magnitudes[i];
    t.fp4[i + 8] = -kFp4Magnitudes[i];
  }
  // 15 levels with zero in the middle; code 15 repeats 1 and is never written.
  for (int i = 0; i < 16; ++i) t.int4[i] = static_cast<float>(std::min(i, 14) - 7) / 7.0f;
  for (int i = 0; i < 256; ++i) t.int8[i] = static_cast<float>(std::min(i, 254) - 127) / 127.0f;
  t.dynamic = MakeDynamicMap(true);
  t.unsigned_dynamic = MakeDynamicMap(false);
  for (size_t i = 0; i < 15; ++i) t.nf4_midpoints[i] = Midpoint(kNf4[i], kNf4[i + 1]);
  for (size_t i = 0; i < 14; ++i) t.int4_midpoints[i] = Midpoint(t.int4[i], t.int4[i + 1]);
  for (size_t i = 0; i < 7; ++i)
    t.fp4_midpoints[i] =
        Midpoint(kFp4Magnitudes[kFp4Ascending[i]], kFp4Magnitudes[kFp4Ascending[i + 1]]);
  for (size_t i = 0; i < 255; ++i) t.dynamic_midpoints[i] = Midpoint(t.dynamic[i], t.dynamic[i + 1]);
  return t;
}

const Tables& GetTables() {
  static const Tables tables = MakeTables();
  return tables;
}

// How many midpoints lie strictly below each value. The loop over midpoints is the outer one so that the
// inner one is a plain vector loop.
template <size_t N>
void CountBelow(const float* values, int64_t count, const std::array<float, N>& midpoints,
                int32_t* out) {
  std::fill_n(out, count, 0);
  for (const float midpoint : midpoints)
    for (int64_t i = 0; i < count; ++i) out[i] += values[i] > midpoint ? 1 : 0;
}

constexpr int64_t kSpan = 64;  // values coded at a time

void CodeSpan(const float* values, int64_t count, QuantType type, int32_t* codes) {
  const Tables& tables = GetTables();
  switch (type) {
    case QuantType::kNF4: CountBelow(values, count, tables.nf4_midpoints, codes); break;
    case QuantType::kINT4: CountBelow(values, count, tables.int4_midpoints, codes); break;
    case QuantType::kFP4: {
      float magnitudes[kSpan];
      for (int64_t i = 0; i < count; ++i) magnitudes[i] = std::fabs(values[i]);
      CountBelow(magnitudes, count, tables.fp4_midpoints, codes);
      for (int64_t i = 0; i < count; ++i)
        codes[i] = kFp4Ascending[static_cast<size_t>(codes[i])] + (values[i] < 0 ? 8 : 0);
      break;
    }
    default:
      // Levels are 1/127 apart; a tie goes to the lower, as everywhere.
      for (int64_t i = 0; i < count; ++i) {
        int32_t code = static_cast<int32_t>(std::lrint(values[i] * 127.0f)) + 127;
        code = std::clamp(code, 0, 254);
        if (code > 0 && !(values[i] > Midpoint(tables.int8[code - 1], tables.int8[code]))) --code;
        if (code < 254 && values[i] > Midpoint(tables.int8[code], tables.int8[code + 1])) ++code;
        codes[i] = code;
      }
  }
}

uint8_t ZeroCode(QuantType type) {
  return type == QuantType::kFP4 ? 0 : type == QuantType::kINT8 ? 127 : 7;
}

void QuantizeBlock(const float* values, int64_t count, QuantType type, uint8_t* codes, float* absmax) {
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(values[i]));
  *absmax = largest;
  const uint8_t zero = ZeroCode(type);
  if (largest == 0) {
    if (type == QuantType::kINT8)
      std::memset(codes, zero, static_cast<size_t>(count));
    else
      std::memset(codes, zero << 4 | zero, static_cast<size_t>((count + 1) / 2));
    return;
  }
  const float reciprocal = 1.0f / largest;
  float scaled[kSpan];
  int32_t wide[kSpan];
  for (int64_t done = 0; done < count; done += kSpan) {
    const int64_t span = std::min(kSpan, count - done);
    for (int64_t i = 0; i < span; ++i) scaled[i] = values[done + i] * reciprocal;
    CodeSpan(scaled, span, type, wide);
    if (type == QuantType::kINT8) {
      for (int64_t i = 0; i < span; ++i) codes[done + i] = static_cast<uint8_t>(wide[i]);
      continue;
    }
    for (int64_t i = 0; i < span; i += 2) {
      const int32_t low = i + 1 < span ? wide[i + 1] : zero;
      codes[(done + i) / 2] = static_cast<uint8_t>(wide[i] << 4 | low);
    }
  }
}

}  // namespace

const float* CodeBook(QuantType type) {
  switch (type) {
    case QuantType::kNF4: return kNf4.data();
    case QuantType::kFP4: return GetTables().fp4.data();
    case QuantType::kINT4: return GetTables().int4.data();
    case QuantType::kINT8: return GetTables().int8.data();
    default: return nullptr;
  }
}

const float* SignedDynamicMap() { return GetTables().dynamic.data(); }
const float* UnsignedDynamicMap() { return GetTables().unsigned_dynamic.data(); }

void QuantizeTensor(const float* values, int64_t count, QuantType type, int64_t block, uint8_t* codes,
                    float* absmax, ThreadPool* pool) {
  KERNEL_CHECK(IsQuantized(type) && block > 0 && block % 2 == 0);
  const int64_t blocks = AbsmaxCount(count, block);
  constexpr int64_t kBlocksPerPiece = 1024;
  RunPieces(pool, (blocks + kBlocksPerPiece - 1) / kBlocksPerPiece, [&](int64_t piece, int) {
    const int64_t last = std::min(blocks, (piece + 1) * kBlocksPerPiece);
    for (int64_t b = piece * kBlocksPerPiece; b < last; ++b) {
      const int64_t first = b * block;
      QuantizeBlock(values + first, std::min(block, count - first), type,
                    codes + WeightBytes(type, first), absmax + b);
    }
  });
}

void QuantizeAbsmax(const float* absmax, int64_t blocks, uint8_t* codes, float* nested_absmax,
                    float* offset) {
  double sum = 0;
  for (int64_t b = 0; b < blocks; ++b) sum += static_cast<double>(absmax[b]);
  *offset = blocks == 0 ? 0.0f : static_cast<float>(sum / static_cast<double>(blocks));
  const auto& midpoints = GetTables().dynamic_midpoints;
  for (int64_t first = 0; first < blocks; first += kNestedBlock) {
    const int64_t last = std::min(blocks, first + kNestedBlock);
    float largest = 0;
    for (int64_t b = first; b < last; ++b) largest = std::max(largest, std::fabs(absmax[b] - *offset));
    nested_absmax[first / kNestedBlock] = largest;
    const float reciprocal = largest == 0 ? 0.0f : 1.0f / largest;
    for (int64_t b = first; b < last; ++b) {
      const float value = (absmax[b] - *offset) * reciprocal;
      codes[b] = static_cast<uint8_t>(std::lower_bound(midpoints.begin(), midpoints.end(), value) -
                                      midpoints.begin());
    }
  }
}

namespace {

// Where a block of the flat order is stored, in blocks.
int64_t StoredBlock(const WeightView& w, int64_t block) {
  return w.order == WeightOrder::kFlat ? block : TileIndex(block, w.n, w.k / kTileBlock);
}

// With the size known, a copy is a few loads and stores.
template <int64_t kUnit>
void CopyFromTiles(const char* tiles, int64_t n, int64_t row_blocks, int64_t first, int64_t count,
                   char* flat) {
  for (int64_t b = first, end = first + count; b < end;) {
    // To the end of the row: blocks a tile apart.
    const int64_t row = b / row_blocks, stop = std::min(end, (row + 1) * row_blocks);
    const char* from = tiles + TileIndex(b, n, row_blocks) * kUnit;
    const int64_t step = std::min(kTileHeight, n - row / kTileHeight * kTileHeight) * kUnit;
    for (; b < stop; ++b, from += step, flat += kUnit) std::memcpy(flat, from, kUnit);
  }
}

template <int64_t kUnit>
void CopyToTiles(const char* flat, int64_t n, int64_t row_blocks, char* tiles) {
  for (int64_t row = 0; row < n; ++row) {
    char* to = tiles + TileIndex(row * row_blocks, n, row_blocks) * kUnit;
    const int64_t step = std::min(kTileHeight, n - row / kTileHeight * kTileHeight) * kUnit;
    for (int64_t b = 0; b < row_blocks; ++b, to += step, flat += kUnit) std::memcpy(to, flat, kUnit);
  }
}

}  // namespace

void ToTiles(const void* flat, int64_t n, int64_t row_blocks, int64_t unit, void* tiles) {
  const auto* from = static_cast<const char*>(flat);
  auto* to = static_cast<char*>(tiles);
  switch (unit) {
    case 1: return CopyToTiles<1>(from, n, row_blocks, to);
    case 4: return CopyToTiles<4>(from, n, row_blocks, to);
    case 32: return CopyToTiles<32>(from, n, row_blocks, to);
    default:
      KERNEL_CHECK(unit == 64);
      return CopyToTiles<64>(from, n, row_blocks, to);
  }
}

void FromTiles(const void* tiles, int64_t n, int64_t row_blocks, int64_t unit, int64_t first, int64_t count,
               void* flat) {
  const auto* from = static_cast<const char*>(tiles);
  auto* to = static_cast<char*>(flat);
  switch (unit) {
    case 1: return CopyFromTiles<1>(from, n, row_blocks, first, count, to);
    case 4: return CopyFromTiles<4>(from, n, row_blocks, first, count, to);
    case 32: return CopyFromTiles<32>(from, n, row_blocks, first, count, to);
    default:
      KERNEL_CHECK(unit == 64);
      return CopyFromTiles<64>(from, n, row_blocks, first, count, to);
  }
}

float WeightAbsmax(const WeightView& w, int64_t block) {
  const int64_t stored = StoredBlock(w, block);
  if (w.absmax != nullptr) return w.absmax[stored];
  const float nested = w.nested_map[w.absmax_codes[stored]] * w.nested_absmax[block / kNestedBlock];
  return nested + w.offset;
}

void DequantizeRange(const WeightView& w, int64_t first, int64_t count, float* out) {
  if (w.type == QuantType::kF32) {
    std::memcpy(out, static_cast<const float*>(w.data) + first, static_cast<size_t>(count) * 4);
    return;
  }
  if (w.type == QuantType::kBF16) {
    const auto* values = static_cast<const uint16_t*>(w.data) + first;
    for (int64_t i = 0; i < count; ++i)
      out[i] = std::bit_cast<float>(static_cast<uint32_t>(values[i]) << 16);
    return;
  }
  const auto* codes = static_cast<const uint8_t*>(w.data);
  int64_t i = 0;
  while (i < count) {
    const int64_t block = (first + i) / w.block;
    const int64_t end = std::min(count, (block + 1) * w.block - first);
    const float absmax = WeightAbsmax(w, block);
    const int64_t moved = (StoredBlock(w, block) - block) * w.block;
    for (; i < end; ++i) {
      const int64_t at = first + i + moved;
      const uint8_t code = w.type == QuantType::kINT8 ? codes[at]
                           : at % 2 == 0              ? codes[at / 2] >> 4
                                                      : codes[at / 2] & 15;
      out[i] = w.code_book[code] * absmax;
    }
  }
}

}  // namespace nibble::kernels

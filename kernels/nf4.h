// Quantization of frozen weights, bit for bit as bitsandbytes stores them (NF4, FP4), and two uniform
// formats of our own (INT4, INT8). Pure functions; everything goes to the caller's buffers.
//
// Flat order: element i of the row-major matrix belongs to block i / block. 4-bit codes: byte i / 2, even i
// in the high nibble, an odd last element beside a zero-valued one. A value x of a block is coded as
// x * (1 / absmax), both in fp32, and takes the upper of two codes only when strictly above their
// fp32 midpoint. A block of zeros gets the code of 0. Values must be finite.
//
// Double quantization: offset = mean of all absmax (summed in double in order, rounded once); absmax - offset
// in blocks of 256 as codes of the signed dynamic map, nearest entry, ties to the lower, with the
// block's largest magnitude in fp32.
#pragma once

#include <cstdint>

#include "kernels/kernel_table.h"

namespace nibble::kernels {

inline constexpr int64_t kNestedBlock = 256;

// Codes to values in [-1, 1]: 16 entries, or 256 for kINT8; null for kF32 and kBF16.
const float* CodeBook(QuantType type);
// bitsandbytes' dynamic maps, 256 ascending entries: zero is entry 127 of the signed one and entry 0 of
// the unsigned one; both end with 1, and there is no -1.
const float* SignedDynamicMap();
const float* UnsignedDynamicMap();

constexpr bool IsQuantized(QuantType type) { return type >= QuantType::kNF4; }

// Bytes of `count` stored elements.
constexpr int64_t WeightBytes(QuantType type, int64_t count) {
  switch (type) {
    case QuantType::kF32: return 4 * count;
    case QuantType::kBF16: return 2 * count;
    case QuantType::kINT8: return count;
    default: return (count + 1) / 2;
  }
}
constexpr int64_t AbsmaxCount(int64_t count, int64_t block) { return (count + block - 1) / block; }
constexpr int64_t NestedCount(int64_t blocks) { return (blocks + kNestedBlock - 1) / kNestedBlock; }

// codes [WeightBytes], absmax [AbsmaxCount]. `block` is even. A tensor may be done in parts that begin at
// multiples of `block`. `pool` may be null.
void QuantizeTensor(const float* values, int64_t count, QuantType type, int64_t block, uint8_t* codes,
                    float* absmax, ThreadPool* pool);

// codes [blocks], nested_absmax [NestedCount(blocks)].
void QuantizeAbsmax(const float* absmax, int64_t blocks, uint8_t* codes, float* nested_absmax,
                    float* offset);

// Whether a weight can be stored in WeightOrder::kTiles.
constexpr bool SuitsTiles(QuantType type, int64_t k, int64_t block) {
  return IsQuantized(type) && block == kTileBlock && k % kTileBlock == 0;
}
// Where block `block` of the flat order lies in kTiles, in blocks; `n` rows of `row_blocks` blocks.
constexpr int64_t TileIndex(int64_t block, int64_t n, int64_t row_blocks) {
  const int64_t row = block / row_blocks, in_group = row % kTileHeight, first = row - in_group;
  const int64_t height = n - first < kTileHeight ? n - first : kTileHeight;
  return first * row_blocks + block % row_blocks * height + in_group;
}
// An array with `unit` bytes for each block (codes or scales) of n rows, from one order to the other. A
// matrix may be done in parts that begin at multiples of kTileHeight rows; the arrays do not overlap.
void ToTiles(const void* flat, int64_t n, int64_t row_blocks, int64_t unit, void* tiles);
// Blocks first .. first + count - 1 of the flat order.
void FromTiles(const void* tiles, int64_t n, int64_t row_blocks, int64_t unit, int64_t first, int64_t count,
               void* flat);

// The absmax of a block of the flat order, nested or not, whatever the weight's order.
float WeightAbsmax(const WeightView& w, int64_t block);

// Elements first .. first + count - 1 of a row-major weight in fp32, before the rounding to an act type.
void DequantizeRange(const WeightView& w, int64_t first, int64_t count, float* out);

}  // namespace nibble::kernels

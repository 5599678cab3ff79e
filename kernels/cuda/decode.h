// Decoding frozen weights on the device: what decode_weight, the linear layers and the small-m product share.
//
// A weight is code_book[code] * absmax in fp32, rounded once to the activation type. Double quantization is
// undone on the fly: the thread that needs an absmax forms it, map[code] * nested + offset with two
// roundings. So decoding reads 0.52 bytes of a weight and writes two, and nothing else.
#pragma once

#include "kernels/cuda/device.h"

namespace nibble::kernels::NIBBLE_CUDA {

// out act [rows, columns], dense: rows n0 .. n0+rows-1 and columns k0 .. k0+columns-1 of w. Fast where k0,
// columns and w.k are multiples of 8, the block is a power of two from 8 on, and `out` is aligned to 16
// bytes; right for every shape and alignment.
template <typename Act>
void DecodePanel(Context* ctx, Act* out, const WeightView& w, int64_t n0, int64_t rows, int64_t k0,
                 int64_t columns);

// The same of `count` matrices of equal width, one below the other; one launch where they are stored alike.
template <typename Act>
void DecodePanel(Context* ctx, Act* out, const WeightView* w, int count, int64_t n0, int64_t rows, int64_t k0,
                 int64_t columns);

// Log2 of a power of two, or -1.
inline int ShiftOf(int64_t value) {
  for (int shift = 0; shift < 62; ++shift)
    if (value == int64_t{1} << shift) return shift;
  return -1;
}

// Of a doubly quantized weight. `block` is int64_t, or unsigned where it fits: fewer instructions.
template <typename Index>
__device__ __forceinline__ float NestedAbsmax(const WeightView& w, Index block) {
  const float nested =
      __fmul_rn(__ldg(w.nested_map + __ldg(w.absmax_codes + block)), __ldg(w.nested_absmax + (block >> 8)));
  return __fadd_rn(nested, w.offset);
}

template <typename Index>
__device__ __forceinline__ float AbsmaxOf(const WeightView& w, Index block) {
  return w.absmax != nullptr ? __ldg(w.absmax + block) : NestedAbsmax(w, block);
}

// Eight 4-bit codes as they lie in memory, through a table of 16 in shared memory: its entries are in
// sixteen banks, so lanes never wait for each other.
__device__ __forceinline__ void Decode8(float (&values)[8], uint32_t codes, const float* table,
                                        float absmax) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = __fmul_rn(table[codes >> (8 * i + 4) & 15], absmax);
    values[2 * i + 1] = __fmul_rn(table[codes >> (8 * i) & 15], absmax);
  }
}

}  // namespace nibble::kernels::NIBBLE_CUDA

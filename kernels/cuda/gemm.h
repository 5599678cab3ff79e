// Our own matrix product on tensor cores, and what is around it: the skinny products of the LoRA
// branch with dropout, and the twin of the library's product, for the emulation and where the
// library is missing.
//
//   C[m, n] = epilogue(sum over k of A(m, k) B(n, k)), summed in fp32, rounded once.
//
// A is [M, K] with K contiguous, or stored transposed, [K, M] with M contiguous; B is [N, K] or [K,
// N] in the same sense. Dropout may mask A as it is read; the mask's counter is the element's flat
// index in the array that is masked, which is why the callers' arrays are dense.
//
// Several products of a group of layers are one launch. Blocks of different products that read the
// same rows stand side by side, so that what the group shares is read from memory once.
//
// Depth may be cut into `splits` pieces whose sums go to `partial`, fp32 [splits, M, N];
// SumPartials adds them in order. The number of pieces depends on the shape alone, never on the
// device.
#pragma once

#include "kernels/cuda/device.h"

namespace nibble::kernels::NIBBLE_CUDA {

struct GemmOperand {
  const void* data = nullptr;  // act
  int64_t stride = 0;          // elements from row to row as stored
  bool transposed = false;     // stored [K, rows]
};

struct GemmArgs {
  int64_t m = 0, n = 0, k = 0;
  GemmOperand a, b;
  DropoutKey a_dropout;  // masks A, without the 1 / (1 - p): that is in alpha
  float alpha = 1;

  void* c = nullptr;  // act, or float when c_float; [M, N], rows c_stride apart
  int64_t c_stride = 0;
  bool c_float = false;
  ParamView bias;           // [N], added after alpha
  const void* add = nullptr;  // of C's type, [M, N], rows add_stride apart: added last; may be C
  int64_t add_stride = 0;

  // When not null C is not written, nor is alpha used.
  float* partial = nullptr;
  int64_t splits = 1;
};

// Whether the narrow tile is taken, 16 columns instead of 64.
constexpr int64_t kGemmRows = 128;
constexpr int64_t GemmColumns(int64_t n) { return n <= 16 ? 16 : 64; }

// B and A must not be both plain and transposed the other way round: (plain, plain), (plain,
// transposed) and (transposed, transposed) exist.
// At most kMostGrouped of one layout.
template <typename Act>
void Gemm(Context* ctx, const GemmArgs* products, int count);
template <typename Act>
void Gemm(Context* ctx, const GemmArgs& args) {
  Gemm<Act>(ctx, &args, 1);
}

// C [M, N] = add + sum over terms of dropout(alpha A B), for A [M, K] and B stored [K, N], one rounding. The
// mask's counter is the flat index in C, dense. `out` has m, n, c and add.
struct GemmTerm {
  const void* a = nullptr;  // dense
  const void* b = nullptr;
  int64_t k = 0;
  float alpha = 1;
  DropoutKey dropout;
};
template <typename Act>
void GemmTerms(Context* ctx, const GemmArgs& out, const GemmTerm* terms, int count);

// What becomes of partial sums [splits, rows, columns]: alpha times their sum.
struct PartialSums {
  void* out = nullptr;
  const float* partial = nullptr;
  int64_t splits = 1;
  int64_t rows = 0, columns = 0;
  float alpha = 1;
  bool transposed = false;  // out is [columns, rows]; of AddPartials
};
// out act [rows, columns] = that.
template <typename Act>
void SumPartials(Context* ctx, const PartialSums* sums, int count);
// out float += that.
void AddPartials(Context* ctx, const PartialSums* sums, int count);

}  // namespace nibble::kernels::NIBBLE_CUDA

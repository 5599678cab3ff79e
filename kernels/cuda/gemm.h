// Our own matrix product on tensor cores, and what is around it: the skinny products of the LoRA
// branch with dropout, and the twin of the library's product, for the emulation and where the
// library is missing.
//
//   C[m, n] = epilogue(sum over k of A(m, k) B(n, k)), summed in fp32, rounded once.
//
// A is [M, K] with K contiguous, or stored transposed, [K, M] with M contiguous; B is [N, K] or [K,
// N] in the same sense. Dropout may mask A as it is read, or C as it is written; the mask's counter
// is the element's flat index in the array that is masked, which is why the callers' arrays are
// dense.
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
  bool accumulate = false;  // C += instead of =
  ParamView bias;           // [N], added after alpha
  DropoutKey c_dropout;     // masks alpha * sum before anything is added

  // When not null C is not written, nor is alpha used.
  float* partial = nullptr;
  int64_t splits = 1;
};

// Whether the narrow tile is taken, 16 columns instead of 64.
constexpr int64_t kGemmRows = 128;
constexpr int64_t GemmColumns(int64_t n) { return n <= 16 ? 16 : 64; }

// B and A must not be both plain and transposed the other way round: (plain, plain), (plain,
// transposed) and (transposed, transposed) exist.
template <typename Act>
void Gemm(Context* ctx, const GemmArgs& args);

// out = alpha * sum over splits of partial[split], to act; `count` = M N.
template <typename Act>
void SumPartials(Context* ctx, void* out, const float* partial, int64_t splits, int64_t count, float alpha);
// out[i] += that, float; or, `transposed`, out[column, row] += for partial [splits, rows, columns].
void AddPartials(Context* ctx, float* out, const float* partial, int64_t splits, int64_t rows,
                 int64_t columns, float alpha, bool transposed);

}  // namespace nibble::kernels::NIBBLE_CUDA

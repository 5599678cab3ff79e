// The large products of a step: cuBLASLt's where the context has it, our own (gemm.h) otherwise.
#pragma once

#include <cstdint>

#include "kernels/cuda/device.h"

namespace nibble::kernels::NIBBLE_CUDA {

// C [M, N] (+)= A [M, K] B^T for B [N, K], or A B for B stored [K, N]. Sums in fp32, one rounding.
struct MatMulArgs {
  int64_t m = 0, n = 0, k = 0;
  const void* a = nullptr;  // act
  int64_t a_stride = 0;
  const void* b = nullptr;  // act
  int64_t b_stride = 0;
  // The library's algorithm is the one for this stride of B, whatever b_stride is: then the sums are the
  // same, too. 0 = b_stride.
  int64_t b_as_if = 0;
  bool b_transposed = false;  // stored [K, N]
  void* c = nullptr;          // act, or float when c_float
  int64_t c_stride = 0;
  bool c_float = false;
  bool accumulate = false;
};

// `scratch`: kLibraryBytes for the library (workspace.h); not touched without one.
template <typename Act>
void MatMul(Context* ctx, const MatMulArgs& args, void* scratch);

// Whether the product can run at b_stride with b_as_if's algorithm.
template <typename Act>
bool CanStride(Context* ctx, const MatMulArgs& args);

// Whether MatMul wants its scratch.
inline bool HasLibrary(const Context* ctx) { return ctx->libraries != nullptr; }

}  // namespace nibble::kernels::NIBBLE_CUDA

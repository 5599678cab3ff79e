#include "kernels/cuda/gemm.h"
#include "kernels/cuda/matmul.h"
#if defined(__CUDACC__)
#include "kernels/cuda/libraries.h"
#endif

namespace nibble::kernels::NIBBLE_CUDA {

template <typename Act>
void MatMul(Context* ctx, const MatMulArgs& args, void* scratch) {
  if (args.m == 0 || args.n == 0 || ctx->error != nullptr) return;
#if defined(__CUDACC__)
  // The library refuses what it has no algorithm for (odd strides on some versions): then it is
  // ours.
  if (HasLibrary(ctx) &&
      static_cast<Libraries*>(ctx->libraries)->MatMul(ctx, ActType<Act>::kType, args, scratch))
    return;
#else
  (void)scratch;
#endif
  GemmArgs own;
  own.m = args.m;
  own.n = args.n;
  own.k = args.k;
  own.a = {args.a, args.a_stride, false};
  own.b = {args.b, args.b_stride, args.b_transposed};
  own.c = args.c;
  own.c_stride = args.c_stride;
  own.c_float = args.c_float;
  if (args.accumulate) own.add = args.c;
  own.add_stride = args.c_stride;
  Gemm<Act>(ctx, own);
}

template <typename Act>
bool CanStride(Context* ctx, const MatMulArgs& args) {
#if defined(__CUDACC__)
  return !HasLibrary(ctx) || static_cast<Libraries*>(ctx->libraries)->CanStride(ActType<Act>::kType, args);
#else
  (void)ctx;
  (void)args;
  return true;  // our own sums do not depend on strides
#endif
}

template bool CanStride<BF16>(Context*, const MatMulArgs&);
template bool CanStride<FP16>(Context*, const MatMulArgs&);
template void MatMul<BF16>(Context*, const MatMulArgs&, void*);
template void MatMul<FP16>(Context*, const MatMulArgs&, void*);

}  // namespace nibble::kernels::NIBBLE_CUDA

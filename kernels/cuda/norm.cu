// RMSNorm, forward and backward. A row is read once and kept in registers: by one warp when it is short (the
// per-head norms of q and k, small models), by a whole block otherwise.
#include "kernels/cuda/ops.h"

namespace nibble::kernels::NIBBLE_CUDA {
namespace {

// kLanes threads to a row, each with kChunks times eight neighbouring values of it.
template <int kLanes, int kChunks>
struct Shape {
  static constexpr int kThreads = Max(kLanes, 256);
  static constexpr int kRows = kThreads / kLanes;
  static constexpr int64_t kLongest = int64_t{kLanes} * kChunks * 8;
};
using Short = Shape<32, 4>;
using Middle = Shape<256, 4>;
using Long = Shape<1024, 2>;

template <int kLanes>
__device__ __forceinline__ int64_t ColumnOf(int chunk) {
  return (int64_t{chunk} * kLanes + threadIdx.x % kLanes) * 8;
}

template <typename Act, int kLanes, int kChunks>
__global__ void __launch_bounds__(Shape<kLanes, kChunks>::kThreads)
    ForwardKernel(Act* y, float* rstd, const Act* x, ParamView w, int64_t m, int64_t dim, float eps,
                  float unit_offset, bool vector) {
  const int64_t row = int64_t{blockIdx.x} * Shape<kLanes, kChunks>::kRows + threadIdx.x / kLanes;
  if (row >= m) return;  // whole warps: a block of several rows has a warp to each
  float values[kChunks][8];
  float squares = 0;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int64_t column = ColumnOf<kLanes>(c);
    if (column >= dim) break;
    Load8(values[c], x + row * dim + column, dim - column, vector);
#pragma unroll
    for (int i = 0; i < 8; ++i) squares = fmaf(values[c][i], values[c][i], squares);
  }
  squares = BlockSum<kLanes>(squares);
  const float scale = 1.0f / sqrtf(squares / static_cast<float>(dim) + eps);
  if (rstd != nullptr && threadIdx.x % kLanes == 0) rstd[row] = scale;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int64_t column = ColumnOf<kLanes>(c);
    if (column >= dim) break;
    float weights[8];
    LoadParam8(weights, w, column, dim - column, vector);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[c][i] = values[c][i] * scale * (weights[i] + unit_offset);
    Store8(y + row * dim + column, values[c], dim - column, vector);
  }
}

template <typename Act, int kLanes, int kChunks>
__global__ void __launch_bounds__(Shape<kLanes, kChunks>::kThreads)
    BackwardKernel(Act* dx, bool accumulate, const Act* dy, const Act* x, ParamView w, const float* rstd,
                   int64_t m, int64_t dim, float unit_offset, bool vector) {
  const int64_t row = int64_t{blockIdx.x} * Shape<kLanes, kChunks>::kRows + threadIdx.x / kLanes;
  if (row >= m) return;
  const float scale = rstd[row];
  float normed[kChunks][8], gradient[kChunks][8];  // x * rstd, and dy * (w + offset)
  float products = 0;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int64_t column = ColumnOf<kLanes>(c);
    if (column >= dim) break;
    float weights[8];
    Load8(normed[c], x + row * dim + column, dim - column, vector);
    Load8(gradient[c], dy + row * dim + column, dim - column, vector);
    LoadParam8(weights, w, column, dim - column, vector);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      normed[c][i] *= scale;
      gradient[c][i] *= weights[i] + unit_offset;
      products = fmaf(normed[c][i], gradient[c][i], products);
    }
  }
  const float mean = BlockSum<kLanes>(products) / static_cast<float>(dim);
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int64_t column = ColumnOf<kLanes>(c);
    if (column >= dim) break;
    float old[8] = {};
    if (accumulate) Load8(old, dx + row * dim + column, dim - column, vector);
#pragma unroll
    for (int i = 0; i < 8; ++i) old[i] += scale * (gradient[c][i] - normed[c][i] * mean);
    Store8(dx + row * dim + column, old, dim - column, vector);
  }
}

template <typename S>
unsigned RowBlocks(int64_t m) {
  return Blocks(m, S::kRows);
}

}  // namespace

template <typename Act>
void RmsNormForward(Context* ctx, void* y, void* rstd, const void* x, ParamView w, int64_t m, int64_t dim,
                    float eps, float unit_offset) {
  KERNEL_CHECK(dim > 0 && dim <= Long::kLongest);
  const bool vector = dim % 8 == 0 && Aligned(y, x, w.data);
  const auto launch = [&]<int kLanes, int kChunks>(Shape<kLanes, kChunks>) {
    using S = Shape<kLanes, kChunks>;
    Launch(ctx, RowBlocks<S>(m), S::kThreads, 0, ForwardKernel<Act, kLanes, kChunks>, static_cast<Act*>(y),
           static_cast<float*>(rstd), static_cast<const Act*>(x), w, m, dim, eps, unit_offset, vector);
  };
  if (dim <= Short::kLongest)
    launch(Short{});
  else if (dim <= Middle::kLongest)
    launch(Middle{});
  else
    launch(Long{});
}

template <typename Act>
void RmsNormBackward(Context* ctx, void* dx, bool accumulate, const void* dy, const void* x, ParamView w,
                     const void* rstd, int64_t m, int64_t dim, float unit_offset) {
  KERNEL_CHECK(dim > 0 && dim <= Long::kLongest);
  const bool vector = dim % 8 == 0 && Aligned(dx, dy, x, w.data);
  const auto launch = [&]<int kLanes, int kChunks>(Shape<kLanes, kChunks>) {
    using S = Shape<kLanes, kChunks>;
    Launch(ctx, RowBlocks<S>(m), S::kThreads, 0, BackwardKernel<Act, kLanes, kChunks>, static_cast<Act*>(dx),
           accumulate, static_cast<const Act*>(dy), static_cast<const Act*>(x), w,
           static_cast<const float*>(rstd), m, dim, unit_offset, vector);
  };
  if (dim <= Short::kLongest)
    launch(Short{});
  else if (dim <= Middle::kLongest)
    launch(Middle{});
  else
    launch(Long{});
}

#define INSTANTIATE(Act)                                                                                     \
  template void RmsNormForward<Act>(Context*, void*, void*, const void*, ParamView, int64_t, int64_t, float, \
                                    float);                                                                  \
  template void RmsNormBackward<Act>(Context*, void*, bool, const void*, const void*, ParamView,             \
                                     const void*, int64_t, int64_t, float);
INSTANTIATE(BF16)
INSTANTIATE(FP16)
#undef INSTANTIATE

}  // namespace nibble::kernels::NIBBLE_CUDA

// RMSNorm, forward and backward. A row is read once and kept in registers: by one warp when it is short (the
// per-head norms of q and k, small models), by a whole block otherwise.
#include "kernels/cuda/ops.h"

namespace nibble::kernels::NIBBLE_CUDA {
namespace {

// kLanes threads to a row, each with kChunks times eight neighbouring values of it, by 16-byte accesses where
// kVector says so.
template <int kLanesOfRow, int kChunksOfLane, bool kVectorAccess>
struct Shape {
  static constexpr int kLanes = kLanesOfRow, kChunks = kChunksOfLane;
  static constexpr bool kVector = kVectorAccess;
  static constexpr int kThreads = Max(kLanes, 256);
  static constexpr int kRows = kThreads / kLanes;  // of a block

  static __device__ __forceinline__ int64_t Row() {
    return int64_t{blockIdx.x} * kRows + threadIdx.x / kLanes;
  }
  static __device__ __forceinline__ int Column(int chunk) {
    return (chunk * kLanes + static_cast<int>(threadIdx.x % kLanes)) * 8;
  }
};
using Short = Shape<32, 4, true>;
using Middle = Shape<256, 4, true>;
using Long = Shape<1024, 2, true>;
using Unaligned = Shape<1024, 2, false>;

// Elements of the longest row.
template <typename S>
constexpr int64_t kLongest = int64_t{S::kLanes} * S::kChunks * 8;

template <typename Act, typename S>
__global__ void __launch_bounds__(S::kThreads)
    ForwardKernel(Act* y, float* rstd, const Act* x, ParamView w, int64_t m, int dim, float eps,
                  float unit_offset) {
  const int64_t row = S::Row();
  if (row >= m) return;  // whole warps: a block of several rows has a warp to each
  float values[S::kChunks][8];
  float squares = 0;
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
    const int column = S::Column(c);
    if (column < dim) {
      Load8(values[c], x + row * dim + column, S::kVector ? 8 : dim - column, S::kVector);
#pragma unroll
      for (int i = 0; i < 8; ++i) squares = fmaf(values[c][i], values[c][i], squares);
    }
  }
  squares = BlockSum<S::kLanes>(squares);
  const float scale = 1.0f / sqrtf(squares / static_cast<float>(dim) + eps);
  if (rstd != nullptr && threadIdx.x % S::kLanes == 0) rstd[row] = scale;
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
    const int column = S::Column(c);
    if (column < dim) {
      float weights[8];
      LoadParam8(weights, w, column, S::kVector ? 8 : dim - column, S::kVector);
#pragma unroll
      for (int i = 0; i < 8; ++i) values[c][i] = values[c][i] * scale * (weights[i] + unit_offset);
      Store8(y + row * dim + column, values[c], S::kVector ? 8 : dim - column, S::kVector);
    }
  }
}

template <typename Act, typename S>
__global__ void __launch_bounds__(S::kThreads)
    BackwardKernel(Act* dx, bool accumulate, const Act* dy, const Act* x, ParamView w, const float* rstd,
                   int64_t m, int dim, float unit_offset) {
  const int64_t row = S::Row();
  if (row >= m) return;
  const float scale = rstd[row];
  float normed[S::kChunks][8], gradient[S::kChunks][8];  // x * rstd, and dy * (w + offset)
  float products = 0;
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
    const int column = S::Column(c), left = S::kVector ? 8 : dim - column;
    if (column < dim) {
      float weights[8];
      Load8(normed[c], x + row * dim + column, left, S::kVector);
      Load8(gradient[c], dy + row * dim + column, left, S::kVector);
      LoadParam8(weights, w, column, left, S::kVector);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        normed[c][i] *= scale;
        gradient[c][i] *= weights[i] + unit_offset;
        products = fmaf(normed[c][i], gradient[c][i], products);
      }
    }
  }
  const float mean = BlockSum<S::kLanes>(products) / static_cast<float>(dim);
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
    const int column = S::Column(c), left = S::kVector ? 8 : dim - column;
    if (column < dim) {
      float old[8] = {};
      if (accumulate) Load8(old, dx + row * dim + column, left, S::kVector);
#pragma unroll
      for (int i = 0; i < 8; ++i) old[i] += scale * (gradient[c][i] - normed[c][i] * mean);
      Store8(dx + row * dim + column, old, left, S::kVector);
    }
  }
}

// Calls `launch` with the shape for rows of `dim`.
template <typename F>
void WithShape(int64_t dim, bool vector, F&& launch) {
  KERNEL_CHECK(dim > 0 && dim <= kLongest<Long>);
  if (!vector)
    launch(Unaligned{});
  else if (dim <= kLongest<Short>)
    launch(Short{});
  else if (dim <= kLongest<Middle>)
    launch(Middle{});
  else
    launch(Long{});
}

}  // namespace

template <typename Act>
void RmsNormForward(Context* ctx, void* y, void* rstd, const void* x, ParamView w, int64_t m, int64_t dim,
                    float eps, float unit_offset) {
  WithShape(dim, dim % 8 == 0 && Aligned(y, x, w.data), [&]<typename S>(S) {
    Launch(ctx, Blocks(m, S::kRows), S::kThreads, 0, ForwardKernel<Act, S>, static_cast<Act*>(y),
           static_cast<float*>(rstd), static_cast<const Act*>(x), w, m, static_cast<int>(dim), eps,
           unit_offset);
  });
}

template <typename Act>
void RmsNormBackward(Context* ctx, void* dx, bool accumulate, const void* dy, const void* x, ParamView w,
                     const void* rstd, int64_t m, int64_t dim, float unit_offset) {
  WithShape(dim, dim % 8 == 0 && Aligned(dx, dy, x, w.data), [&]<typename S>(S) {
    Launch(ctx, Blocks(m, S::kRows), S::kThreads, 0, BackwardKernel<Act, S>, static_cast<Act*>(dx),
           accumulate, static_cast<const Act*>(dy), static_cast<const Act*>(x), w,
           static_cast<const float*>(rstd), m, static_cast<int>(dim), unit_offset);
  });
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

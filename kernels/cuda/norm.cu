// RMSNorm, forward and backward. A row is read once and kept in registers: by one warp or half of one when it is
// short (small models, the per-head norms of q and k), by a whole block otherwise.
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
// A row that needs fewer registers leaves them to other rows: what a processor has under way is what keeps its
// memory busy.
using Head = Shape<16, 1, true>;
using LargeHead = Shape<32, 1, true>;
using Short = Shape<32, 4, true>;
using Narrow = Shape<256, 1, true>;
using Middle = Shape<256, 2, true>;
using Wide = Shape<256, 4, true>;
using Long = Shape<1024, 2, true>;
using Unaligned = Shape<1024, 2, false>;

// Elements of the longest row.
template <typename S>
constexpr int64_t kLongest = int64_t{S::kLanes} * S::kChunks * 8;

// Eight neighbours of a row as they lie in memory: half the registers of their values, and nothing between one load
// and the next that would have to wait for it. Zeros behind the row's end.
template <typename Act, bool kVector>
struct Eight {
  uint4 word;
  __device__ __forceinline__ void Load(const Act* row, int column, int dim) {
    word = make_uint4(0, 0, 0, 0);
    if (column < dim) word = VectorAt<uint4>(row + column);
  }
  __device__ __forceinline__ void Unpack(float (&values)[8]) const { Unpack8<Act>(values, word); }
};
template <typename Act>
struct Eight<Act, false> {
  float single[8];
  __device__ __forceinline__ void Load(const Act* row, int column, int dim) {
    Load8(single, row + column, dim - column, false);
  }
  __device__ __forceinline__ void Unpack(float (&values)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = single[i];
  }
};
template <typename Act, typename S>
using Row = Eight<Act, S::kVector>[S::kChunks];

template <typename S, typename Act>
__device__ __forceinline__ void LoadRow(Eight<Act, S::kVector> (&part)[S::kChunks], const Act* row, int dim) {
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) part[c].Load(row, S::Column(c), dim);
}

// The weights of a lane; one branch for all chunks.
template <typename S>
__device__ __forceinline__ void LoadWeights(float (&weights)[S::kChunks][8], ParamView w, int dim) {
  const auto load = [&](const auto* from) {
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      const int column = S::Column(c);
      Load8(weights[c], from + (S::kVector ? Min(column, dim - 8) : column), S::kVector ? 8 : dim - column,
            S::kVector);
    }
  };
  if (w.type == DType::kF32)
    load(static_cast<const float*>(w.data));
  else if (w.type == DType::kF16)
    load(static_cast<const FP16*>(w.data));
  else
    load(static_cast<const BF16*>(w.data));
}

// Over the lanes of a row, which all of a warp's lanes enter together.
template <int kLanes>
__device__ __forceinline__ float RowSum(float value) {
  if constexpr (kLanes >= 32) {
    return BlockSum<kLanes>(value);
  } else {
#pragma unroll
    for (int bits = kLanes / 2; bits > 0; bits /= 2) value += __shfl_xor_sync(kAllLanes, value, bits);
    return value;
  }
}

// Of a row that is not there: a whole warp ends, a part of one has zeros and writes nothing.
template <typename S>
__device__ __forceinline__ bool Ends(bool exists) {
  return S::kLanes >= 32 && !exists;
}

template <typename Act, typename S>
__global__ void __launch_bounds__(S::kThreads)
    ForwardKernel(Act* y, float* rstd, const Act* x, ParamView w, int64_t m, int dim, float eps,
                  float unit_offset) {
  const int64_t row = S::Row();
  const bool exists = row < m;
  if (Ends<S>(exists)) return;
  Row<Act, S> loaded = {};
  if (exists) LoadRow<S>(loaded, x + row * dim, dim);
  float squares = 0;
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
    float values[8];
    loaded[c].Unpack(values);
    if (S::Column(c) < dim) {
#pragma unroll
      for (int i = 0; i < 8; ++i) squares = fmaf(values[i], values[i], squares);
    }
  }
  squares = RowSum<S::kLanes>(squares);
  const float scale = 1.0f / sqrtf(squares / static_cast<float>(dim) + eps);
  if (exists && rstd != nullptr && threadIdx.x % S::kLanes == 0) rstd[row] = scale;
  float weights[S::kChunks][8];
  LoadWeights<S>(weights, w, dim);
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
    const int column = S::Column(c);
    if (exists && column < dim) {
      float values[8];
      loaded[c].Unpack(values);
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] = values[i] * scale * (weights[c][i] + unit_offset);
      Store8(y + row * dim + column, values, S::kVector ? 8 : dim - column, S::kVector);
    }
  }
}

template <typename Act, typename S>
__global__ void __launch_bounds__(S::kThreads)
    BackwardKernel(Act* dx, bool accumulate, const Act* dy, const Act* x, ParamView w, const float* rstd,
                   int64_t m, int dim, float unit_offset) {
  const int64_t row = S::Row();
  const bool exists = row < m;
  if (Ends<S>(exists)) return;
  Row<Act, S> x_row = {}, dy_row = {}, old_row = {};
  if (exists) {
    LoadRow<S>(x_row, x + row * dim, dim);
    LoadRow<S>(dy_row, dy + row * dim, dim);
    if (S::kVector && accumulate) LoadRow<S>(old_row, dx + row * dim, dim);
  }
  const float scale = exists ? rstd[row] : 0.0f;
  float weights[S::kChunks][8];
  LoadWeights<S>(weights, w, dim);
  float normed[S::kChunks][8], gradient[S::kChunks][8];  // x * rstd, and dy * (w + offset)
  float products = 0;
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
    x_row[c].Unpack(normed[c]);
    dy_row[c].Unpack(gradient[c]);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      normed[c][i] *= scale;
      gradient[c][i] *= weights[c][i] + unit_offset;
      if (S::Column(c) < dim) products = fmaf(normed[c][i], gradient[c][i], products);
    }
  }
  const float mean = RowSum<S::kLanes>(products) / static_cast<float>(dim);
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c) {
    const int column = S::Column(c), left = S::kVector ? 8 : dim - column;
    if (exists && column < dim) {
      float old[8] = {};
      if (accumulate) {
        if (!S::kVector) old_row[c].Load(dx + row * dim, column, dim);  // registers
        old_row[c].Unpack(old);
      }
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
  else if (dim <= kLongest<Head>)
    launch(Head{});
  else if (dim <= kLongest<LargeHead>)
    launch(LargeHead{});
  else if (dim <= kLongest<Short>)
    launch(Short{});
  else if (dim <= kLongest<Narrow>)
    launch(Narrow{});
  else if (dim <= kLongest<Middle>)
    launch(Middle{});
  else if (dim <= kLongest<Wide>)
    launch(Wide{});
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

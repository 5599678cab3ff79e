// What the attention kernels share: tiles of rows in shared memory, who may see whom, scores.
//
// Heads of D <= kDim elements are padded with zeros in shared memory, so kDim is 64, 128 or 256.
// The tile's rows are kDim elements without a gap; their 16-byte chunks are stored at chunk ^ (row
// % 8), so that the eight rows of a matrix load lie in different banks.
#pragma once

#include "kernels/cuda/mma.h"

namespace nibble::kernels::NIBBLE_CUDA {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// Token i sees documents' rows First(i) .. i; token i is seen by i .. End(i) - 1. Both grow with i. Rows fit
// into an int: the starts do. The document of a row is that with the last start not behind it, so of
// documents that share a start because they are empty the last.
struct Visibility {
  const int32_t* starts;
  int documents;
  int window;  // 0 = none

  // The document of a row that all lanes of the warp ask for together: thirty-two probes at a time, as each
  // is a way to memory and back.
  __device__ __forceinline__ int DocumentForWarp(int row) const {
    int low = 0, high = documents;  // starts[low] <= row < starts[high]
    while (high - low > 1) {
      const int step = CeilDiv(high - low, 33), at = low + (static_cast<int>(threadIdx.x % 32) + 1) * step;
      const int behind = __popc(__ballot_sync(kAllLanes, at < high && starts[at] <= row));
      low += behind * step;
      high = Min(high, low + step);
    }
    return low;
  }
  // The document of a row, which is not before that of an earlier row.
  __device__ __forceinline__ int Document(int row, int earlier) const {
    int low = earlier, high = documents;
    if (starts[low + 1] > row) return low;  // most often
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (starts[middle] <= row)
        low = middle;
      else
        high = middle;
    }
    return low;
  }
  __device__ __forceinline__ int First(int row, int document) const {
    const int start = starts[document];
    return window > 0 ? Max(start, row - window + 1) : start;
  }
  __device__ __forceinline__ int End(int row, int document) const {
    const int end = starts[document + 1];
    return window > 0 ? Min(end, row + window) : end;
  }
};

inline Visibility VisibilityOf(const AttentionArgs& args) {
  // A window of m or more is none.
  return {args.starts, static_cast<int>(args.documents),
          args.window < args.m ? static_cast<int>(args.window) : 0};
}

// 2^x, to about two units in the last place; tiny results are zero.
__device__ __forceinline__ float FastExp2(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

// How a product q k becomes a score, in units of log 2, and how its gradient comes back.
struct Scoring {
  float scale;             // of the product
  float factor;            // without a cap: score = factor * product
  float inner;             // with one: score = outer * tanh(product * scale / cap); 2 log2(e) scale / cap
  float outer, one_outer;  // cap * log2(e), 0 = no cap; and 1 / that

  __device__ __forceinline__ bool capped() const { return outer != 0; }
  // With a cap.
  __device__ __forceinline__ float Score(float product) const {
    // tanh x = 1 - 2 / (exp(2x) + 1): off by 1e-7 absolutely, which is enough for what is exponentiated.
    return outer * (1.0f - __fdividef(2.0f, FastExp2(product * inner) + 1.0f));
  }
  // d score / d (scale * product), from the score, with a cap.
  __device__ __forceinline__ float Slope(float score) const {
    const float t = score * one_outer;
    return fmaf(-t, t, 1.0f);
  }
};

inline Scoring ScoringOf(const AttentionArgs& args) {
  const float cap = args.soft_cap;
  if (cap <= 0) return {args.scale, args.scale * kLog2E, 0, 0, 0};
  return {args.scale, 0, 2 * kLog2E * args.scale / cap, cap * kLog2E, 1 / (cap * kLog2E)};
}

template <int kDim>
__device__ __forceinline__ int TileAt(int row, int column) {
  return row * kDim + ((column / 8) ^ (row & 7)) * 8;
}

// Rows row0 .. of one head into a tile of kRows; `rows` and `dim` say what exists. kAt(row, column) is where
// a chunk of eight elements lies.
template <int kRows, int kDim, int kThreads, int (*kAt)(int, int) = TileAt<kDim>, typename Act>
__device__ __forceinline__ void LoadRows(AsyncCopies* copies, Act* tile, const Act* head, int stride,
                                         int row0, int rows, int dim, bool vector) {
  constexpr int kChunks = kDim / 8;
  if (vector) {
    // A thread has the same columns of every so many rows. Where nothing exists the address stays inside the
    // array.
    static_assert(kThreads % kChunks == 0 && kRows * kChunks % kThreads == 0);
    const int thread = static_cast<int>(threadIdx.x), r0 = thread / kChunks, c = thread % kChunks * 8;
    const auto* from = reinterpret_cast<const char*>(head + (c < dim ? c : 0));
    const auto row_bytes = static_cast<unsigned>(stride) * 2;
#pragma unroll
    for (int r = r0; r < r0 + kRows; r += kThreads / kChunks) {
      const int row = row0 + r;
      copies->Copy16OrZeros(tile + kAt(r, c),
                            from + uint64_t{static_cast<unsigned>(Min(row, rows - 1))} * row_bytes,
                            row < rows && c < dim);
    }
    return;
  }
  const Act* first = head + static_cast<int64_t>(row0) * stride;
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x); at < kRows * kDim; at += kThreads) {
    const int r = at / kDim, c = at % kDim;
    const bool inside = row0 + r < rows && c < dim;
    tile[kAt(r, c) + c % 8] = inside ? first[static_cast<int64_t>(r) * stride + c] : Act{0};
  }
}

// Fragments of such tiles; see mma.h.
template <int kDim, typename Act>
__device__ __forceinline__ void TileA(uint32_t* a, const Act* tile, int row, int column) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  LoadMatrices<false>(a, tile + TileAt<kDim>(row + lane % 16, column + lane / 16 * 8));
}
// B = tile^T: the tile's rows are the product's columns.
template <int kDim, typename Act>
__device__ __forceinline__ void TileB(uint32_t* b, const Act* tile, int row, int column) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  LoadMatrices<false>(b, tile + TileAt<kDim>(row + lane / 16 * 8 + lane % 8, column + lane / 8 % 2 * 8));
}
// B = tile: its rows are the product's depth.
template <int kDim, typename Act>
__device__ __forceinline__ void TileBRows(uint32_t* b, const Act* tile, int row, int column) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  LoadMatrices<true>(b, tile + TileAt<kDim>(row + lane % 16, column + lane / 16 * 8));
}

// What a warp's product left in two neighbouring accumulators as an A fragment of the next product.
template <typename Act>
__device__ __forceinline__ void AccumulatorsAsA(uint32_t* a, const float* left, const float* right) {
  a[0] = ActType<Act>::Pack(left[0], left[1]);
  a[1] = ActType<Act>::Pack(left[2], left[3]);
  a[2] = ActType<Act>::Pack(right[0], right[1]);
  a[3] = ActType<Act>::Pack(right[2], right[3]);
}

// sums += A tile, for kTiles times 16 rows and the columns of the tile from column0; left(a, i, depth) gives
// a fragment of A, of rows 16 i .. and columns depth .. .
template <int kDim, int kDepth, int kTiles, int kBlocks, typename Act, typename Left>
__device__ __forceinline__ void AddProduct(float (&sums)[kTiles][kBlocks][4], const Act* tile, int column0,
                                           const Left& left) {
#pragma unroll
  for (int depth = 0; depth < kDepth; depth += 16) {
    uint32_t a[kTiles][4];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) left(a[i], i, depth);
#pragma unroll
    for (int column = 0; column < 8 * kBlocks; column += 16) {
      uint32_t b[4];
      TileBRows<kDim>(b, tile, depth, column0 + column);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        Mma<Act>(sums[i][column / 8], a[i], b);
        Mma<Act>(sums[i][column / 8 + 1], a[i], b + 2);
      }
    }
  }
}
// The same where A is what a warp's products left in accumulators.
template <int kDim, int kTiles, int kBlocks, int kDepths, typename Act>
__device__ __forceinline__ void AddProduct(float (&sums)[kTiles][kBlocks][4],
                                           const float (&weights)[kTiles][kDepths][4], const Act* tile,
                                           int column0) {
  AddProduct<kDim, 8 * kDepths>(sums, tile, column0, [&](uint32_t* a, int i, int depth) {
    AccumulatorsAsA<Act>(a, weights[i][depth / 8], weights[i][depth / 8 + 1]);
  });
}

// Over the four lanes that hold a row of an accumulator.
__device__ __forceinline__ float QuadMax(float value) {
  value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, 1));
  return fmaxf(value, __shfl_xor_sync(kAllLanes, value, 2));
}
__device__ __forceinline__ float QuadSum(float value) {
  value += __shfl_xor_sync(kAllLanes, value, 1);
  return value + __shfl_xor_sync(kAllLanes, value, 2);
}

// Writes a warp's 16 x (8 blocks) accumulators, times factor[row half], to rows row0 .. of one
// head.
template <int kBlocks, typename Act>
__device__ __forceinline__ void StoreRows(Act* head, int stride, int row0, int rows, int column0, int dim,
                                          const float (&sums)[kBlocks][4], const float (&factor)[2]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const bool pairs = dim % 2 == 0 && stride % 2 == 0 && reinterpret_cast<uintptr_t>(head) % 4 == 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = row0 + lane / 4 + 8 * half;
    if (row >= rows) continue;
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
      const int column = column0 + 8 * j + lane % 4 * 2;
      const float left = sums[j][2 * half] * factor[half], right = sums[j][2 * half + 1] * factor[half];
      Act* at = head + static_cast<int64_t>(row) * stride + column;
      if (pairs && column < dim) {
        *reinterpret_cast<uint32_t*>(at) = ActType<Act>::Pack(left, right);
      } else {
        if (column < dim) Put(at, left);
        if (column + 1 < dim) Put(at + 1, right);
      }
    }
  }
}

// The host's side of all of them.
inline void CheckAttention(const AttentionArgs& args) {
  KERNEL_CHECK(args.heads > 0 && args.kv_heads > 0 && args.heads % args.kv_heads == 0);
  KERNEL_CHECK(args.head_dim > 0 && args.head_dim <= 256);
  KERNEL_CHECK(args.m < (int64_t{1} << 31) - 256);
  KERNEL_CHECK(args.scale > 0);
}

// Kernels with 32 rows to a warp are not compiled for 7.5, which has no room for them.
constexpr bool kCompilesLarge =
#if defined(__CUDA_ARCH__)
    __CUDA_ARCH__ >= 800;
#else
    true;
#endif

// Whether such a kernel is there and two of its blocks run on one of the device's processors at a time, so
// that one multiplies while the other waits: those of 8.0 have 164 KiB, 8.6 and 8.9 100, 9.0 and 10.0 228. In
// the emulation bf16 stands for 9.0 and fp16 for 7.5.
template <auto kKernel, typename Act>
bool TwoBlocksFit(int64_t shared_bytes) {
  int processor_bytes = ActType<Act>::kType == DType::kBF16 ? 228 << 10 : 64 << 10;
#if defined(__CUDACC__)
  // A later device may run what the driver made of the code for 7.5.
  static const int compiled_for = [] {
    cudaFuncAttributes of{};
    return cudaFuncGetAttributes(&of, kKernel) == cudaSuccess ? of.ptxVersion : 0;
  }();
  int device = 0;
  if (compiled_for < 80 || cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&processor_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device) !=
          cudaSuccess)
    return false;
#endif
  return 2 * (shared_bytes + 1024) <= processor_bytes;  // the system takes a KiB of each
}

// Calls run(std::integral_constant<int, the padded head size>).
template <typename F>
void WithPaddedDim(int64_t head_dim, const F& run) {
  if (head_dim <= 64)
    run(std::integral_constant<int, 64>());
  else if (head_dim <= 128)
    run(std::integral_constant<int, 128>());
  else
    run(std::integral_constant<int, 256>());
}

}  // namespace nibble::kernels::NIBBLE_CUDA

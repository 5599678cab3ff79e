#include "kernels/counter.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/mma.h"

namespace nibble::kernels::NIBBLE_CUDA {
namespace {

constexpr int kThreads = 128, kDepth = 32, kStages = 3;
constexpr int kRows = static_cast<int>(kGemmRows);

// Rows in shared memory are 8 elements longer than the tile, so that the eight rows of a matrix
// load start in different banks.
template <int kTile, bool kTransposed>
struct OperandTile {
  static constexpr int kStride = (kTransposed ? kTile : kDepth) + 8;
  static constexpr int kElements = (kTransposed ? kDepth : kTile) * kStride;
};

template <int kTile, bool kTransposed, typename Act>
__device__ __forceinline__ void LoadOperand(AsyncCopies* copies, Act* tile, const GemmOperand& operand,
                                            int64_t row0, int64_t rows, int64_t depth0, int64_t depth,
                                            bool vector) {
  constexpr int kStride = OperandTile<kTile, kTransposed>::kStride;
  const Act* data = static_cast<const Act*>(operand.data);
  if constexpr (kTransposed)
    LoadTile<kDepth, kTile, kStride, kThreads>(copies, tile, data, operand.stride, depth0, depth, row0, rows,
                                               vector);
  else
    LoadTile<kTile, kDepth, kStride, kThreads>(copies, tile, data, operand.stride, row0, rows, depth0, depth,
                                               vector);
}

__device__ __forceinline__ uint64_t KeyOf(const DropoutKey& dropout) {
  const uint64_t late = dropout.late_stream != nullptr ? *dropout.late_stream : 0;
  return CounterKey(dropout.seed, dropout.stream | late);
}

// Each thread masks the chunks that it copied itself, so no barrier is needed before.
template <bool kTransposed, typename Act>
__device__ __forceinline__ void MaskOperand(Act* tile, const DropoutKey& dropout, int64_t stride,
                                            int64_t row0, int64_t depth0) {
  constexpr int kStride = OperandTile<kRows, kTransposed>::kStride;
  constexpr int kTileRows = kTransposed ? kDepth : kRows, kChunks = (kTransposed ? kRows : kDepth) / 8;
  const int64_t first_row = kTransposed ? depth0 : row0, first_column = kTransposed ? row0 : depth0;
  const uint64_t key = KeyOf(dropout);
  for (int chunk = static_cast<int>(threadIdx.x); chunk < kTileRows * kChunks; chunk += kThreads) {
    const int r = chunk / kChunks, c = chunk % kChunks * 8;
    const auto index = static_cast<uint64_t>((first_row + r) * stride + first_column + c);
    Act* at = tile + r * kStride + c;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (!CounterKeepOf(key, index + static_cast<uint64_t>(i), dropout.p)) at[i] = Act{0};
  }
}

// The product of one tile's depth: a warp has 32 rows and all columns.
template <int kColumns, bool kATransposed, bool kBTransposed, typename Act>
__device__ __forceinline__ void MultiplyStage(float (&sums)[2][kColumns / 8][4], const Act* a_tile,
                                              const Act* b_tile) {
  constexpr int kAStride = OperandTile<kRows, kATransposed>::kStride;
  constexpr int kBStride = OperandTile<kColumns, kBTransposed>::kStride;
  const int row = static_cast<int>(threadIdx.x) / 32 * 32;
#pragma unroll
  for (int depth = 0; depth < kDepth; depth += 16) {
    uint32_t a[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (kATransposed)
        LoadATransposed<kAStride>(a[i], a_tile + depth * kAStride + row + 16 * i);
      else
        LoadA<kAStride>(a[i], a_tile + (row + 16 * i) * kAStride + depth);
    }
#pragma unroll
    for (int column = 0; column < kColumns; column += 16) {
      uint32_t b[4];
      if constexpr (kBTransposed)
        LoadBTransposed<kBStride>(b, b_tile + depth * kBStride + column);
      else
        LoadB<kBStride>(b, b_tile + column * kBStride + depth);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        Mma<Act>(sums[i][column / 8], a[i], b);
        Mma<Act>(sums[i][column / 8 + 1], a[i], b + 2);
      }
    }
  }
}

// The tile's sums go through shared memory, so that rows are written sixteen bytes at a time.
template <int kColumns, typename Act>
__device__ __forceinline__ void WriteTile(const GemmArgs& args, const float (&sums)[2][kColumns / 8][4],
                                          float* staged, int64_t row0, int64_t column0, bool vector) {
  constexpr int kStride = kColumns + 4;
  const int lane = static_cast<int>(threadIdx.x % 32), warp_row = static_cast<int>(threadIdx.x) / 32 * 32;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        staged[(warp_row + 16 * i + lane / 4 + e / 2 * 8) * kStride + 8 * j + lane % 4 * 2 + e % 2] =
            sums[i][j][e];
    }
  }
  __syncthreads();
  constexpr int kChunks = kColumns / 8;
  const uint64_t key = args.c_dropout.p > 0 ? KeyOf(args.c_dropout) : 0;
  const float keep_scale = args.c_dropout.p > 0 ? 1.0f / (1.0f - args.c_dropout.p) : 1.0f;
  for (int chunk = static_cast<int>(threadIdx.x); chunk < kRows * kChunks; chunk += kThreads) {
    const int64_t row = row0 + chunk / kChunks, column = column0 + chunk % kChunks * 8;
    const int64_t left = row < args.m ? args.n - column : 0;
    if (left <= 0) continue;
    float values[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = staged[chunk / kChunks * kStride + chunk % kChunks * 8 + i];
    if (args.partial != nullptr) {
      float* to = args.partial + (static_cast<int64_t>(blockIdx.z) * args.m + row) * args.n + column;
      Store8(to, values, left, vector);
      continue;
    }
    const int64_t at = row * args.c_stride + column;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      values[i] *= args.alpha;
      if (args.c_dropout.p > 0)
        values[i] = CounterKeepOf(key, static_cast<uint64_t>(at + i), args.c_dropout.p)
                        ? values[i] * keep_scale
                        : 0.0f;
    }
    if (args.bias.data != nullptr) {
      float bias[8];
      LoadParam8(bias, args.bias, column, left, false);
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] += bias[i];
    }
    float old[8] = {};
    if (args.accumulate) {
      if (args.c_float)
        Load8(old, static_cast<const float*>(args.c) + at, left, vector);
      else
        Load8(old, static_cast<const Act*>(args.c) + at, left, vector);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] += old[i];
    if (args.c_float)
      Store8(static_cast<float*>(args.c) + at, values, left, vector);
    else
      Store8(static_cast<Act*>(args.c) + at, values, left, vector);
  }
}

struct Vectors {
  bool a, b, c;  // sixteen-byte accesses
};

template <int kColumns, bool kATransposed, bool kBTransposed>
constexpr int64_t SharedBytes() {
  constexpr int64_t kOperands =
      2 * kStages *
      (OperandTile<kRows, kATransposed>::kElements + OperandTile<kColumns, kBTransposed>::kElements);
  constexpr int64_t kStaged = 4 * kRows * (kColumns + 4);
  return Max(kOperands, kStaged);
}

template <int kColumns, bool kATransposed, bool kBTransposed, typename Act>
__global__ void __launch_bounds__(kThreads) GemmKernel(GemmArgs args, Vectors vectors) {
  constexpr int kATile = OperandTile<kRows, kATransposed>::kElements;
  constexpr int kBTile = OperandTile<kColumns, kBTransposed>::kElements;
  Act* a_tiles = DynamicShared<Act>();
  Act* b_tiles = a_tiles + kStages * kATile;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * kRows,
                column0 = static_cast<int64_t>(blockIdx.y) * kColumns;
  // Depth in whole tiles, shared out over the splits.
  const int64_t tiles = CeilDiv<int64_t>(args.k, kDepth), each = CeilDiv(tiles, args.splits);
  const int64_t first = each * blockIdx.z, count = Max<int64_t>(0, Min(each, tiles - first));
  AsyncCopies copies;
  const auto load = [&](int64_t tile) {
    if (tile < count) {
      const int stage = static_cast<int>(tile % kStages);
      const int64_t depth = (first + tile) * kDepth;
      LoadOperand<kRows, kATransposed>(&copies, a_tiles + stage * kATile, args.a, row0, args.m, depth, args.k,
                                       vectors.a);
      LoadOperand<kColumns, kBTransposed>(&copies, b_tiles + stage * kBTile, args.b, column0, args.n, depth,
                                          args.k, vectors.b);
    }
    copies.Commit();
  };
  float sums[2][kColumns / 8][4] = {};
  for (int64_t tile = 0; tile < kStages - 1; ++tile) load(tile);
  for (int64_t tile = 0; tile < count; ++tile) {
    const int stage = static_cast<int>(tile % kStages);
    copies.Wait<kStages - 2>();
    if (args.a_dropout.p > 0)
      MaskOperand<kATransposed>(a_tiles + stage * kATile, args.a_dropout, args.a.stride, row0,
                                (first + tile) * kDepth);
    __syncthreads();  // this stage is there for all, and the one before has been read by all
    load(tile + kStages - 1);
    MultiplyStage<kColumns, kATransposed, kBTransposed>(sums, a_tiles + stage * kATile,
                                                        b_tiles + stage * kBTile);
  }
  copies.Wait<0>();
  __syncthreads();
  WriteTile<kColumns, Act>(args, sums, DynamicShared<float>(), row0, column0, vectors.c);
}

template <int kColumns, bool kATransposed, bool kBTransposed, typename Act>
void Start(Context* ctx, const GemmArgs& args) {
  const auto vector = [](const GemmOperand& operand) {
    return Aligned(static_cast<const char*>(operand.data)) && operand.stride % 8 == 0;
  };
  Vectors vectors{vector(args.a), vector(args.b), false};
  if (args.partial != nullptr)
    vectors.c = Aligned(args.partial) && args.n % 4 == 0;
  else
    vectors.c = Aligned(static_cast<const char*>(args.c)) && args.c_stride % 8 == 0;
  const dim3 grid(static_cast<unsigned>(CeilDiv(args.m, kGemmRows)),
                  static_cast<unsigned>(CeilDiv<int64_t>(args.n, kColumns)),
                  static_cast<unsigned>(args.splits));
  Launch(ctx, grid, kThreads, SharedBytes<kColumns, kATransposed, kBTransposed>(),
         GemmKernel<kColumns, kATransposed, kBTransposed, Act>, args, vectors);
}

template <int kColumns, typename Act>
void StartLayout(Context* ctx, const GemmArgs& args) {
  if (args.a.transposed)
    Start<kColumns, true, true, Act>(ctx, args);
  else if (args.b.transposed)
    Start<kColumns, false, true, Act>(ctx, args);
  else
    Start<kColumns, false, false, Act>(ctx, args);
}

__device__ __forceinline__ float SumInOrder(const float* partial, int64_t splits, int64_t count, int64_t at) {
  float sum = 0;
  for (int64_t split = 0; split < splits; ++split) sum += partial[split * count + at];
  return sum;
}

template <typename Act>
__global__ void __launch_bounds__(256)
    SumKernel(Act* out, const float* partial, int64_t splits, int64_t count, float alpha) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (at < count) Put(out + at, alpha * SumInOrder(partial, splits, count, at));
}

__global__ void __launch_bounds__(256)
    AddKernel(float* out, const float* partial, int64_t splits, int64_t rows, int64_t columns, float alpha,
              bool transposed) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (at >= rows * columns) return;
  // Consecutive threads write consecutive elements of `out`.
  const int64_t from = transposed ? at % rows * columns + at / rows : at;
  out[at] += alpha * SumInOrder(partial, splits, rows * columns, from);
}

}  // namespace

template <typename Act>
void Gemm(Context* ctx, const GemmArgs& args) {
  KERNEL_CHECK(args.b.transposed || !args.a.transposed);
  KERNEL_CHECK(args.splits >= 1 && (args.splits == 1 || args.partial != nullptr));
  if (GemmColumns(args.n) == 16)
    StartLayout<16, Act>(ctx, args);
  else
    StartLayout<64, Act>(ctx, args);
}

template <typename Act>
void SumPartials(Context* ctx, void* out, const float* partial, int64_t splits, int64_t count, float alpha) {
  Launch(ctx, Blocks(count, 256), 256, 0, SumKernel<Act>, static_cast<Act*>(out), partial, splits, count,
         alpha);
}

void AddPartials(Context* ctx, float* out, const float* partial, int64_t splits, int64_t rows,
                 int64_t columns, float alpha, bool transposed) {
  Launch(ctx, Blocks(rows * columns, 256), 256, 0, AddKernel, out, partial, splits, rows, columns, alpha,
         transposed);
}

template void Gemm<BF16>(Context*, const GemmArgs&);
template void Gemm<FP16>(Context*, const GemmArgs&);
template void SumPartials<BF16>(Context*, void*, const float*, int64_t, int64_t, float);
template void SumPartials<FP16>(Context*, void*, const float*, int64_t, int64_t, float);

}  // namespace nibble::kernels::NIBBLE_CUDA

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

// Each thread masks the chunks that it copied itself, so no barrier is needed before. `key` is in shared
// memory: two registers more are what the widest kernel does not have.
template <bool kTransposed, typename Act>
__device__ __forceinline__ void MaskOperand(Act* tile, const uint64_t* shared_key, float p, int64_t stride,
                                            int64_t row0, int64_t depth0) {
  constexpr int kStride = OperandTile<kRows, kTransposed>::kStride;
  constexpr int kTileRows = kTransposed ? kDepth : kRows, kChunks = (kTransposed ? kRows : kDepth) / 8;
  const int64_t first_row = kTransposed ? depth0 : row0, first_column = kTransposed ? row0 : depth0;
  const uint64_t key = *shared_key;
  for (int chunk = static_cast<int>(threadIdx.x); chunk < kTileRows * kChunks; chunk += kThreads) {
    const int r = chunk / kChunks, c = chunk % kChunks * 8;
    const auto index = static_cast<uint64_t>((first_row + r) * stride + first_column + c);
    Act* at = tile + r * kStride + c;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (!CounterKeepOf(key, index + static_cast<uint64_t>(i), p)) at[i] = Act{0};
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
    for (int i = 0; i < 8; ++i) values[i] *= args.alpha;
    if (args.bias.data != nullptr) {
      float bias[8];
      LoadParam8(bias, args.bias, column, left, false);
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] += bias[i];
    }
    float old[8] = {};
    if (args.add != nullptr) {
      const int64_t from = row * args.add_stride + column;
      if (args.c_float)
        Load8(old, static_cast<const float*>(args.add) + from, left, vector);
      else
        Load8(old, static_cast<const Act*>(args.add) + from, left, vector);
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

// What a launch is given.
struct Batch {
  GemmArgs of[kMostGrouped];
  Vectors vectors[kMostGrouped];
  unsigned count;
};

template <int kColumns, bool kATransposed, bool kBTransposed>
constexpr int64_t SharedBytes() {
  constexpr int64_t kOperands =
      2 * kStages *
      (OperandTile<kRows, kATransposed>::kElements + OperandTile<kColumns, kBTransposed>::kElements);
  constexpr int64_t kStaged = 4 * kRows * (kColumns + 4);
  return Max(kOperands, kStaged);
}

// blockIdx.x is a row of tiles and, changing first, which product; y a column of tiles, z a split.
template <int kColumns, bool kATransposed, bool kBTransposed, typename Act>
__global__ void __launch_bounds__(kThreads) GemmKernel(const __grid_constant__ Batch batch) {
  constexpr int kATile = OperandTile<kRows, kATransposed>::kElements;
  constexpr int kBTile = OperandTile<kColumns, kBTransposed>::kElements;
  __shared__ uint64_t key;
  Act* a_tiles = DynamicShared<Act>();
  Act* b_tiles = a_tiles + kStages * kATile;
  const unsigned which = blockIdx.x % batch.count;
  const GemmArgs& args = batch.of[which];
  const Vectors vectors = batch.vectors[which];
  const int64_t row0 = static_cast<int64_t>(blockIdx.x / batch.count) * kRows,
                column0 = static_cast<int64_t>(blockIdx.y) * kColumns;
  if (row0 >= args.m || column0 >= args.n || blockIdx.z >= args.splits) return;
  if (args.a_dropout.p > 0) {
    if (threadIdx.x == 0) key = KeyOf(args.a_dropout);
    __syncthreads();
  }
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
      MaskOperand<kATransposed>(a_tiles + stage * kATile, &key, args.a_dropout.p, args.a.stride, row0,
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

bool VectorOperand(const GemmOperand& operand) {
  return Aligned(static_cast<const char*>(operand.data)) && operand.stride % 8 == 0;
}
bool VectorResult(const GemmArgs& args) {
  if (args.partial != nullptr) return Aligned(args.partial) && args.n % 4 == 0;
  return Aligned(static_cast<const char*>(args.c)) && args.c_stride % 8 == 0 &&
         (args.add == nullptr ||
          (Aligned(static_cast<const char*>(args.add)) && args.add_stride % 8 == 0));
}

template <int kColumns, bool kATransposed, bool kBTransposed, typename Act>
void Start(Context* ctx, const GemmArgs* products, int count) {
  Batch batch{};
  batch.count = static_cast<unsigned>(count);
  dim3 grid(0, 0, 0);
  for (int i = 0; i < count; ++i) {
    const GemmArgs& args = products[i];
    batch.of[i] = args;
    batch.vectors[i] = {VectorOperand(args.a), VectorOperand(args.b), VectorResult(args)};
    grid.x = Max(grid.x, batch.count * Blocks(args.m, kGemmRows));
    grid.y = Max(grid.y, Blocks(args.n, kColumns));
    grid.z = Max(grid.z, static_cast<unsigned>(args.splits));
  }
  Launch(ctx, grid, kThreads, SharedBytes<kColumns, kATransposed, kBTransposed>(),
         GemmKernel<kColumns, kATransposed, kBTransposed, Act>, batch);
}

template <int kColumns, typename Act>
void StartLayout(Context* ctx, const GemmArgs* products, int count) {
  if (products->a.transposed)
    Start<kColumns, true, true, Act>(ctx, products, count);
  else if (products->b.transposed)
    Start<kColumns, false, true, Act>(ctx, products, count);
  else
    Start<kColumns, false, false, Act>(ctx, products, count);
}

struct Terms {
  GemmTerm of[kMostGrouped];
  bool vector_a[kMostGrouped], vector_b[kMostGrouped];
  int count;
  GemmArgs out;
  bool vector;
};

// The sums of a term are masked in registers before they join the others.
template <typename Act>
__global__ void __launch_bounds__(kThreads) TermsKernel(const __grid_constant__ Terms terms) {
  constexpr int kColumns = 64;
  constexpr int kATile = OperandTile<kRows, false>::kElements;
  constexpr int kBTile = OperandTile<kColumns, true>::kElements;
  Act* a_tiles = DynamicShared<Act>();
  Act* b_tiles = a_tiles + kStages * kATile;
  const GemmArgs& out = terms.out;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * kRows,
                column0 = static_cast<int64_t>(blockIdx.y) * kColumns;
  AsyncCopies copies;
  // What is loaded next: tiles of the terms, one term behind the other.
  int load_term = 0, load_stage = 0;
  int64_t load_depth = 0;
  const auto load = [&] {
    if (load_term < terms.count) {
      const GemmTerm& term = terms.of[load_term];
      LoadOperand<kRows, false>(&copies, a_tiles + load_stage * kATile, {term.a, term.k, false}, row0, out.m,
                                load_depth, term.k, terms.vector_a[load_term]);
      LoadOperand<kColumns, true>(&copies, b_tiles + load_stage * kBTile, {term.b, out.n, true}, column0,
                                  out.n, load_depth, term.k, terms.vector_b[load_term]);
      load_stage = load_stage + 1 < kStages ? load_stage + 1 : 0;
      load_depth += kDepth;
      if (load_depth >= term.k) load_depth = 0, ++load_term;
    }
    copies.Commit();
  };
  float sums[2][kColumns / 8][4] = {};
  for (int tile = 0; tile < kStages - 1; ++tile) load();
  int stage = 0;
#pragma unroll 1
  for (int i = 0; i < terms.count; ++i) {
    const GemmTerm& term = terms.of[i];
    float part[2][kColumns / 8][4] = {};
#pragma unroll 1
    for (int64_t depth = 0; depth < term.k; depth += kDepth) {
      copies.Wait<kStages - 2>();
      __syncthreads();  // as in GemmKernel
      load();
      MultiplyStage<kColumns, false, true>(part, a_tiles + stage * kATile, b_tiles + stage * kBTile);
      stage = stage + 1 < kStages ? stage + 1 : 0;
    }
    const uint64_t key = term.dropout.p > 0 ? KeyOf(term.dropout) : 0;
    const float p = term.dropout.p, keep_scale = p > 0 ? 1.0f / (1.0f - p) : 1.0f;
    const int lane = static_cast<int>(threadIdx.x % 32), warp_row = static_cast<int>(threadIdx.x) / 32 * 32;
#pragma unroll
    for (int block = 0; block < 2; ++block) {
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int64_t row = row0 + warp_row + 16 * block + lane / 4 + e / 2 * 8;
          const int64_t column = column0 + 8 * j + lane % 4 * 2 + e % 2;
          float value = term.alpha * part[block][j][e];
          if (p > 0)
            value = CounterKeepOf(key, static_cast<uint64_t>(row * out.n + column), p) ? value * keep_scale
                                                                                        : 0.0f;
          sums[block][j][e] += value;
        }
      }
    }
  }
  copies.Wait<0>();
  __syncthreads();
  WriteTile<kColumns, Act>(out, sums, DynamicShared<float>(), row0, column0, terms.vector);
}

__device__ __forceinline__ float SumInOrder(const float* partial, int64_t splits, int64_t count, int64_t at) {
  float sum = 0;
  for (int64_t split = 0; split < splits; ++split) sum += partial[split * count + at];
  return sum;
}

struct SumsBatch {
  PartialSums of[2 * kMostGrouped];
};

// blockIdx.y is which.
template <typename Act>
__global__ void __launch_bounds__(256) SumKernel(const __grid_constant__ SumsBatch batch) {
  const PartialSums& sums = batch.of[blockIdx.y];
  const int64_t at = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x, count = sums.rows * sums.columns;
  if (at < count)
    Put(static_cast<Act*>(sums.out) + at, sums.alpha * SumInOrder(sums.partial, sums.splits, count, at));
}

__global__ void __launch_bounds__(256) AddKernel(const __grid_constant__ SumsBatch batch) {
  const PartialSums& sums = batch.of[blockIdx.y];
  const int64_t at = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x, count = sums.rows * sums.columns;
  if (at >= count) return;
  // Consecutive threads write consecutive elements of `out`.
  const int64_t from = sums.transposed ? at % sums.rows * sums.columns + at / sums.rows : at;
  static_cast<float*>(sums.out)[at] += sums.alpha * SumInOrder(sums.partial, sums.splits, count, from);
}

void StartSums(Context* ctx, void (*kernel)(SumsBatch), const PartialSums* sums, int count) {
  KERNEL_CHECK(count <= 2 * kMostGrouped);
  SumsBatch batch{};
  dim3 grid(0, static_cast<unsigned>(count));
  for (int i = 0; i < count; ++i) {
    batch.of[i] = sums[i];
    grid.x = Max(grid.x, Blocks(sums[i].rows * sums[i].columns, 256));
  }
  Launch(ctx, grid, 256, 0, kernel, batch);
}

}  // namespace

template <typename Act>
void Gemm(Context* ctx, const GemmArgs* products, int count) {
  KERNEL_CHECK(count <= kMostGrouped);
  bool one_kind = true;
  for (int i = 0; i < count; ++i) {
    const GemmArgs& args = products[i];
    KERNEL_CHECK(args.b.transposed || !args.a.transposed);
    KERNEL_CHECK(args.splits >= 1 && (args.splits == 1 || args.partial != nullptr));
    KERNEL_CHECK(args.a.transposed == products->a.transposed && args.b.transposed == products->b.transposed);
    one_kind = one_kind && GemmColumns(args.n) == GemmColumns(products->n);
  }
  const int each = one_kind ? count : 1;
  for (int i = 0; i < count; i += each) {
    if (GemmColumns(products[i].n) == 16)
      StartLayout<16, Act>(ctx, products + i, each);
    else
      StartLayout<64, Act>(ctx, products + i, each);
  }
}

template <typename Act>
void GemmTerms(Context* ctx, const GemmArgs& out, const GemmTerm* of, int count) {
  KERNEL_CHECK(count <= kMostGrouped && !out.c_float && out.c_stride == out.n);
  Terms terms{};
  terms.count = count;
  terms.out = out;
  terms.vector = VectorResult(out);
  for (int i = 0; i < count; ++i) {
    KERNEL_CHECK(of[i].k > 0);
    terms.of[i] = of[i];
    terms.vector_a[i] = VectorOperand({of[i].a, of[i].k, false});
    terms.vector_b[i] = VectorOperand({of[i].b, out.n, true});
  }
  Launch(ctx, dim3(Blocks(out.m, kGemmRows), Blocks(out.n, 64)), kThreads, SharedBytes<64, false, true>(),
         TermsKernel<Act>, terms);
}

template <typename Act>
void SumPartials(Context* ctx, const PartialSums* sums, int count) {
  StartSums(ctx, SumKernel<Act>, sums, count);
}

void AddPartials(Context* ctx, const PartialSums* sums, int count) { StartSums(ctx, AddKernel, sums, count); }

#define INSTANTIATE(Act)                                                          \
  template void Gemm<Act>(Context*, const GemmArgs*, int);                        \
  template void GemmTerms<Act>(Context*, const GemmArgs&, const GemmTerm*, int);  \
  template void SumPartials<Act>(Context*, const PartialSums*, int);
INSTANTIATE(BF16)
INSTANTIATE(FP16)
#undef INSTANTIATE

}  // namespace nibble::kernels::NIBBLE_CUDA

// attention_forward: a block has 64 queries of one head, a warp 16 of them, and goes over the keys
// they see a tile at a time with a running maximum and sum. Keys and values are copied while the
// other is multiplied.
#include "kernels/cuda/attention.h"
#include "kernels/cuda/ops.h"

namespace nibble::kernels::NIBBLE_CUDA {
namespace {

constexpr int kThreads = 128, kQueries = 64;

template <int kDim>
constexpr int kKeysOf = kDim <= 128 ? 64 : 32;

struct ForwardArgs {
  const void *q, *k, *v;
  void* out;
  float* lse;
  int m;
  int heads, group, head_dim;  // group: query heads of a key/value head
  Visibility visible;
  Scoring scoring;
  bool vector;
};

// Products of 16 rows of Q with a tile of keys. Q's fragments stay in registers up to 128 elements.
template <int kDim, int kKeys, typename Act>
__device__ __forceinline__ void Products(float (&scores)[kKeys / 8][4], const uint32_t (*q_kept)[4],
                                         const Act* q_tile, const Act* k_tile, int warp_row) {
#pragma unroll
  for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) scores[j][e] = 0;
#pragma unroll
  for (int column = 0; column < kDim; column += 16) {
    uint32_t loaded[4];
    if constexpr (kDim > 128) TileA<kDim>(loaded, q_tile, warp_row, column);
    const uint32_t* a = kDim > 128 ? loaded : q_kept[column / 16];
#pragma unroll
    for (int j = 0; j < kKeys; j += 16) {
      uint32_t b[4];
      TileB<kDim>(b, k_tile, j, column);
      Mma<Act>(scores[j / 8], a, b);
      Mma<Act>(scores[j / 8 + 1], a, b + 2);
    }
  }
}

template <int kDim, typename Act>
__global__ void __launch_bounds__(kThreads, kDim <= 64 ? 3 : 2) ForwardKernel(ForwardArgs args) {
  constexpr int kKeys = kKeysOf<kDim>;
  Act* q_tile = DynamicShared<Act>();
  Act* k_tile = q_tile + kQueries * kDim;
  Act* v_tile = k_tile + kKeys * kDim;
  const int lane = static_cast<int>(threadIdx.x % 32), warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
  const int head = static_cast<int>(blockIdx.y), dim = args.head_dim;
  const int q_stride = args.heads * dim, kv_stride = args.heads / args.group * dim;
  // The last queries see most: they begin first.
  const int row0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kQueries;
  const Act* q = static_cast<const Act*>(args.q) + head * dim;
  const Act* k = static_cast<const Act*>(args.k) + head / args.group * dim;
  const Act* v = static_cast<const Act*>(args.v) + head / args.group * dim;

  const int first_key = args.visible.First(row0), last_key = Min(row0 + kQueries, args.m) - 1;
  int rows[2], firsts[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    rows[half] = row0 + warp_row + lane / 4 + 8 * half;
    firsts[half] = args.visible.First(Min(rows[half], args.m - 1));
  }
  // From here on every key of a tile is seen by every query of the warp, up to the diagonal.
  const int all_seen = args.visible.First(Min(row0 + warp_row + 15, args.m - 1));

  AsyncCopies copies;
  LoadRows<kQueries, kDim, kThreads>(&copies, q_tile, q, q_stride, row0, args.m, dim, args.vector);
  LoadRows<kKeys, kDim, kThreads>(&copies, k_tile, k, kv_stride, first_key, args.m, dim, args.vector);
  copies.Commit();
  copies.Wait<0>();
  __syncthreads();
  uint32_t q_kept[kDim > 128 ? 1 : kDim / 16][4];
  if constexpr (kDim <= 128) {
#pragma unroll
    for (int column = 0; column < kDim; column += 16)
      TileA<kDim>(q_kept[column / 16], q_tile, warp_row, column);
  }

  float sums[kDim / 8][4] = {};
  float largest[2] = {-INFINITY, -INFINITY}, totals[2] = {0, 0};
  for (int key0 = first_key; key0 <= last_key; key0 += kKeys) {
    LoadRows<kKeys, kDim, kThreads>(&copies, v_tile, v, kv_stride, key0, args.m, dim, args.vector);
    copies.Commit();
    float scores[kKeys / 8][4];
    Products<kDim, kKeys>(scores, q_kept, q_tile, k_tile, warp_row);
    copies.Wait<0>();
    __syncthreads();  // the values are there for all, and all are through with the keys
    if (key0 + kKeys <= last_key)
      LoadRows<kKeys, kDim, kThreads>(&copies, k_tile, k, kv_stride, key0 + kKeys, args.m, dim, args.vector);
    copies.Commit();

    const bool whole = key0 >= all_seen && key0 + kKeys - 1 <= row0 + warp_row;
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[j][e] = args.scoring.Score(scores[j][e]);
    if (!whole) {
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int key = key0 + 8 * j + lane % 4 * 2 + e % 2;
          if (key > rows[e / 2] || key < firsts[e / 2]) scores[j][e] = -INFINITY;
        }
      }
    }
    float new_largest[2] = {largest[0], largest[1]};
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) new_largest[e / 2] = fmaxf(new_largest[e / 2], scores[j][e]);
    float base[2], shrink[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      new_largest[half] = QuadMax(new_largest[half]);
      base[half] =
          new_largest[half] == -INFINITY ? 0.0f : new_largest[half];  // a row that has seen nothing yet
      shrink[half] = FastExp2(largest[half] - base[half]);
      largest[half] = new_largest[half];
      totals[half] *= shrink[half];
    }
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        scores[j][e] = FastExp2(scores[j][e] - base[e / 2]);
        totals[e / 2] += scores[j][e];
      }
    }
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[j][e] *= shrink[e / 2];
#pragma unroll
    for (int depth = 0; depth < kKeys; depth += 16) {
      uint32_t a[4];
      AccumulatorsAsA<Act>(a, scores[depth / 8], scores[depth / 8 + 1]);
#pragma unroll
      for (int column = 0; column < kDim; column += 16) {
        uint32_t b[4];
        TileBRows<kDim>(b, v_tile, depth, column);
        Mma<Act>(sums[column / 8], a, b);
        Mma<Act>(sums[column / 8 + 1], a, b + 2);
      }
    }
    copies.Wait<0>();
    __syncthreads();  // the next keys are there for all, and all are through with the values
  }

  float factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    totals[half] = QuadSum(totals[half]);
    factor[half] = 1.0f / totals[half];
    if (lane % 4 == 0 && rows[half] < args.m)
      args.lse[static_cast<int64_t>(rows[half]) * args.heads + head] =
          kLn2 * (largest[half] + log2f(totals[half]));
  }
  StoreRows<kDim / 8>(static_cast<Act*>(args.out) + head * dim, q_stride, row0 + warp_row, args.m, 0, dim,
                      sums, factor);
}

}  // namespace

template <typename Act>
void AttentionForward(Context* ctx, void* out, void* lse, const void* q, const void* k, const void* v,
                      const AttentionArgs& args) {
  CheckAttention(args);
  ForwardArgs f;
  f.q = q;
  f.k = k;
  f.v = v;
  f.out = out;
  f.lse = static_cast<float*>(lse);
  f.m = static_cast<int>(args.m);
  f.heads = static_cast<int>(args.heads);
  f.group = static_cast<int>(args.heads / args.kv_heads);
  f.head_dim = static_cast<int>(args.head_dim);
  f.visible = VisibilityOf(args);
  f.scoring = ScoringOf(args);
  f.vector = args.head_dim % 8 == 0 &&
             Aligned(static_cast<const char*>(q), static_cast<const char*>(k), static_cast<const char*>(v));
  const dim3 grid(static_cast<unsigned>(CeilDiv<int64_t>(args.m, kQueries)),
                  static_cast<unsigned>(args.heads));
  WithPaddedDim(args.head_dim, [&](auto dim) {
    constexpr int kDim = decltype(dim)::value;
    Launch(ctx, grid, kThreads, 2 * kDim * (kQueries + 2 * kKeysOf<kDim>), ForwardKernel<kDim, Act>, f);
  });
}

template void AttentionForward<BF16>(Context*, void*, void*, const void*, const void*, const void*,
                                     const AttentionArgs&);
template void AttentionForward<FP16>(Context*, void*, void*, const void*, const void*, const void*,
                                     const AttentionArgs&);

}  // namespace nibble::kernels::NIBBLE_CUDA

// attention_forward: a block has 64 or 128 queries of one head, a warp 16 or 32 of them, and goes over the
// keys they see a tile at a time with a running maximum and sum. Keys and values are copied while the other
// is multiplied. With 32 queries to a warp what it reads of keys and values serves two products, and shared
// memory is what the tensor cores wait for; that takes registers and shared memory that not every device has.
#include "kernels/cuda/attention_forward.h"
#include "kernels/cuda/ops.h"

namespace nibble::kernels::NIBBLE_CUDA {
namespace {

constexpr int kThreads = 128;

template <int kTiles>
constexpr int kQueriesOf = kThreads / 2 * kTiles;
template <int kDim>
constexpr int kKeysOf = kDim <= 128 ? 64 : 32;
template <int kDim, int kTiles>
constexpr int kSharedOf = 2 * kDim * (kQueriesOf<kTiles> + 2 * kKeysOf<kDim>);

// Q's fragments stay in registers where these are enough.
template <int kDim, int kTiles>
constexpr bool kKeepsQ = kDim * kTiles <= 128;
template <int kDim, int kTiles>
using KeptQ = uint32_t[kKeepsQ<kDim, kTiles> ? kDim / 16 : 1][kTiles][4];

// Products of a warp's rows of Q with a tile of keys.
template <int kDim, int kTiles, int kKeys, typename Act>
__device__ __forceinline__ void Products(float (&scores)[kTiles][kKeys / 8][4],
                                         const KeptQ<kDim, kTiles>& q_kept, const Act* q_tile,
                                         const Act* k_tile, int warp_row) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[i][j][e] = 0;
#pragma unroll
  for (int column = 0; column < kDim; column += 16) {
    uint32_t loaded[kTiles][4];
    if constexpr (!kKeepsQ<kDim, kTiles>) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) TileA<kDim>(loaded[i], q_tile, warp_row + 16 * i, column);
    }
#pragma unroll
    for (int j = 0; j < kKeys; j += 16) {
      uint32_t b[4];
      TileB<kDim>(b, k_tile, j, column);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const uint32_t* a = kKeepsQ<kDim, kTiles> ? q_kept[column / 16][i] : loaded[i];
        Mma<Act>(scores[i][j / 8], a, b);
        Mma<Act>(scores[i][j / 8 + 1], a, b + 2);
      }
    }
  }
}

template <int kDim, int kTiles, typename Act>
__global__ void __launch_bounds__(kThreads, 2) ForwardKernel(ForwardArgs args) {
  if (kTiles > 1 && !kCompilesLarge) return;
  constexpr int kKeys = kKeysOf<kDim>, kQueries = kQueriesOf<kTiles>;
  Act* q_tile = DynamicShared<Act>();
  Act* k_tile = q_tile + kQueries * kDim;
  Act* v_tile = k_tile + kKeys * kDim;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16 * kTiles;
  const int head = static_cast<int>(blockIdx.y), dim = args.head_dim;
  const int q_stride = args.heads * dim, kv_stride = args.heads / args.group * dim;
  // The last queries see most: they begin first.
  const int row0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kQueries;
  const Act* q = static_cast<const Act*>(args.q) + head * dim;
  const Act* k = static_cast<const Act*>(args.k) + head / args.group * dim;
  const Act* v = static_cast<const Act*>(args.v) + head / args.group * dim;

  AsyncCopies copies;
  LoadRows<kQueries, kDim, kThreads>(&copies, q_tile, q, q_stride, row0, args.m, dim, args.vector);
  const Visibility& visible = args.visible;
  const int document = visible.DocumentForWarp(row0);
  const int first_key = visible.First(row0, document), last_key = Min(row0 + kQueries, args.m) - 1;
  LoadRows<kKeys, kDim, kThreads>(&copies, k_tile, k, kv_stride, first_key, args.m, dim, args.vector);
  copies.Commit();
  const auto first_of = [&](int row) {
    const int existing = Min(row, args.m - 1);
    return visible.First(existing, visible.Document(existing, document));
  };
  const auto row_of = [&](int tile, int half) { return row0 + warp_row + 16 * tile + lane / 4 + 8 * half; };
  // Of the warp's queries: no key before `some_seen` or behind the last query is seen by any; from `all_seen`
  // up to the first query every key is seen by every one.
  const int warp_first = row0 + warp_row, warp_last = warp_first + 16 * kTiles - 1;
  const int some_seen = first_of(warp_first), all_seen = first_of(warp_last);
  copies.Wait<0>();
  __syncthreads();
  KeptQ<kDim, kTiles> q_kept;
  if constexpr (kKeepsQ<kDim, kTiles>) {
#pragma unroll
    for (int column = 0; column < kDim; column += 16)
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
        TileA<kDim>(q_kept[column / 16][i], q_tile, warp_row + 16 * i, column);
  }

  float sums[kTiles][kDim / 8][4] = {};
  float largest[kTiles][2], totals[kTiles][2] = {};
#pragma unroll
  for (int i = 0; i < kTiles; ++i) largest[i][0] = largest[i][1] = -INFINITY;
  const float unit = args.scoring.capped() ? 1.0f : args.scoring.factor;
  for (int key0 = first_key; key0 <= last_key; key0 += kKeys) {
    const bool any = warp_first < args.m && key0 <= warp_last && key0 + kKeys > some_seen;
    LoadRows<kKeys, kDim, kThreads>(&copies, v_tile, v, kv_stride, key0, args.m, dim, args.vector);
    copies.Commit();
    float scores[kTiles][kKeys / 8][4];
    if (any) Products<kDim, kTiles, kKeys>(scores, q_kept, q_tile, k_tile, warp_row);
    copies.Wait<0>();
    __syncthreads();  // the values are there for all, and all are through with the keys
    if (key0 + kKeys <= last_key)
      LoadRows<kKeys, kDim, kThreads>(&copies, k_tile, k, kv_stride, key0 + kKeys, args.m, dim, args.vector);
    copies.Commit();
    if (any) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) CapScores(scores[i], args.scoring);
      if (key0 < all_seen || key0 + kKeys - 1 > warp_first) {
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          const int rows[2] = {row_of(i, 0), row_of(i, 1)};
          HideUnseen(scores[i], key0, rows, first_of);
        }
      }
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
        Softmax(scores[i], largest[i], totals[i], unit,
                [&](int half, float shrink) { Shrink(sums[i], half, shrink); });
      AddProduct<kDim>(sums, scores, v_tile, 0);
    }
    copies.Wait<0>();
    __syncthreads();  // the next keys are there for all, and all are through with the values
  }

#pragma unroll
  for (int i = 0; i < kTiles; ++i)
    FinishRows<Act>(args, head, warp_first + 16 * i, sums[i], largest[i], totals[i], unit);
}

template <int kDim, int kTiles, typename Act>
void Start(Context* ctx, const ForwardArgs& args) {
  const dim3 grid(static_cast<unsigned>(CeilDiv(args.m, kQueriesOf<kTiles>)),
                  static_cast<unsigned>(args.heads));
  Launch(ctx, grid, kThreads, kSharedOf<kDim, kTiles>, ForwardKernel<kDim, kTiles, Act>, args);
}

}  // namespace

template <typename Act, bool kHopper>
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
  WithPaddedDim(args.head_dim, [&](auto dim) {
    constexpr int kDim = decltype(dim)::value;
    if constexpr (kDim <= 128 && kHopper) return HopperForward<kDim, Act>(ctx, f);
    if constexpr (kDim <= 128) {
      if (TwoBlocksFit<ForwardKernel<kDim, 2, Act>, Act>(kSharedOf<kDim, 2>))
        return Start<kDim, 2, Act>(ctx, f);
    }
    Start<kDim, 1, Act>(ctx, f);
  });
}

template void AttentionForward<BF16, false>(Context*, void*, void*, const void*, const void*, const void*,
                                            const AttentionArgs&);
template void AttentionForward<BF16, true>(Context*, void*, void*, const void*, const void*, const void*,
                                            const AttentionArgs&);
template void AttentionForward<FP16, false>(Context*, void*, void*, const void*, const void*, const void*,
                                            const AttentionArgs&);
template void AttentionForward<FP16, true>(Context*, void*, void*, const void*, const void*, const void*,
                                            const AttentionArgs&);

}  // namespace nibble::kernels::NIBBLE_CUDA

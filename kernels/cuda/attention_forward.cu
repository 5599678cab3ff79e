// attention_forward: a block has 64 or 128 queries of one head, a warp 16 or 32 of them, and goes over the
// keys they see a tile at a time with a running maximum and sum. Keys and values are copied while the other
// is multiplied. With 32 queries to a warp what it reads of keys and values serves two products, and shared
// memory is what the tensor cores wait for; that takes registers and shared memory that not every device has.
#include "kernels/cuda/attention.h"
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

// Turns 16 rows of scores, `unit` to a power of two, into probabilities, and what was summed up before into
// their measure: relative to the largest score so far.
template <int kKeys, int kDim>
__device__ __forceinline__ void Softmax(float (&scores)[kKeys / 8][4], float (&sums)[kDim / 8][4],
                                        float (&largest)[2], float (&totals)[2], float unit) {
  float now[2] = {largest[0], largest[1]};
#pragma unroll
  for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) now[e / 2] = fmaxf(now[e / 2], scores[j][e]);
#pragma unroll
  for (int half = 0; half < 2; ++half) now[half] = QuadMax(now[half]);
  float base[2];
#pragma unroll
  for (int half = 0; half < 2; ++half)
    base[half] = now[half] == -INFINITY ? 0.0f : now[half] * unit;  // a row that has seen nothing yet
  // Rows whose largest score stays shrink by 1.
  if (__any_sync(kAllLanes, now[0] != largest[0] || now[1] != largest[1])) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float shrink = FastExp2(largest[half] * unit - base[half]);
      totals[half] *= shrink;
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j) {
        sums[j][2 * half] *= shrink;
        sums[j][2 * half + 1] *= shrink;
      }
      largest[half] = now[half];
    }
  }
#pragma unroll
  for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      scores[j][e] = FastExp2(fmaf(scores[j][e], unit, -base[e / 2]));
      totals[e / 2] += scores[j][e];
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
      if (args.scoring.capped()) {
#pragma unroll
        for (int i = 0; i < kTiles; ++i)
#pragma unroll
          for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) scores[i][j][e] = args.scoring.Score(scores[i][j][e]);
      }
      if (key0 < all_seen || key0 + kKeys - 1 > warp_first) {
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int row = row_of(i, half), first = first_of(row);
#pragma unroll
            for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
              for (int e = 0; e < 2; ++e) {
                const int key = key0 + 8 * j + lane % 4 * 2 + e;
                if (key > row || key < first) scores[i][j][2 * half + e] = -INFINITY;
              }
            }
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
        Softmax<kKeys, kDim>(scores[i], sums[i], largest[i], totals[i], unit);
#pragma unroll
      for (int depth = 0; depth < kKeys; depth += 16) {
        uint32_t a[kTiles][4];
#pragma unroll
        for (int i = 0; i < kTiles; ++i)
          AccumulatorsAsA<Act>(a[i], scores[i][depth / 8], scores[i][depth / 8 + 1]);
#pragma unroll
        for (int column = 0; column < kDim; column += 16) {
          uint32_t b[4];
          TileBRows<kDim>(b, v_tile, depth, column);
#pragma unroll
          for (int i = 0; i < kTiles; ++i) {
            Mma<Act>(sums[i][column / 8], a[i], b);
            Mma<Act>(sums[i][column / 8 + 1], a[i], b + 2);
          }
        }
      }
    }
    copies.Wait<0>();
    __syncthreads();  // the next keys are there for all, and all are through with the values
  }

#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = QuadSum(totals[i][half]);
      factor[half] = 1.0f / total;
      const int row = row_of(i, half);
      if (lane % 4 == 0 && row < args.m)
        args.lse[static_cast<int64_t>(row) * args.heads + head] =
            kLn2 * (largest[i][half] * unit + log2f(total));
    }
    StoreRows<kDim / 8>(static_cast<Act*>(args.out) + head * dim, q_stride, warp_first + 16 * i, args.m, 0,
                        dim, sums[i], factor);
  }
}

template <int kDim, int kTiles, typename Act>
void Start(Context* ctx, const ForwardArgs& args) {
  const dim3 grid(static_cast<unsigned>(CeilDiv(args.m, kQueriesOf<kTiles>)),
                  static_cast<unsigned>(args.heads));
  Launch(ctx, grid, kThreads, kSharedOf<kDim, kTiles>, ForwardKernel<kDim, kTiles, Act>, args);
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
  WithPaddedDim(args.head_dim, [&](auto dim) {
    constexpr int kDim = decltype(dim)::value;
    if constexpr (kDim <= 128) {
      if (TwoBlocksFit<ForwardKernel<kDim, 2, Act>, Act>(kSharedOf<kDim, 2>))
        return Start<kDim, 2, Act>(ctx, f);
    }
    Start<kDim, 1, Act>(ctx, f);
  });
}

template void AttentionForward<BF16>(Context*, void*, void*, const void*, const void*, const void*,
                                     const AttentionArgs&);
template void AttentionForward<FP16>(Context*, void*, void*, const void*, const void*, const void*,
                                     const AttentionArgs&);

}  // namespace nibble::kernels::NIBBLE_CUDA

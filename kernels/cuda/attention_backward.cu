// attention_backward, without atomics: one kernel owns rows of dQ, another rows of dK and dV, and
// each computes the probabilities it needs again. They are one template. A block keeps rows of one side in
// shared memory, a warp has 16 or 32 of them, and the other side streams by in tiles of 32:
//   for dQ:      kept are Q and dO, streaming K and V:   S = Q K^T, dP = dO V^T, dQ += dS K
//   for dK, dV:  kept are K and V, streaming Q and dO:   S^T = K Q^T, dP^T = V dO^T, dK += dS^T Q,
//   dV += P^T dO
// with P = exp(S - lse), dS = P (dP - delta), delta = the row sums of dO * O. What the warp
// computed is, packed, the left operand of the last products; nothing goes through shared memory in
// between. Where a device has room for it dK and dV are the other kernel's (attention_keys.cu).
#include "kernels/cuda/attention_backward.h"
#include "kernels/cuda/eights.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/workspace.h"

namespace nibble::kernels::NIBBLE_CUDA {
namespace {

constexpr int kStream = 32;

// All for kDim = 256, where accumulators and tiles are large; one stage of tiles then, else two.
template <int kDim>
constexpr int kWarpsOf = kDim <= 128 ? 4 : 2;
template <int kDim>
constexpr int kStagesOf = kDim <= 128 ? 2 : 1;
// Columns of dK and dV that one block of 256 can hold; the others are another block's.
template <int kDim, bool kKeys>
constexpr int kColumnsOf = kKeys&& kDim > 128 ? 128 : kDim;
template <int kDim, int kTiles>
constexpr int kRowsOf = 16 * kWarpsOf<kDim> * kTiles;
template <int kDim, int kTiles>
constexpr int kSharedOf = 2 * 2 * kDim * (kRowsOf<kDim, kTiles> + kStagesOf<kDim> * kStream);

template <int kDim, bool kKeys, int kTiles, typename Act>
__global__ void __launch_bounds__(32 * kWarpsOf<kDim>) BackwardKernel(BackwardArgs args) {
  if (kTiles > 1 && !kCompilesLarge) return;
  constexpr int kThreads = 32 * kWarpsOf<kDim>, kRows = kRowsOf<kDim, kTiles>, kStages = kStagesOf<kDim>;
  constexpr int kColumns = kColumnsOf<kDim, kKeys>;
  Act* kept_a = DynamicShared<Act>();   // Q or K
  Act* kept_b = kept_a + kRows * kDim;  // dO or V
  Act* tiles = kept_b + kRows * kDim;   // kStages of (K, V) or (Q, dO)
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16 * kTiles;
  const int dim = args.head_dim, column0 = static_cast<int>(blockIdx.z) * kColumns;
  const int kv_heads = args.heads / args.group;
  const int q_stride = args.heads * dim, kv_stride = kv_heads * dim;
  const int kept_stride = kKeys ? kv_stride : q_stride, stream_stride = kKeys ? q_stride : kv_stride;
  // The blocks with most to do first: the first keys, the last queries.
  const int row0 = static_cast<int>(kKeys ? blockIdx.x : gridDim.x - 1 - blockIdx.x) * kRows;
  const int last_row = Min(row0 + kRows, args.m) - 1;
  const int head0 = static_cast<int>(blockIdx.y) * (kKeys ? args.group : 1);  // a query head
  const int kv_head = head0 / args.group;
  const Act* q = static_cast<const Act*>(args.q);
  const Act* dout = static_cast<const Act*>(args.dout);
  const Act* k = static_cast<const Act*>(args.k) + kv_head * dim;
  const Act* v = static_cast<const Act*>(args.v) + kv_head * dim;

  AsyncCopies copies;
  LoadRows<kRows, kDim, kThreads>(&copies, kept_a, kKeys ? k : q + head0 * dim, kept_stride, row0, args.m,
                                  dim, args.vector);
  LoadRows<kRows, kDim, kThreads>(&copies, kept_b, kKeys ? v : dout + head0 * dim, kept_stride, row0, args.m,
                                  dim, args.vector);
  const Visibility& visible = args.visible;
  const int document = visible.DocumentForWarp(row0);
  // Of a query the first key, of a key the end of the queries that see it.
  const auto bound_of = [&](int row) {
    const int existing = Min(row, args.m - 1), of = visible.Document(existing, document);
    return kKeys ? visible.End(existing, of) : visible.First(existing, of);
  };
  const auto row_of = [&](int tile, int half) { return row0 + warp_row + 16 * tile + lane / 4 + 8 * half; };
  const int warp_first = row0 + warp_row, warp_last = warp_first + 16 * kTiles - 1;
  // Bounds of the warp's first and last rows: between them there is something for some, beyond both nothing.
  const int first_bound = bound_of(warp_first), last_bound = bound_of(warp_last);
  const int begin = kKeys ? row0 : visible.First(row0, document);
  const int end = kKeys ? bound_of(last_row) : last_row + 1;
  const int tiles_per_head = CeilDiv(end - begin, kStream);
  const int count = tiles_per_head * (kKeys ? args.group : 1);

  const auto load = [&](int tile) {
    if (tile < count) {
      Act* to = tiles + tile % kStages * 2 * kStream * kDim;
      const int at = begin + (kKeys ? tile % tiles_per_head : tile) * kStream;
      const int head = kKeys ? head0 + tile / tiles_per_head : 0;
      LoadRows<kStream, kDim, kThreads>(&copies, to, kKeys ? q + head * dim : k, stream_stride, at, args.m,
                                        dim, args.vector);
      LoadRows<kStream, kDim, kThreads>(&copies, to + kStream * kDim, kKeys ? dout + head * dim : v,
                                        stream_stride, at, args.m, dim, args.vector);
    }
    copies.Commit();
  };
  load(0);

  // Of the query of a row: lse in units of log 2, delta.
  const auto query = [&](int row, int head) {
    const int64_t at = static_cast<int64_t>(Min(row, args.m - 1)) * args.heads + head;
    return make_float2(args.lse[at] * kLog2E, args.delta[at]);
  };
  float2 own[kTiles][2] = {};
  if constexpr (!kKeys) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) own[i][half] = query(row_of(i, half), head0);
  }

  float first_sums[kTiles][kColumns / 8][4] = {};
  float second_sums[kTiles][kKeys ? kColumns / 8 : 1][4] = {};
  for (int tile = 0; tile < count; ++tile) {
    const int at = begin + (kKeys ? tile % tiles_per_head : tile) * kStream;
    const Act* stream_a = tiles + tile % kStages * 2 * kStream * kDim;
    const Act* stream_b = stream_a + kStream * kDim;
    float2 theirs[kKeys ? kStream / 8 : 1][2];
    if constexpr (kKeys) {
      const int head = head0 + tile / tiles_per_head;
#pragma unroll
      for (int j = 0; j < kStream / 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) theirs[j][e] = query(at + 8 * j + lane % 4 * 2 + e, head);
    }
    copies.Wait<0>();
    __syncthreads();  // the tile is there for all, and all are through with the one before
    if constexpr (kStages == 2) load(tile + 1);
    const bool any = warp_first < args.m && (kKeys ? at + kStream > warp_first && at < last_bound
                                                   : at <= warp_last && at + kStream > first_bound);
    if (any) {
      float p[kTiles][kStream / 8][4], ds[kTiles][kStream / 8][4];
      Multiply<kDim>(p, kept_a, warp_row, stream_a, 0);
      Multiply<kDim>(ds, kept_b, warp_row, stream_b, 0);
      const bool whole = kKeys ? at >= warp_last && at + kStream <= first_bound
                               : at >= last_bound && at + kStream - 1 <= warp_first;
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const auto query_data = [&](int j, int e) {
          if constexpr (kKeys)
            return theirs[j][e % 2];
          else
            return own[i][e / 2];
        };
        Probabilities(p[i], ds[i], args.scoring, query_data);
        if (!whole) {
          const int bounds[2] = {bound_of(row_of(i, 0)), bound_of(row_of(i, 1))};
#pragma unroll
          for (int j = 0; j < kStream / 8; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              const int other = at + 8 * j + lane % 4 * 2 + e % 2, row = row_of(i, e / 2);
              const bool sees = kKeys ? other >= row && other < bounds[e / 2]
                                      : other <= row && other >= bounds[e / 2];
              if (!sees) p[i][j][e] = 0;
            }
          }
        }
        ScoreGradients(p[i], ds[i]);
      }
      AddProduct<kDim>(first_sums, ds, stream_a, column0);
      if constexpr (kKeys) AddProduct<kDim>(second_sums, p, stream_b, column0);
    }
    if constexpr (kStages == 1) {
      __syncthreads();  // all are through with the tile
      load(tile + 1);
    }
  }
  copies.Wait<0>();

  const float scale = args.scoring.scale, first_factor[2] = {scale, scale}, second_factor[2] = {1, 1};
  const int head_at = (kKeys ? kv_head : head0) * dim;
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    StoreRows<kColumns / 8>(static_cast<Act*>(args.first_out) + head_at, kept_stride, warp_first + 16 * i,
                            args.m, column0, dim, first_sums[i], first_factor);
    if constexpr (kKeys)
      StoreRows<kColumns / 8>(static_cast<Act*>(args.second_out) + head_at, kept_stride, warp_first + 16 * i,
                              args.m, column0, dim, second_sums[i], second_factor);
  }
}

// delta[row, head] = sum of dO * O; kLanes lanes for each, which have eight neighbours each.
template <int kLanes, typename Act>
__global__ void __launch_bounds__(256)
    DeltaKernel(float* delta, const Act* dout, const Act* out, int64_t count, int dim, bool vector) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * (256 / kLanes) + threadIdx.x / kLanes;
  const int column = static_cast<int>(threadIdx.x % kLanes) * 8;
  float sum = 0;
  if (at < count && column < dim) {
    float values[2][8];
    LoadEights(values, {dout + at * dim + column, out + at * dim + column}, dim - column, vector);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fmaf(values[0][i], values[1][i], sum);
  }
#pragma unroll
  for (int bits = kLanes / 2; bits > 0; bits /= 2) sum += __shfl_xor_sync(kAllLanes, sum, bits);
  if (at < count && threadIdx.x % kLanes == 0) delta[at] = sum;
}

template <int kLanes, typename Act>
void Delta(Context* ctx, float* delta, const void* dout, const void* out, const AttentionArgs& args) {
  const int64_t count = args.m * args.heads;
  Launch(ctx, Blocks(count, 256 / kLanes), 256, 0, DeltaKernel<kLanes, Act>, delta,
         static_cast<const Act*>(dout), static_cast<const Act*>(out), count, static_cast<int>(args.head_dim),
         args.head_dim % 8 == 0 && Aligned(static_cast<const char*>(dout), static_cast<const char*>(out)));
}

template <int kDim, bool kKeys, int kTiles, typename Act>
void Start(Context* ctx, const BackwardArgs& args) {
  const dim3 grid(static_cast<unsigned>(CeilDiv(args.m, kRowsOf<kDim, kTiles>)),
                  static_cast<unsigned>(kKeys ? args.heads / args.group : args.heads),
                  kDim / kColumnsOf<kDim, kKeys>);
  Launch(ctx, grid, 32 * kWarpsOf<kDim>, kSharedOf<kDim, kTiles>, BackwardKernel<kDim, kKeys, kTiles, Act>,
         args);
}

template <int kDim, bool kHopper, typename Act>
void StartQueries(Context* ctx, const BackwardArgs& args) {
  if constexpr (kDim <= 128 && kHopper) return HopperBackward<kDim, false, Act>(ctx, args);
  if constexpr (kDim <= 128) {
    if (TwoBlocksFit<BackwardKernel<kDim, false, 2, Act>, Act>(kSharedOf<kDim, 2>))
      return Start<kDim, false, 2, Act>(ctx, args);
  }
  Start<kDim, false, 1, Act>(ctx, args);
}

template <int kDim, bool kHopper, typename Act>
void StartKeys(Context* ctx, const BackwardArgs& args) {
  if constexpr (kDim <= 128 && kHopper) return HopperBackward<kDim, true, Act>(ctx, args);
  if constexpr (kDim <= 128) {
    if (AttentionKeys<kDim, Act>(ctx, args)) return;
  }
  Start<kDim, true, 1, Act>(ctx, args);
}

}  // namespace

template <typename Act, bool kHopper>
void AttentionBackward(Context* ctx, void* dq, void* dk, void* dv, const void* dout, const void* out,
                       const void* lse, const void* q, const void* k, const void* v,
                       const AttentionArgs& args) {
  CheckAttention(args);
  WorkspaceShape s;
  s.m = args.m;
  s.heads = args.heads;
  KERNEL_CHECK(cuda_workspace::AttentionBackwardWorkspaceBytes(s) <= ctx->workspace_bytes);
  auto* delta = static_cast<float*>(ctx->workspace);
  const auto bytes = [](const void* at) { return static_cast<const char*>(at); };
  BackwardArgs b;
  b.q = q;
  b.k = k;
  b.v = v;
  b.dout = dout;
  b.lse = static_cast<const float*>(lse);
  b.delta = delta;
  b.m = static_cast<int>(args.m);
  b.heads = static_cast<int>(args.heads);
  b.group = static_cast<int>(args.heads / args.kv_heads);
  b.head_dim = static_cast<int>(args.head_dim);
  b.visible = VisibilityOf(args);
  b.scoring = ScoringOf(args);
  b.vector = args.head_dim % 8 == 0 && Aligned(bytes(q), bytes(k), bytes(v), bytes(dout));
  WithPaddedDim(args.head_dim, [&](auto dim) {
    constexpr int kDim = decltype(dim)::value;
    Delta<kDim / 8, Act>(ctx, delta, dout, out, args);
    b.first_out = dq;
    b.second_out = nullptr;
    StartQueries<kDim, kHopper, Act>(ctx, b);
    b.first_out = dk;
    b.second_out = dv;
    StartKeys<kDim, kHopper, Act>(ctx, b);
  });
}

template void AttentionBackward<BF16, false>(Context*, void*, void*, void*, const void*, const void*,
                                             const void*, const void*, const void*, const void*,
                                             const AttentionArgs&);
template void AttentionBackward<BF16, true>(Context*, void*, void*, void*, const void*, const void*,
                                             const void*, const void*, const void*, const void*,
                                             const AttentionArgs&);
template void AttentionBackward<FP16, false>(Context*, void*, void*, void*, const void*, const void*,
                                             const void*, const void*, const void*, const void*,
                                             const AttentionArgs&);
template void AttentionBackward<FP16, true>(Context*, void*, void*, void*, const void*, const void*,
                                             const void*, const void*, const void*, const void*,
                                             const AttentionArgs&);

}  // namespace nibble::kernels::NIBBLE_CUDA

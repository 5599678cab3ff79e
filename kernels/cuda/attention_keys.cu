// dK and dV of attention_backward, where a processor has shared memory for two such blocks (9.0).
//
// A block keeps 64 keys and their values, and queries stream by in tiles of 64. A pair of warps has 32 keys:
// each computes S^T = K Q^T and dP^T = V dO^T for half of the tile's queries and leaves P^T and dS^T, packed,
// in shared memory; then each adds dS^T Q to half of the columns of the pair's dK, and P^T dO to dV. So every
// fragment that is read from shared memory, which is what the tensor cores wait for, serves two products; one
// warp alone would have no registers for 32 rows of both sums.
#include "kernels/cuda/attention_backward.h"

namespace nibble::kernels::NIBBLE_CUDA {
namespace {

constexpr int kThreads = 128, kRows = 64, kStream = 64;
constexpr int kTiles = 2, kPairRows = 16 * kTiles, kHalf = kStream / 2;

// K, V; two stages of Q, dO; P^T and dS^T; two stages of lse and delta.
template <int kDim>
constexpr int kSharedOf = 2 * kDim * (2 * kRows + 4 * kStream) + 2 * 2 * kRows * kStream + 4 * 4 * kStream;

// A warp's 16 rows of a tile [kRows, kStream] in act, from column on; stored as TileA<kStream> reads it.
template <int kBlocks, typename Act>
__device__ __forceinline__ void LeaveRows(Act* tile, int row, int column, const float (&values)[kBlocks][4]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
      Act* to = tile + TileAt<kStream>(row + lane / 4 + 8 * half, column + 8 * j) + lane % 4 * 2;
      *reinterpret_cast<uint32_t*>(to) = ActType<Act>::Pack(values[j][2 * half], values[j][2 * half + 1]);
    }
  }
}

template <int kDim, typename Act>
__global__ void __launch_bounds__(kThreads, 2) KeysKernel(BackwardArgs args) {
  if (!kCompilesLarge) return;
  Act* k_tile = DynamicShared<Act>();
  Act* v_tile = k_tile + kRows * kDim;
  Act* tiles = v_tile + kRows * kDim;  // two stages of (Q, dO)
  Act* p_tile = tiles + 4 * kStream * kDim;
  Act* ds_tile = p_tile + kRows * kStream;
  auto* query_data = reinterpret_cast<float*>(ds_tile + kRows * kStream);  // two stages of (lse, delta)
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x) / 32;
  const int pair_row = warp / 2 * kPairRows, half_at = warp % 2 * kHalf, column0 = warp % 2 * (kDim / 2);
  const int dim = args.head_dim, kv_head = static_cast<int>(blockIdx.y), head0 = kv_head * args.group;
  const int q_stride = args.heads * dim, kv_stride = args.heads / args.group * dim;
  // The first keys are seen by most: they begin first.
  const int row0 = static_cast<int>(blockIdx.x) * kRows, last_row = Min(row0 + kRows, args.m) - 1;
  const Act* q = static_cast<const Act*>(args.q);
  const Act* dout = static_cast<const Act*>(args.dout);

  AsyncCopies copies;
  LoadRows<kRows, kDim, kThreads>(&copies, k_tile, static_cast<const Act*>(args.k) + kv_head * dim, kv_stride,
                                  row0, args.m, dim, args.vector);
  LoadRows<kRows, kDim, kThreads>(&copies, v_tile, static_cast<const Act*>(args.v) + kv_head * dim, kv_stride,
                                  row0, args.m, dim, args.vector);
  const Visibility& visible = args.visible;
  const int document = visible.DocumentForWarp(row0);
  const auto end_of = [&](int row) {
    const int existing = Min(row, args.m - 1);
    return visible.End(existing, visible.Document(existing, document));
  };
  const auto row_of = [&](int tile, int half) { return row0 + pair_row + 16 * tile + lane / 4 + 8 * half; };
  const int pair_first = row0 + pair_row, pair_last = pair_first + kPairRows - 1;
  const int first_end = end_of(pair_first), last_end = end_of(pair_last), end = end_of(last_row);

  // What is loaded next: the queries that see these keys, of one head behind the other.
  int load_at = row0, load_head = head0, load_stage = 0;
  const auto load = [&] {
    if (load_head < head0 + args.group) {
      Act* to = tiles + load_stage * 2 * kStream * kDim;
      LoadRows<kStream, kDim, kThreads>(&copies, to, q + load_head * dim, q_stride, load_at, args.m, dim,
                                        args.vector);
      LoadRows<kStream, kDim, kThreads>(&copies, to + kStream * kDim, dout + load_head * dim, q_stride,
                                        load_at, args.m, dim, args.vector);
      const int thread = static_cast<int>(threadIdx.x), which = thread / kStream;
      const int64_t from = int64_t{Min(load_at + thread % kStream, args.m - 1)} * args.heads + load_head;
      copies.Copy4(query_data + load_stage * 2 * kStream + thread,
                   (which == 0 ? args.lse : args.delta) + from);
      load_stage ^= 1;
      load_at += kStream;
      if (load_at >= end) load_at = row0, ++load_head;
    }
    copies.Commit();
  };
  static_assert(kThreads == 2 * kStream);
  load();

  float dk[kTiles][kDim / 16][4] = {}, dv[kTiles][kDim / 16][4] = {};
  int stage = 0;
  for (int head = 0; head < args.group; ++head) {
    for (int at = row0; at < end; at += kStream, stage ^= 1) {
      const Act* q_tile = tiles + stage * 2 * kStream * kDim;
      const Act* dout_tile = q_tile + kStream * kDim;
      const float* lse = query_data + stage * 2 * kStream + half_at;
      const float* delta = lse + kStream;
      copies.Wait<0>();
      __syncthreads();  // the tile is there for all, and all are through with the one before
      load();
      const bool any = pair_first < args.m && at + kStream > pair_first && at < last_end;
      if (any) {
        float p[kTiles][kHalf / 8][4], ds[kTiles][kHalf / 8][4];
        Multiply<kDim>(p, k_tile, pair_row, q_tile, half_at);
        Multiply<kDim>(ds, v_tile, pair_row, dout_tile, half_at);
        const int first = at + half_at;
        const bool whole = first >= pair_last && first + kHalf <= first_end;
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          Probabilities(p[i], ds[i], args.scoring, [&](int j, int e) {
            const int query = 8 * j + lane % 4 * 2 + e % 2;
            return make_float2(lse[query] * kLog2E, delta[query]);
          });
          if (!whole) {
            const int ends[2] = {end_of(row_of(i, 0)), end_of(row_of(i, 1))};
#pragma unroll
            for (int j = 0; j < kHalf / 8; ++j) {
#pragma unroll
              for (int e = 0; e < 4; ++e) {
                const int query = first + 8 * j + lane % 4 * 2 + e % 2;
                if (query < row_of(i, e / 2) || query >= ends[e / 2]) p[i][j][e] = 0;
              }
            }
          }
          ScoreGradients(p[i], ds[i]);
          LeaveRows(p_tile, pair_row + 16 * i, half_at, p[i]);
          LeaveRows(ds_tile, pair_row + 16 * i, half_at, ds[i]);
        }
      }
      __syncthreads();  // both halves of a pair's rows are there
      if (any) {
        const auto rows_of = [&](const Act* weights) {
          return [=](uint32_t* a, int i, int depth) { TileA<kStream>(a, weights, pair_row + 16 * i, depth); };
        };
        AddProduct<kDim, kStream>(dk, q_tile, column0, rows_of(ds_tile));
        AddProduct<kDim, kStream>(dv, dout_tile, column0, rows_of(p_tile));
      }
    }
  }
  copies.Wait<0>();

  const float scale = args.scoring.scale, k_factor[2] = {scale, scale}, v_factor[2] = {1, 1};
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    StoreRows<kDim / 16>(static_cast<Act*>(args.first_out) + kv_head * dim, kv_stride, pair_first + 16 * i,
                         args.m, column0, dim, dk[i], k_factor);
    StoreRows<kDim / 16>(static_cast<Act*>(args.second_out) + kv_head * dim, kv_stride, pair_first + 16 * i,
                         args.m, column0, dim, dv[i], v_factor);
  }
}

}  // namespace

template <int kDim, typename Act>
bool AttentionKeys(Context* ctx, const BackwardArgs& args) {
  constexpr int kShared = kSharedOf<kDim>;
  if (!TwoBlocksFit<KeysKernel<kDim, Act>, Act>(kShared)) return false;
  const dim3 grid(static_cast<unsigned>(CeilDiv(args.m, kRows)),
                  static_cast<unsigned>(args.heads / args.group));
  Launch(ctx, grid, kThreads, kShared, KeysKernel<kDim, Act>, args);
  return true;
}

template bool AttentionKeys<64, BF16>(Context*, const BackwardArgs&);
template bool AttentionKeys<128, BF16>(Context*, const BackwardArgs&);
template bool AttentionKeys<64, FP16>(Context*, const BackwardArgs&);
template bool AttentionKeys<128, FP16>(Context*, const BackwardArgs&);

}  // namespace nibble::kernels::NIBBLE_CUDA

// attention_backward by Hopper's warpgroup products, without atomics: one kernel owns rows of dQ,
// the other rows of dK and dV, and each computes the probabilities it needs again. They are one
// template (as in attention_backward.cu, which has the formulas). A block keeps 128 rows of one
// side, a warpgroup 64 of them; the other side streams by in tiles of 64. While a tile's
// probabilities are computed, the tensor cores work on the last products of the tile before, so a
// tile's memory is in use for two rounds and being filled in a third.
#include "kernels/cuda/attention_backward.h"
#include "kernels/cuda/attention_hopper.h"

namespace nibble::kernels::NIBBLE_CUDA {
namespace {

constexpr int kRows = 128, kStream = 64, kStages = 3;

// Kept and streaming tiles; lse and delta of streaming queries.
template <int kDim>
constexpr int kSharedOf = 2 * kDim*(2 * kRows + kStages * 2 * kStream) + 4 * kStages * 2 * kStream
                          + kSwizzleSlack;

template <int kDim, bool kKeys, typename Act>
__global__ void __launch_bounds__(kHopperThreads, 1) HopperBackwardKernel(BackwardArgs args) {
  if (!kCompilesWgmma) return;
  constexpr int kTile = kStream * kDim;
  Act* kept_a = SwizzledShared<Act>();  // Q or K
  Act* kept_b = kept_a + kRows * kDim;  // dO or V
  Act* tiles = kept_b + kRows * kDim;   // kStages of (K, V) or (Q, dO)
  auto* query_data =
      reinterpret_cast<float*>(tiles + kStages * 2 * kTile);  // kStages of (lse, delta)
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int group_row = GroupRow();
  const int dim = args.head_dim, kv_heads = args.heads / args.group;
  const int q_stride = args.heads * dim, kv_stride = kv_heads * dim;
  const int kept_stride = kKeys ? kv_stride : q_stride,
            stream_stride = kKeys ? q_stride : kv_stride;
  // The blocks with most to do first: the first keys, the last queries.
  const int row0 = static_cast<int>(kKeys ? blockIdx.x : gridDim.x - 1 - blockIdx.x) * kRows;
  const int head0 = static_cast<int>(blockIdx.y) * (kKeys ? args.group : 1);  // a query head
  const int kv_head = head0 / args.group, kept_at = (kKeys ? kv_head : head0) * dim;
  const Act* q = static_cast<const Act*>(args.q);
  const Act* dout = static_cast<const Act*>(args.dout);
  const Act* k = static_cast<const Act*>(args.k) + kv_head * dim;
  const Act* v = static_cast<const Act*>(args.v) + kv_head * dim;

  AsyncCopies copies;
  LoadSwizzled<kRows, kDim>(&copies, kept_a, kKeys ? k : q + head0 * dim, kept_stride, row0, args.m,
                            dim, args.vector);
  LoadSwizzled<kRows, kDim>(&copies, kept_b, kKeys ? v : dout + head0 * dim, kept_stride, row0,
                            args.m, dim, args.vector);
  const Visibility& visible = args.visible;
  const int document = visible.DocumentForWarp(row0);
  // Of a query the first key, of a key the end of the queries that see it.
  const auto bound_of = [&](int row) {
    const int existing = Min(row, args.m - 1), of = visible.Document(existing, document);
    return kKeys ? visible.End(existing, of) : visible.First(existing, of);
  };
  const int last_row = Min(row0 + kRows, args.m) - 1;
  const int begin = kKeys ? row0 : visible.First(row0, document);
  const int end = kKeys ? bound_of(last_row) : last_row + 1;
  const int count = CeilDiv(end - begin, kStream) * (kKeys ? args.group : 1);

  // What is loaded next: for keys the queries that see them, of one head behind the other.
  int load_at = begin, load_head = 0, load_stage = 0;
  const auto load = [&] {
    if (load_head < (kKeys ? args.group : 1)) {
      Act* to = tiles + load_stage * 2 * kTile;
      const int head = head0 + load_head;
      LoadSwizzled<kStream, kDim>(&copies, to, kKeys ? q + head * dim : k, stream_stride, load_at,
                                  args.m, dim, args.vector);
      LoadSwizzled<kStream, kDim>(&copies, to + kTile, kKeys ? dout + head * dim : v, stream_stride,
                                  load_at, args.m, dim, args.vector);
      if (kKeys && thread < 2 * kStream) {
        const int64_t from =
            int64_t{Min(load_at + thread % kStream, args.m - 1)} * args.heads + head;
        copies.Copy4(query_data + load_stage * 2 * kStream + thread,
                     (thread < kStream ? args.lse : args.delta) + from);
      }
      load_stage = load_stage + 1 == kStages ? 0 : load_stage + 1;
      load_at += kStream;
      if (load_at >= end) load_at = begin, ++load_head;
    }
    copies.Commit();
  };
  load();

  const int warp_first = row0 + thread / 32 * 16, warp_last = warp_first + 15;
  const int rows[2] = {warp_first + lane / 4, warp_first + lane / 4 + 8};
  // Bounds of the warp's first and last rows: between them there is something for some, beyond both
  // nothing.
  const int first_bound = bound_of(warp_first), last_bound = bound_of(warp_last);
  float2 own[2] = {};  // of the lane's queries, lse in units of log 2, delta
  if constexpr (!kKeys) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t at = int64_t{Min(rows[half], args.m - 1)} * args.heads + head0;
      own[half] = make_float2(args.lse[at] * kLog2E, args.delta[at]);
    }
  }

  using Products = float[kStream / 8][4];
  float first_sums[kDim / 8][4] = {}, second_sums[kKeys ? kDim / 8 : 1][4] = {};
  uint32_t p_weights[kKeys ? kStream / 16 : 1][4], ds_weights[kStream / 16][4];
  Warpgroup group;
  int at = begin, stage = 0;  // of the tile whose probabilities are computed
  const auto multiply = [&](Products& p, Products& ds) {
    const Act* stream = tiles + stage * 2 * kTile;
    MultiplyTiles<kDim, kRows>(&group, p, kept_a, group_row, stream);
    MultiplyTiles<kDim, kRows>(&group, ds, kept_b, group_row, stream + kTile);
    group.Commit();
  };
  const auto add = [&](int of_stage) {
    const Act* stream = tiles + of_stage * 2 * kTile;
    if constexpr (kKeys) AddTile(&group, second_sums, p_weights, stream + kTile);
    AddTile(&group, first_sums, ds_weights, stream);
    group.Commit();
  };
  // Products become probabilities and gradients of products, packed they are the next products'
  // left operands.
  const auto differentiate = [&](Products& p, Products& ds) {
    const float* lse = query_data + stage * 2 * kStream;
    Probabilities(p, ds, args.scoring, [&](int j, int e) {
      if constexpr (!kKeys) return own[e / 2];
      const int query = 8 * j + lane % 4 * 2 + e % 2;
      return make_float2(lse[query] * kLog2E, lse[kStream + query]);
    });
    const bool whole = kKeys ? at >= warp_last && at + kStream <= first_bound
                             : at >= last_bound && at + kStream - 1 <= warp_first;
    if (!whole) {
      const int bounds[2] = {bound_of(rows[0]), bound_of(rows[1])};
#pragma unroll
      for (int j = 0; j < kStream / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int other = at + 8 * j + lane % 4 * 2 + e % 2, row = rows[e / 2];
          const bool sees = kKeys ? other >= row && other < bounds[e / 2]
                                  : other <= row && other >= bounds[e / 2];
          if (!sees) p[j][e] = 0;
        }
      }
    }
    ScoreGradients(p, ds);
  };
  const auto pack = [&](const Products& p, const Products& ds) {
    if constexpr (kKeys) PackRows<Act>(p_weights, p);
    PackRows<Act>(ds_weights, ds);
  };

  TilesArrive(&copies);
  load();
  {
    Products p, ds;
    group.Fence();
    multiply(p, ds);
    group.Wait<0>();
    Arrived(p);
    Arrived(ds);
    differentiate(p, ds);
    pack(p, ds);
  }
  for (int tile = 1; tile < count; ++tile) {
    TilesArrive(&copies);
    load();
    const int stage_before = stage;
    stage = stage + 1 == kStages ? 0 : stage + 1;
    at += kStream;
    if (at >= end) at = begin;
    Products p, ds;
    group.Fence();
    multiply(p, ds);
    add(stage_before);
    group.Wait<1>();
    Arrived(p);
    Arrived(ds);
    differentiate(p, ds);
    group.Wait<0>();
    Arrived(first_sums);
    Arrived(second_sums);
    pack(p, ds);
  }
  group.Fence();
  add(stage);
  group.Wait<0>();
  Arrived(first_sums);
  Arrived(second_sums);
  copies.Wait<0>();

  const float scale = args.scoring.scale, first_factor[2] = {scale, scale},
              second_factor[2] = {1, 1};
  StoreRows<kDim / 8>(static_cast<Act*>(args.first_out) + kept_at, kept_stride, warp_first, args.m,
                      0, dim, first_sums, first_factor);
  if constexpr (kKeys)
    StoreRows<kDim / 8>(static_cast<Act*>(args.second_out) + kept_at, kept_stride, warp_first,
                        args.m, 0, dim, second_sums, second_factor);
}

}  // namespace

template <int kDim, bool kKeys, typename Act>
void HopperBackward(Context* ctx, const BackwardArgs& args) {
  const dim3 grid(static_cast<unsigned>(CeilDiv(args.m, kRows)),
                  static_cast<unsigned>(kKeys ? args.heads / args.group : args.heads));
  Launch(ctx, grid, kHopperThreads, kSharedOf<kDim>, HopperBackwardKernel<kDim, kKeys, Act>, args);
}

template void HopperBackward<64, false, BF16>(Context*, const BackwardArgs&);
template void HopperBackward<64, true, BF16>(Context*, const BackwardArgs&);
template void HopperBackward<128, false, BF16>(Context*, const BackwardArgs&);
template void HopperBackward<128, true, BF16>(Context*, const BackwardArgs&);
template void HopperBackward<64, false, FP16>(Context*, const BackwardArgs&);
template void HopperBackward<64, true, FP16>(Context*, const BackwardArgs&);
template void HopperBackward<128, false, FP16>(Context*, const BackwardArgs&);
template void HopperBackward<128, true, FP16>(Context*, const BackwardArgs&);

}  // namespace nibble::kernels::NIBBLE_CUDA

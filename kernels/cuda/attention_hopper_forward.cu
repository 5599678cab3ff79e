// attention_forward by Hopper's warpgroup products: a block has 128 queries of one head and goes
// over the keys they see, 128 at a time. While a tile's scores become probabilities, the tensor
// cores add the values of the tile before. Keys and values have two tiles each, so copies have the
// time of a whole tile, too.
#include "kernels/cuda/attention_forward.h"
#include "kernels/cuda/attention_hopper.h"

namespace nibble::kernels::NIBBLE_CUDA {
namespace {

constexpr int kQueries = 128, kKeys = 128;

template <int kDim>
constexpr int kSharedOf = 2 * kDim*(kQueries + 4 * kKeys) + kSwizzleSlack;

template <int kDim, typename Act>
__global__ void __launch_bounds__(kHopperThreads, 1) HopperForwardKernel(ForwardArgs args) {
  if (!kCompilesWgmma) return;
  constexpr int kTile = kKeys * kDim;
  Act* q_tile = SwizzledShared<Act>();
  Act* k_tiles = q_tile + kQueries * kDim;
  Act* v_tiles = k_tiles + 2 * kTile;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int group_row = GroupRow();
  const int head = static_cast<int>(blockIdx.y), dim = args.head_dim;
  const int q_stride = args.heads * dim, kv_stride = args.heads / args.group * dim;
  // The last queries see most: they begin first.
  const int row0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kQueries;
  const Act* q = static_cast<const Act*>(args.q) + head * dim;
  const Act* k = static_cast<const Act*>(args.k) + head / args.group * dim;
  const Act* v = static_cast<const Act*>(args.v) + head / args.group * dim;

  AsyncCopies copies;
  LoadSwizzled<kQueries, kDim>(&copies, q_tile, q, q_stride, row0, args.m, dim, args.vector);
  const Visibility& visible = args.visible;
  const int document = visible.DocumentForWarp(row0);
  const int first_key = visible.First(row0, document), last_key = Min(row0 + kQueries, args.m) - 1;
  const int count = CeilDiv(last_key + 1 - first_key, kKeys);
  const auto load_keys = [&](int tile) {
    if (tile < count)
      LoadSwizzled<kKeys, kDim>(&copies, k_tiles + tile % 2 * kTile, k, kv_stride,
                                first_key + tile * kKeys, args.m, dim, args.vector);
  };
  const auto load_values = [&](int tile) {
    LoadSwizzled<kKeys, kDim>(&copies, v_tiles + tile % 2 * kTile, v, kv_stride,
                              first_key + tile * kKeys, args.m, dim, args.vector);
  };
  load_keys(0);
  copies.Commit();
  const auto first_of = [&](int row) {
    const int existing = Min(row, args.m - 1);
    return visible.First(existing, visible.Document(existing, document));
  };
  // From `all_seen` up to the first query every one of the warp's queries sees every key.
  const int warp_first = row0 + static_cast<int>(threadIdx.x) / 32 * 16,
            all_seen = first_of(warp_first + 15);
  const int rows[2] = {warp_first + lane / 4, warp_first + lane / 4 + 8};

  using Scores = float[kKeys / 8][4];
  float sums[kDim / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, totals[2] = {},
                    shrink[2] = {1, 1};
  uint32_t weights[kKeys / 16][4];
  bool shrinks = false;
  const float unit = args.scoring.capped() ? 1.0f : args.scoring.factor;
  Warpgroup group;
  const auto multiply = [&](Scores& scores, int tile) {
    MultiplyTiles<kDim, kQueries>(&group, scores, q_tile, group_row, k_tiles + tile % 2 * kTile);
    group.Commit();
  };
  const auto add = [&](int tile) {
    AddTile(&group, sums, weights, v_tiles + tile % 2 * kTile);
    group.Commit();
  };
  const auto soften = [&](Scores& scores, int tile) {
    const int key0 = first_key + tile * kKeys;
    CapScores(scores, args.scoring);
    if (key0 < all_seen || key0 + kKeys - 1 > warp_first) HideUnseen(scores, key0, rows, first_of);
    shrinks = false;
    Softmax(scores, largest, totals, unit, [&](int half, float factor) {
      shrink[half] = factor;
      shrinks = true;
    });
  };

  TilesArrive(&copies);
  load_keys(1);
  load_values(0);
  copies.Commit();
  {
    Scores scores;
    group.Fence();
    multiply(scores, 0);
    group.Wait<0>();
    Arrived(scores);
    soften(scores, 0);
    PackRows<Act>(weights, scores);
  }
  for (int tile = 1; tile < count; ++tile) {
    TilesArrive(&copies);
    load_keys(tile + 1);
    load_values(tile);
    copies.Commit();
    Scores scores;
    group.Fence();
    multiply(scores, tile);
    add(tile - 1);
    group.Wait<1>();
    Arrived(scores);
    soften(scores, tile);
    group.Wait<0>();
    Arrived(sums);
    if (shrinks) {
      Shrink(sums, 0, shrink[0]);
      Shrink(sums, 1, shrink[1]);
    }
    PackRows<Act>(weights, scores);
  }
  TilesArrive(&copies);
  group.Fence();
  add(count - 1);
  group.Wait<0>();
  Arrived(sums);
  FinishRows<Act>(args, head, warp_first, sums, largest, totals, unit);
}

}  // namespace

template <int kDim, typename Act>
void HopperForward(Context* ctx, const ForwardArgs& args) {
  const dim3 grid(static_cast<unsigned>(CeilDiv(args.m, kQueries)),
                  static_cast<unsigned>(args.heads));
  Launch(ctx, grid, kHopperThreads, kSharedOf<kDim>, HopperForwardKernel<kDim, Act>, args);
}

template void HopperForward<64, BF16>(Context*, const ForwardArgs&);
template void HopperForward<128, BF16>(Context*, const ForwardArgs&);
template void HopperForward<64, FP16>(Context*, const ForwardArgs&);
template void HopperForward<128, FP16>(Context*, const ForwardArgs&);

}  // namespace nibble::kernels::NIBBLE_CUDA

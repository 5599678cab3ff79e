// Attention's tiles as Hopper's warpgroups read them (wgmma.h), and the products of whole tiles.
//
// A tile of rows of kDim elements lies in shared memory as kDim / 64 blocks of 64 columns, each
// with all its rows. A block of threads is two warpgroups with 64 rows each, so that one multiplies
// while the other exponentiates.
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/wgmma.h"

namespace nibble::kernels::NIBBLE_CUDA {

constexpr int kHopperThreads = 2 * kWarpgroup;

// The first of the warpgroup's rows, known to the compiler as the same for a warp.
__device__ __forceinline__ int GroupRow() {
  return __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / kWarpgroup, 0) * 64;
}

template <int kRows>
__device__ __forceinline__ int SwizzledAt(int row, int column) {
  return column / 64 * kRows * 64 + TileAt<64>(row, column % 64);
}

template <int kRows, int kDim, typename Act>
__device__ __forceinline__ void LoadSwizzled(AsyncCopies* copies, Act* tile, const Act* head,
                                             int stride, int row0, int rows, int dim, bool vector) {
  LoadRows<kRows, kDim, kHopperThreads, SwizzledAt<kRows>>(copies, tile, head, stride, row0, rows,
                                                           dim, vector);
}

// What was copied so far is there for all threads and for their products, when all have come here.
__device__ __forceinline__ void TilesArrive(AsyncCopies* copies) {
  copies->Wait<0>();
  FenceForTensors();
  __syncthreads();
}

// sums = left right^T: 64 rows of a tile of kLeftRows, from row on, and all rows of another.
template <int kDim, int kLeftRows, int kBlocks, typename Act, typename Group>
__device__ __forceinline__ void MultiplyTiles(Group* group, float (&sums)[kBlocks][4],
                                              const Act* left, int row, const Act* right) {
  const uint32_t a = Tile(left + row * 64), b = Tile(right);
#pragma unroll
  for (int column = 0; column < kDim; column += 16)
    group->template Multiply<Act>(sums, Descriptor(a + (kStraight + SwizzledAt<kLeftRows>(0, column) / 8)),
                                  Descriptor(b + (kStraight + SwizzledAt<8 * kBlocks>(0, column) / 8)),
                                  column > 0);
}

// sums += left tile; left are packed fragments of 64 rows, the tile has as many rows as those
// columns.
template <int kDepths, int kBlocks, typename Act, typename Group>
__device__ __forceinline__ void AddTile(Group* group, float (&sums)[kBlocks][4],
                                        const uint32_t (&left)[kDepths][4], const Act* tile) {
  constexpr int kRows = 16 * kDepths;
  constexpr uint32_t kApart = BlocksApart(kBlocks > 8 ? kRows * 128 : 0);
  const uint32_t b = Tile(tile);
#pragma unroll
  for (int depth = 0; depth < kDepths; ++depth)
    group->template MultiplyTurned<Act>(sums, left[depth], Descriptor(b + (kApart + depth * 128)));
}

// Accumulators of a product as the left operand of the next.
template <typename Act, int kDepths>
__device__ __forceinline__ void PackRows(uint32_t (&packed)[kDepths][4],
                                         const float (&values)[2 * kDepths][4]) {
#pragma unroll
  for (int depth = 0; depth < kDepths; ++depth)
    AccumulatorsAsA<Act>(packed[depth], values[2 * depth], values[2 * depth + 1]);
}

}  // namespace nibble::kernels::NIBBLE_CUDA

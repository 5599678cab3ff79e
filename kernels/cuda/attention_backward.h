// What the kernels of attention_backward share: the products of a warp's rows with a tile, and what becomes
// of them. A warp has kTiles times 16 rows.
#pragma once

#include "kernels/cuda/attention.h"

namespace nibble::kernels::NIBBLE_CUDA {

struct BackwardArgs {
  const void *q, *k, *v, *dout;
  const float *lse, *delta;
  void *first_out, *second_out;  // dQ; or dK and dV
  int m;
  int heads, group, head_dim;
  Visibility visible;
  Scoring scoring;
  bool vector;
};

// out = kept stream^T, for a warp's rows and the stream's rows from stream_row.
template <int kDim, int kTiles, int kBlocks, typename Act>
__device__ __forceinline__ void Multiply(float (&out)[kTiles][kBlocks][4], const Act* kept, int warp_row,
                                         const Act* stream, int stream_row) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
#pragma unroll
    for (int j = 0; j < kBlocks; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) out[i][j][e] = 0;
#pragma unroll(kDim == 64 ? 2 : 4)
  for (int column = 0; column < kDim; column += 16) {
    uint32_t a[kTiles][4];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) TileA<kDim>(a[i], kept, warp_row + 16 * i, column);
#pragma unroll
    for (int j = 0; j < kBlocks; j += 2) {
      uint32_t b[4];
      TileB<kDim>(b, stream, stream_row + 8 * j, column);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        Mma<Act>(out[i][j], a[i], b);
        Mma<Act>(out[i][j + 1], a[i], b + 2);
      }
    }
  }
}

// p: products q k become probabilities. ds: products dO v become gradients of scale times the product q k,
// but for the probability's factor. `query_data` gives lse (in units of log 2) and delta of an element's
// query.
template <int kBlocks, typename QueryData>
__device__ __forceinline__ void Probabilities(float (&p)[kBlocks][4], float (&ds)[kBlocks][4],
                                              const Scoring& scoring, const QueryData& query_data) {
  if (scoring.capped()) {
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float score = scoring.Score(p[j][e]);
        const float2 data = query_data(j, e);
        p[j][e] = FastExp2(score - data.x);
        ds[j][e] = (ds[j][e] - data.y) * scoring.Slope(score);
      }
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float2 data = query_data(j, e);
      p[j][e] = FastExp2(fmaf(p[j][e], scoring.factor, -data.x));
      ds[j][e] -= data.y;
    }
  }
}
// That factor. What nobody sees has been masked in p.
template <int kBlocks>
__device__ __forceinline__ void ScoreGradients(const float (&p)[kBlocks][4], float (&ds)[kBlocks][4]) {
#pragma unroll
  for (int j = 0; j < kBlocks; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) ds[j][e] *= p[j][e];
}

// attention_keys.cu: dK and dV for heads of at most 128 elements; false where the device has no room for it.
template <int kDim, typename Act>
bool AttentionKeys(Context* ctx, const BackwardArgs& args);

// attention_hopper_backward.cu: dK and dV, or dQ, for heads of at most 128 elements.
template <int kDim, bool kKeys, typename Act>
void HopperBackward(Context* ctx, const BackwardArgs& args);

}  // namespace nibble::kernels::NIBBLE_CUDA

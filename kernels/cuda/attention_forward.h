// What the kernels of attention_forward share: scores of 16 rows become probabilities beside a
// running maximum and sum, and at the end the rows' results. A lane holds two rows of the scores as
// mma.h says.
#pragma once

#include "kernels/cuda/attention.h"

namespace nibble::kernels::NIBBLE_CUDA {

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

template <int kBlocks>
__device__ __forceinline__ void CapScores(float (&scores)[kBlocks][4], const Scoring& scoring) {
  if (!scoring.capped()) return;
#pragma unroll
  for (int j = 0; j < kBlocks; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) scores[j][e] = scoring.Score(scores[j][e]);
}

// Scores of keys, from key0 on, that the lane's two rows do not see.
template <int kBlocks, typename FirstOf>
__device__ __forceinline__ void HideUnseen(float (&scores)[kBlocks][4], int key0,
                                           const int (&rows)[2], const FirstOf& first_of) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int first = first_of(rows[half]);
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int key = key0 + 8 * j + lane % 4 * 2 + e;
        if (key > rows[half] || key < first) scores[j][2 * half + e] = -INFINITY;
      }
    }
  }
}

// Turns 16 rows of scores, `unit` to a power of two, into probabilities relative to the largest
// score so far. shrink(half, factor) is told, when it changes, what brings sums made before into
// that measure.
//
// A score's exponent is score * unit less the largest one's, rounded: of ordinary scores the rounding takes
// nothing away, of those from kFar on it may take more than a probability can hold. There the
// largest is taken off the scores themselves, which only rows do that have such: the loop over the
// others stays as short as it is.
constexpr float kFar = 0x1p20f;
template <int kBlocks, typename ShrinkRow>
__device__ __forceinline__ void Softmax(float (&scores)[kBlocks][4], float (&largest)[2],
                                        float (&totals)[2], float unit,
                                        const ShrinkRow& shrink_row) {
  float now[2] = {largest[0], largest[1]};
#pragma unroll
  for (int j = 0; j < kBlocks; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) now[e / 2] = fmaxf(now[e / 2], scores[j][e]);
#pragma unroll
  for (int half = 0; half < 2; ++half) now[half] = QuadMax(now[half]);
  float base[2];
#pragma unroll
  for (int half = 0; half < 2; ++half)
    base[half] =
        now[half] == -INFINITY ? 0.0f : now[half] * unit;  // a row that has seen nothing yet
  const bool far = fmaxf(fabsf(base[0]), fabsf(base[1])) >= kFar;
  // Rows whose largest score stays shrink by 1.
  if (__any_sync(kAllLanes, now[0] != largest[0] || now[1] != largest[1] || far)) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool far_row = fabsf(base[half]) >= kFar;
      const float shrink =
          FastExp2(far_row ? (largest[half] - now[half]) * unit : largest[half] * unit - base[half]);
      totals[half] *= shrink;
      shrink_row(half, shrink);
      largest[half] = now[half];
    }
    if (far) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float taken = fabsf(base[half]) >= kFar ? now[half] : 0.0f;
        if (taken != 0) base[half] = 0;
#pragma unroll
        for (int j = 0; j < kBlocks; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e) scores[j][2 * half + e] -= taken;
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      scores[j][e] = FastExp2(fmaf(scores[j][e], unit, -base[e / 2]));
      totals[e / 2] += scores[j][e];
    }
  }
}

// One of the lane's two rows of sums.
template <int kBlocks>
__device__ __forceinline__ void Shrink(float (&sums)[kBlocks][4], int half, float factor) {
#pragma unroll
  for (int j = 0; j < kBlocks; ++j) {
    sums[j][2 * half] *= factor;
    sums[j][2 * half + 1] *= factor;
  }
}

// Writes a warp's 16 rows of outputs, from row0 on, and their lse.
template <typename Act, int kBlocks>
__device__ __forceinline__ void FinishRows(const ForwardArgs& args, int head, int row0,
                                           const float (&sums)[kBlocks][4],
                                           const float (&largest)[2], const float (&totals)[2],
                                           float unit) {
  const int lane = static_cast<int>(threadIdx.x % 32), dim = args.head_dim;
  float factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = QuadSum(totals[half]);
    factor[half] = 1.0f / total;
    const int row = row0 + lane / 4 + 8 * half;
    if (lane % 4 == 0 && row < args.m)
      args.lse[static_cast<int64_t>(row) * args.heads + head] =
          kLn2 * (largest[half] * unit + log2f(total));
  }
  StoreRows<kBlocks>(static_cast<Act*>(args.out) + head * dim, args.heads * dim, row0, args.m, 0,
                     dim, sums, factor);
}

// attention_hopper_forward.cu: for heads of at most 128 elements.
template <int kDim, typename Act>
void HopperForward(Context* ctx, const ForwardArgs& args);

}  // namespace nibble::kernels::NIBBLE_CUDA

// Loading from several arrays at once, for ops that look at each element once.
#pragma once

#include "kernels/cuda/device.h"

namespace nibble::kernels::NIBBLE_CUDA {

// Eight values of each of several arrays, at places that have as much left (see Load8). All loads go out
// before the first is waited for: with a branch for each the next would wait until the one before has come
// and been unpacked.
template <int kCount, typename Act>
__device__ __forceinline__ void LoadEights(float (&values)[kCount][8], const Act* const (&at)[kCount],
                                           int64_t left, bool vector) {
  if (vector && left >= 8) {
    uint4 words[kCount];
#pragma unroll
    for (int a = 0; a < kCount; ++a) words[a] = VectorAt<uint4>(at[a]);
#pragma unroll
    for (int a = 0; a < kCount; ++a) Unpack8<Act>(values[a], words[a]);
    return;
  }
#pragma unroll
  for (int a = 0; a < kCount; ++a) Load8(values[a], at[a], left, false);
}

}  // namespace nibble::kernels::NIBBLE_CUDA

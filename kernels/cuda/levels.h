// Finding the nearest of some levels: quantized weights and 8-bit moments.
#pragma once

#include "kernels/cuda/device.h"

namespace nibble::kernels::NIBBLE_CUDA {

// Ascending midpoints between levels, filled up with infinity to a power of two; in shared memory.
template <int kSize>
struct Midpoints {
  float middle[kSize];
};

// How many midpoints are below `value`: the code of the nearest level, the lower one on a tie. NaN gets 0.
template <int kSize>
__device__ __forceinline__ unsigned CountBelow(const Midpoints<kSize>& points, float value) {
  unsigned below = 0;
#pragma unroll
  for (unsigned half = kSize / 2; half > 0; half /= 2)
    if (points.middle[below + half - 1] < value) below += half;
  return below;
}

}  // namespace nibble::kernels::NIBBLE_CUDA

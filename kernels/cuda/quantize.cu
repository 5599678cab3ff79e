// Encoding: a warp finds a block's largest magnitude, then looks every value up among the midpoints between
// the levels. Midpoints are formed from the code book in fp32, as nf4.cc forms them.
#include "kernels/cuda/levels.h"
#include "kernels/cuda/quantize.h"
#include "kernels/nf4.h"

namespace nibble::kernels::NIBBLE_CUDA {
namespace {

constexpr int kThreads = 256;

// FP4's magnitudes in ascending order, by code: a code to each nibble.
constexpr unsigned kFp4Ascending = 0x32547610;

// Level `rank` of a code book in ascending order; FP4: of its magnitudes.
template <QuantType kType>
__device__ __forceinline__ float Level(const float* code_book, int rank) {
  if constexpr (kType == QuantType::kFP4) rank = static_cast<int>(kFp4Ascending >> (4 * rank) & 15);
  return code_book[rank];
}

// The last code of INT4 and INT8 repeats 1 and is never written.
template <QuantType kType>
constexpr int kLevels = kType == QuantType::kNF4    ? 16
                        : kType == QuantType::kFP4  ? 8
                        : kType == QuantType::kINT4 ? 15
                                                    : 255;
template <QuantType kType>
constexpr int kTableSize = kType == QuantType::kFP4    ? 8
                           : kType == QuantType::kINT8 ? 256
                                                       : 16;

template <QuantType kType>
__device__ __forceinline__ unsigned Encode(const Midpoints<kTableSize<kType>>& points, float value) {
  if constexpr (kType == QuantType::kFP4)
    return (kFp4Ascending >> (4 * CountBelow(points, fabsf(value))) & 15) + (value < 0 ? 8 : 0);
  return CountBelow(points, value);
}

template <QuantType kType>
__global__ void __launch_bounds__(kThreads)
    QuantizeKernel(ParamView values, int64_t count, int64_t block, const float* code_book, uint8_t* codes,
                   float* absmax) {
  __shared__ Midpoints<kTableSize<kType>> points;
  for (int i = static_cast<int>(threadIdx.x); i < kTableSize<kType>; i += kThreads)
    points.middle[i] =
        i + 1 < kLevels<kType> ? (Level<kType>(code_book, i) + Level<kType>(code_book, i + 1)) / 2 : INFINITY;
  __syncthreads();
  const int64_t b = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32, first = b * block;
  if (first >= count) return;
  const int64_t end = Min(count, first + block);
  const int lane = static_cast<int>(threadIdx.x % 32);
  float largest = 0;
  for (int64_t i = first + lane; i < end; i += 32) largest = fmaxf(largest, fabsf(GetParam(values, i)));
  largest = WarpMax(largest);
  if (lane == 0) absmax[b] = largest;
  const float reciprocal = largest == 0 ? 0.0f : 1.0f / largest;
  constexpr unsigned kZero = kType == QuantType::kFP4 ? 0 : kType == QuantType::kINT8 ? 127 : 7;
  // A lane codes two neighbours: one byte, or two.
  for (int64_t i = first + lane * 2; i < end; i += 64) {
    unsigned pair[2];
    for (int j = 0; j < 2; ++j)
      pair[j] =
          largest == 0 || i + j >= end ? kZero : Encode<kType>(points, GetParam(values, i + j) * reciprocal);
    if constexpr (kType == QuantType::kINT8) {
      codes[i] = static_cast<uint8_t>(pair[0]);
      if (i + 1 < end) codes[i + 1] = static_cast<uint8_t>(pair[1]);
    } else {
      codes[i / 2] = static_cast<uint8_t>(pair[0] << 4 | pair[1]);
    }
  }
}

// The mean is defined as a sum in double in order. One thread adds; the others fetch for it.
__global__ void __launch_bounds__(kThreads) MeanKernel(const float* values, int64_t count, float* mean) {
  __shared__ float part[kThreads * 8];
  double sum = 0;
  for (int64_t first = 0; first < count; first += kThreads * 8) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kThreads * 8; i += kThreads)
      part[i] = first + i < count ? values[first + i] : 0.0f;  // adding zeros changes nothing
    __syncthreads();
    if (threadIdx.x == 0) {
#pragma unroll 8
      for (int i = 0; i < kThreads * 8; ++i) sum += static_cast<double>(part[i]);
    }
  }
  if (threadIdx.x == 0) *mean = count == 0 ? 0.0f : static_cast<float>(sum / static_cast<double>(count));
}

static_assert(kNestedBlock == kThreads);

__global__ void __launch_bounds__(kThreads)
    NestedKernel(const float* absmax, int64_t blocks, const float* signed_map, uint8_t* codes,
                 float* nested_absmax, const float* offset) {
  __shared__ Midpoints<256> points;
  __shared__ float warps[kThreads / 32];
  const int i = static_cast<int>(threadIdx.x);
  points.middle[i] = i < 255 ? (signed_map[i] + signed_map[i + 1]) / 2 : INFINITY;
  const int64_t at = int64_t{blockIdx.x} * kThreads + i;
  const float value = at < blocks ? absmax[at] - *offset : 0.0f;
  const float of_warp = WarpMax(fabsf(value));
  if (i % 32 == 0) warps[i / 32] = of_warp;
  __syncthreads();
  float largest = 0;
  for (const float other : warps) largest = fmaxf(largest, other);
  if (i == 0) nested_absmax[blockIdx.x] = largest;
  const float reciprocal = largest == 0 ? 0.0f : 1.0f / largest;
  if (at < blocks) codes[at] = static_cast<uint8_t>(CountBelow(points, value * reciprocal));
}

}  // namespace

void Quantize(Context* ctx, ParamView values, int64_t count, QuantType type, int64_t block,
              const float* code_book, uint8_t* codes, float* absmax) {
  KERNEL_CHECK(IsQuantized(type) && block > 0 && block % 2 == 0);
  const auto kernel = type == QuantType::kNF4    ? QuantizeKernel<QuantType::kNF4>
                      : type == QuantType::kFP4  ? QuantizeKernel<QuantType::kFP4>
                      : type == QuantType::kINT4 ? QuantizeKernel<QuantType::kINT4>
                                                 : QuantizeKernel<QuantType::kINT8>;
  Launch(ctx, Blocks(CeilDiv(count, block), kThreads / 32), kThreads, 0, kernel, values, count, block,
         code_book, codes, absmax);
}

void QuantizeAbsmax(Context* ctx, const float* absmax, int64_t blocks, const float* signed_map,
                    uint8_t* codes, float* nested_absmax, float* offset) {
  Launch(ctx, 1, kThreads, 0, MeanKernel, absmax, blocks, offset);
  Launch(ctx, Blocks(blocks, kThreads), kThreads, 0, NestedKernel, absmax, blocks, signed_map, codes,
         nested_absmax, offset);
}

}  // namespace nibble::kernels::NIBBLE_CUDA

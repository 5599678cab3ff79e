// Dequantization at the speed of memory. A thread decodes eight neighbouring weights at a time: four bytes of
// codes in, one 16-byte store out, so that the lanes of a warp write 512 bytes in a row; four such steps are
// independent of each other, which keeps enough loads on their way. Codes are read once and say so; the
// decoded panel is left to the cache, for the product that reads it next.
#include "kernels/cuda/decode.h"
#include "kernels/cuda/ops.h"

namespace nibble::kernels::NIBBLE_CUDA {
namespace {

constexpr int kThreads = 256;
constexpr int kSteps = 4;
constexpr int kStride = kThreads * 8;  // from a step to the next
constexpr int64_t kPerBlock = kSteps * kStride;

// How eight weights are fetched, and what of.
enum class Kind { kFourBit, kFourBitNested, kEightBit, kBF16, kF32 };

template <Kind kKind>
struct Fetch;

template <bool kNested>
struct FetchFourBit {
  static constexpr int kTableSize = 16;
  uint32_t codes;
  float absmax;
  __device__ __forceinline__ void Load(const WeightView& w, int64_t at, int block_shift) {
    codes = __ldcs(reinterpret_cast<const unsigned*>(static_cast<const uint8_t*>(w.data) + at / 2));
    if constexpr (kNested)
      absmax = NestedAbsmax(w, at >> block_shift);
    else
      absmax = __ldg(w.absmax + (at >> block_shift));
  }
  __device__ __forceinline__ void Decode(float (&values)[8], const float* table) const {
    Decode8(values, codes, table, absmax);
  }
};
template <>
struct Fetch<Kind::kFourBit> : FetchFourBit<false> {};
template <>
struct Fetch<Kind::kFourBitNested> : FetchFourBit<true> {};

template <>
struct Fetch<Kind::kEightBit> {
  static constexpr int kTableSize = 256;
  uint2 codes;
  float absmax;
  __device__ __forceinline__ void Load(const WeightView& w, int64_t at, int block_shift) {
    codes = __ldcs(reinterpret_cast<const uint2*>(static_cast<const uint8_t*>(w.data) + at));
    absmax = AbsmaxOf(w, at >> block_shift);
  }
  __device__ __forceinline__ void Decode(float (&values)[8], const float* table) const {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      values[i] = __fmul_rn(table[(i < 4 ? codes.x : codes.y) >> (8 * (i % 4)) & 255], absmax);
  }
};

template <typename Stored>
struct FetchPlain {
  static constexpr int kTableSize = 1;  // unused
  float loaded[8];
  __device__ __forceinline__ void Load(const WeightView& w, int64_t at, int) {
    Load8(loaded, static_cast<const Stored*>(w.data) + at, 8, true);
  }
  __device__ __forceinline__ void Decode(float (&values)[8], const float*) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = loaded[i];
  }
};
template <>
struct Fetch<Kind::kBF16> : FetchPlain<BF16> {};
template <>
struct Fetch<Kind::kF32> : FetchPlain<float> {};

// blockIdx.y is a row of the panel, or the only one when whole rows are decoded: then they are one long row.
// `first` is the flat index of the panel's first weight, `stride` from one row to the next.
template <typename Act, Kind kKind>
__global__ void __launch_bounds__(kThreads)
    DecodeKernel(Act* out, WeightView w, int64_t first, int64_t stride, int64_t columns, int block_shift) {
  constexpr int kTableSize = Fetch<kKind>::kTableSize;
  __shared__ float table[kTableSize];
  if constexpr (kTableSize > 1) {
    if (threadIdx.x < kTableSize) table[threadIdx.x] = w.code_book[threadIdx.x];
    __syncthreads();
  }
  const int64_t begin = int64_t{blockIdx.x} * kPerBlock + threadIdx.x * 8;
  first += blockIdx.y * stride + begin;
  out += blockIdx.y * columns + begin;
  const int64_t left = columns - begin;
  if (left <= 0) return;
  // All loads go out before the first is waited for: no branch is between them, what is beyond the end
  // reads the last eight again.
  Fetch<kKind> fetched[kSteps];
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
    fetched[step].Load(w, first + Min<int64_t>(step * kStride, left - 8), block_shift);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    float values[8];
    fetched[step].Decode(values, table);
    if (step * kStride < left) Store8(out + step * kStride, values, 8, true);
  }
}

// Any shape, any alignment, one weight per thread.
template <typename Act>
__global__ void __launch_bounds__(kThreads)
    DecodeAnyKernel(Act* out, WeightView w, int64_t first, int64_t stride, int64_t columns) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column >= columns) return;
  const int64_t at = first + blockIdx.y * stride + column;
  const auto* codes = static_cast<const uint8_t*>(w.data);
  float value;
  switch (w.type) {
    case QuantType::kF32:
      value = static_cast<const float*>(w.data)[at];
      break;
    case QuantType::kBF16:
      value = Get(static_cast<const BF16*>(w.data) + at);
      break;
    case QuantType::kINT8:
      value = __fmul_rn(w.code_book[codes[at]], AbsmaxOf(w, at / w.block));
      break;
    default:
      value = __fmul_rn(w.code_book[codes[at / 2] >> (at % 2 == 0 ? 4 : 0) & 15], AbsmaxOf(w, at / w.block));
  }
  Put(out + blockIdx.y * columns + column, value);
}

template <typename Act, Kind kKind>
void LaunchFast(Context* ctx, Act* out, const WeightView& w, int64_t first, int64_t rows, int64_t columns) {
  Launch(ctx, dim3(Blocks(columns, kPerBlock), static_cast<unsigned>(rows)), kThreads, 0,
         DecodeKernel<Act, kKind>, out, w, first, w.k, columns, ShiftOf(w.block));
}

// The grid's y ends at 65535.
constexpr int64_t kMostRows = 65535;

}  // namespace

template <typename Act>
void DecodePanel(Context* ctx, Act* out, const WeightView& w, int64_t n0, int64_t rows, int64_t k0,
                 int64_t columns) {
  KERNEL_CHECK(n0 >= 0 && rows >= 0 && n0 + rows <= w.n && k0 >= 0 && columns >= 0 && k0 + columns <= w.k);
  const bool plain = w.type == QuantType::kBF16 || w.type == QuantType::kF32;
  const bool fast = w.k % 8 == 0 && k0 % 8 == 0 && columns % 8 == 0 && Aligned(out, w.data) &&
                    (plain || (ShiftOf(w.block) >= 3));
  int64_t first = n0 * w.k + k0;
  if (columns == w.k) {
    columns *= rows;
    rows = 1;
  }
  for (; rows > 0; rows -= kMostRows, first += kMostRows * w.k, out += kMostRows * columns) {
    const int64_t part = Min(rows, kMostRows);
    if (!fast)
      Launch(ctx, dim3(Blocks(columns, kThreads), static_cast<unsigned>(part)), kThreads, 0,
             DecodeAnyKernel<Act>, out, w, first, w.k, columns);
    else if (w.type == QuantType::kBF16)
      LaunchFast<Act, Kind::kBF16>(ctx, out, w, first, part, columns);
    else if (w.type == QuantType::kF32)
      LaunchFast<Act, Kind::kF32>(ctx, out, w, first, part, columns);
    else if (w.type == QuantType::kINT8)
      LaunchFast<Act, Kind::kEightBit>(ctx, out, w, first, part, columns);
    else if (w.absmax == nullptr)
      LaunchFast<Act, Kind::kFourBitNested>(ctx, out, w, first, part, columns);
    else
      LaunchFast<Act, Kind::kFourBit>(ctx, out, w, first, part, columns);
  }
}

template <typename Act>
void DecodeWeight(Context* ctx, void* out, const WeightView& w, int64_t n0, int64_t rows) {
  DecodePanel(ctx, static_cast<Act*>(out), w, n0, rows, 0, w.k);
}

#define INSTANTIATE(Act)                                                                                 \
  template void DecodePanel<Act>(Context*, Act*, const WeightView&, int64_t, int64_t, int64_t, int64_t); \
  template void DecodeWeight<Act>(Context*, void*, const WeightView&, int64_t, int64_t);
INSTANTIATE(BF16)
INSTANTIATE(FP16)
#undef INSTANTIATE

}  // namespace nibble::kernels::NIBBLE_CUDA

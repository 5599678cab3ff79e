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

// A panel's part in one matrix. When whole rows are decoded they are one long row.
struct Part {
  WeightView w;
  void* out;         // act, dense
  int64_t first;     // flat index of the first weight; w.k from one row to the next
  int64_t rows, columns;
};
struct Parts {
  Part of[kMostGrouped];
};

// blockIdx.y is a row of a part, z which part.
template <typename Act, Kind kKind>
__global__ void __launch_bounds__(kThreads)
    DecodeKernel(const __grid_constant__ Parts parts, int block_shift) {
  const Part& part = parts.of[blockIdx.z];
  if (blockIdx.y >= part.rows) return;
  const WeightView& w = part.w;
  constexpr int kTableSize = Fetch<kKind>::kTableSize;
  __shared__ float table[kTableSize];
  if constexpr (kTableSize > 1) {
    if (threadIdx.x < kTableSize) table[threadIdx.x] = w.code_book[threadIdx.x];
    __syncthreads();
  }
  const int64_t begin = int64_t{blockIdx.x} * kPerBlock + threadIdx.x * 8;
  const int64_t first = part.first + blockIdx.y * w.k + begin;
  Act* out = static_cast<Act*>(part.out) + blockIdx.y * part.columns + begin;
  const int64_t left = part.columns - begin;
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

// The grid's y ends at 65535.
constexpr int64_t kMostRows = 65535;

bool IsFast(const Part& part) {
  const WeightView& w = part.w;
  const bool plain = w.type == QuantType::kBF16 || w.type == QuantType::kF32;
  return w.k % 8 == 0 && part.first % 8 == 0 && part.columns % 8 == 0 && part.rows <= kMostRows &&
         Aligned(part.out, w.data) && (plain || ShiftOf(w.block) >= 3);
}

Kind KindOf(const WeightView& w) {
  if (w.type == QuantType::kBF16) return Kind::kBF16;
  if (w.type == QuantType::kF32) return Kind::kF32;
  if (w.type == QuantType::kINT8) return Kind::kEightBit;
  return w.absmax == nullptr ? Kind::kFourBitNested : Kind::kFourBit;
}

template <typename Act, Kind kKind>
void LaunchFast(Context* ctx, const Parts& parts, int count) {
  dim3 grid(0, 0, static_cast<unsigned>(count));
  for (int i = 0; i < count; ++i) {
    grid.x = Max(grid.x, Blocks(parts.of[i].columns, kPerBlock));
    grid.y = Max(grid.y, static_cast<unsigned>(parts.of[i].rows));
  }
  Launch(ctx, grid, kThreads, 0, DecodeKernel<Act, kKind>, parts, ShiftOf(parts.of[0].w.block));
}

template <typename Act>
void LaunchFast(Context* ctx, const Parts& parts, int count) {
  switch (KindOf(parts.of[0].w)) {
    case Kind::kBF16:
      return LaunchFast<Act, Kind::kBF16>(ctx, parts, count);
    case Kind::kF32:
      return LaunchFast<Act, Kind::kF32>(ctx, parts, count);
    case Kind::kEightBit:
      return LaunchFast<Act, Kind::kEightBit>(ctx, parts, count);
    case Kind::kFourBitNested:
      return LaunchFast<Act, Kind::kFourBitNested>(ctx, parts, count);
    case Kind::kFourBit:
      return LaunchFast<Act, Kind::kFourBit>(ctx, parts, count);
  }
}

template <typename Act>
void LaunchAny(Context* ctx, const Part& part) {
  auto* out = static_cast<Act*>(part.out);
  int64_t first = part.first;
  for (int64_t rows = part.rows; rows > 0; rows -= kMostRows) {
    const int64_t some = Min(rows, kMostRows);
    Launch(ctx, dim3(Blocks(part.columns, kThreads), static_cast<unsigned>(some)), kThreads, 0,
           DecodeAnyKernel<Act>, out, part.w, first, part.w.k, part.columns);
    first += some * part.w.k;
    out += some * part.columns;
  }
}

}  // namespace

template <typename Act>
void DecodePanel(Context* ctx, Act* out, const WeightView* w, int count, int64_t n0, int64_t rows, int64_t k0,
                 int64_t columns) {
  KERNEL_CHECK(n0 >= 0 && rows >= 0 && k0 >= 0 && columns >= 0 && k0 + columns <= w->k);
  KERNEL_CHECK(count <= kMostGrouped);
  Parts parts{};
  int used = 0;
  bool alike = true;
  for (int i = 0; i < count && rows > 0; n0 -= w[i].n, ++i) {
    KERNEL_CHECK(w[i].k == w->k && w[i].order == WeightOrder::kFlat);
    if (n0 >= w[i].n) continue;
    Part part{w[i], out, n0 * w->k + k0, Min(rows, w[i].n - n0), columns};
    rows -= part.rows;
    n0 += part.rows;
    out += part.rows * columns;
    if (columns == w->k) {
      part.columns *= part.rows;
      part.rows = 1;
    }
    alike = alike && IsFast(part) && (used == 0 || (KindOf(part.w) == KindOf(parts.of[0].w) &&
                                                    part.w.block == parts.of[0].w.block));
    parts.of[used++] = part;
  }
  KERNEL_CHECK(rows == 0);
  if (alike && used > 0) return LaunchFast<Act>(ctx, parts, used);
  for (int i = 0; i < used; ++i) {
    Parts one{};
    one.of[0] = parts.of[i];
    if (IsFast(one.of[0]))
      LaunchFast<Act>(ctx, one, 1);
    else
      LaunchAny<Act>(ctx, one.of[0]);
  }
}

template <typename Act>
void DecodePanel(Context* ctx, Act* out, const WeightView& w, int64_t n0, int64_t rows, int64_t k0,
                 int64_t columns) {
  DecodePanel(ctx, out, &w, 1, n0, rows, k0, columns);
}

template <typename Act>
void DecodeWeight(Context* ctx, void* out, const WeightView& w, int64_t n0, int64_t rows) {
  DecodePanel(ctx, static_cast<Act*>(out), w, n0, rows, 0, w.k);
}

#define INSTANTIATE(Act)                                                                                 \
  template void DecodePanel<Act>(Context*, Act*, const WeightView&, int64_t, int64_t, int64_t, int64_t); \
  template void DecodePanel<Act>(Context*, Act*, const WeightView*, int, int64_t, int64_t, int64_t,      \
                                 int64_t);                                                               \
  template void DecodeWeight<Act>(Context*, void*, const WeightView&, int64_t, int64_t);
INSTANTIATE(BF16)
INSTANTIATE(FP16)
#undef INSTANTIATE

}  // namespace nibble::kernels::NIBBLE_CUDA

// Dequantization at the speed of memory. A thread decodes eight neighbouring weights at a time: four bytes of
// codes in, one 16-byte store out, so that the lanes of a warp write 512 bytes in a row; four such steps are
// independent of each other, which keeps enough loads on their way. Eights are counted through the rows of what
// is decoded, whose output is dense, so a panel of narrow columns keeps every thread as busy as whole rows do.
// Codes are read once and say so; the decoded panel is left to the cache, for the product that reads it next.
#include "kernels/cuda/decode.h"
#include "kernels/cuda/ops.h"

namespace nibble::kernels::NIBBLE_CUDA {
namespace {

constexpr int kThreads = 256;
constexpr int kSteps = 4;
constexpr unsigned kPerBlock = kThreads * kSteps;  // eights

// How eight weights are fetched, and what of.
enum class Kind { kFourBit, kFourBitNested, kEightBit, kBF16, kF32 };

template <Kind kKind>
struct Fetch;

template <bool kNested>
struct FetchFourBit {
  static constexpr int kTableSize = 16;
  uint32_t codes;
  float absmax;
  // `at` counts eights, and so does `block_shift`: eights of a block.
  __device__ __forceinline__ void Load(const WeightView& w, unsigned at, int block_shift) {
    codes = __ldcs(static_cast<const unsigned*>(w.data) + at);
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
  __device__ __forceinline__ void Load(const WeightView& w, unsigned at, int block_shift) {
    codes = __ldcs(static_cast<const uint2*>(w.data) + at);
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
  __device__ __forceinline__ void Load(const WeightView& w, unsigned at, int) {
    Load8(loaded, static_cast<const Stored*>(w.data) + uint64_t{at} * 8, 8, true);
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

// The same counted in eights, as the kernel takes it.
struct Eights {
  WeightView w;
  void* out;
  unsigned first, row;  // of the weight: the first one, and from a row to the next
  unsigned columns, all;
  // A number below 2^31 over `columns` is number * reciprocal >> 32 >> shift: the reciprocal is rounded up.
  unsigned reciprocal, shift;
};
struct Batch {
  Eights of[kMostGrouped];
};

// blockIdx.y is which part.
template <typename Act, Kind kKind>
__global__ void __launch_bounds__(kThreads)
    DecodeKernel(const __grid_constant__ Batch batch, int block_shift) {
  const Eights& part = batch.of[blockIdx.y];
  const unsigned first = blockIdx.x * kPerBlock + threadIdx.x, all = part.all;
  if (blockIdx.x * kPerBlock >= all) return;
  const WeightView& w = part.w;
  constexpr int kTableSize = Fetch<kKind>::kTableSize;
  __shared__ float table[kTableSize];
  // All loads go out before the first is waited for: no branch is between them, what is beyond the end
  // reads the last eight again.
  Fetch<kKind> fetched[kSteps];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const unsigned eight = Min(first + step * kThreads, all - 1);
    const auto row = static_cast<unsigned>(uint64_t{eight} * part.reciprocal >> 32) >> part.shift;
    fetched[step].Load(w, part.first + eight + row * (part.row - part.columns), block_shift);
  }
  if constexpr (kTableSize > 1) {
    if (threadIdx.x < kTableSize) table[threadIdx.x] = w.code_book[threadIdx.x];
    __syncthreads();
  }
  Act* out = static_cast<Act*>(part.out) + uint64_t{first} * 8;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    float values[8];
    fetched[step].Decode(values, table);
    if (first + step * kThreads < all) Store8(out + step * kThreads * 8, values, 8, true);
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
  // Of one eight to a row EightsOf has no reciprocal.
  return w.k % 8 == 0 && part.first % 8 == 0 && part.columns % 8 == 0 && (part.columns > 8 || part.rows == 1) &&
         w.n * w.k / 8 < int64_t{1} << 31 && Aligned(part.out, w.data) && (plain || ShiftOf(w.block) >= 3);
}

Eights EightsOf(const Part& part) {
  Eights of{};
  of.w = part.w;
  of.out = part.out;
  of.first = static_cast<unsigned>(part.first / 8);
  of.columns = static_cast<unsigned>(part.columns / 8);
  of.row = part.rows > 1 ? static_cast<unsigned>(part.w.k / 8) : of.columns;
  of.all = static_cast<unsigned>(part.rows) * of.columns;
  // Granlund, Montgomery: Division by invariant integers using multiplication (1994), for 31 bits. One row needs
  // none: its reciprocal is 0.
  if (part.rows == 1) return of;
  int bits = 1;
  while ((int64_t{1} << bits) < of.columns) ++bits;
  of.shift = static_cast<unsigned>(bits - 1);
  of.reciprocal = static_cast<unsigned>(CeilDiv(uint64_t{1} << (31 + bits), uint64_t{of.columns}));
  return of;
}

Kind KindOf(const WeightView& w) {
  if (w.type == QuantType::kBF16) return Kind::kBF16;
  if (w.type == QuantType::kF32) return Kind::kF32;
  if (w.type == QuantType::kINT8) return Kind::kEightBit;
  return w.absmax == nullptr ? Kind::kFourBitNested : Kind::kFourBit;
}

template <typename Act, Kind kKind>
void LaunchFast(Context* ctx, const Part* parts, int count) {
  Batch batch{};
  dim3 grid(0, static_cast<unsigned>(count));
  for (int i = 0; i < count; ++i) {
    batch.of[i] = EightsOf(parts[i]);
    grid.x = Max(grid.x, Blocks(batch.of[i].all, kPerBlock));
  }
  Launch(ctx, grid, kThreads, 0, DecodeKernel<Act, kKind>, batch, Max(0, ShiftOf(parts[0].w.block) - 3));
}

template <typename Act>
void LaunchFast(Context* ctx, const Part* parts, int count) {
  switch (KindOf(parts[0].w)) {
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
  Part parts[kMostGrouped];
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
    alike = alike && IsFast(part) &&
            (used == 0 || (KindOf(part.w) == KindOf(parts[0].w) && part.w.block == parts[0].w.block));
    parts[used++] = part;
  }
  KERNEL_CHECK(rows == 0);
  if (alike && used > 0) return LaunchFast<Act>(ctx, parts, used);
  for (int i = 0; i < used; ++i) {
    if (IsFast(parts[i]))
      LaunchFast<Act>(ctx, &parts[i], 1);
    else
      LaunchAny<Act>(ctx, parts[i]);
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

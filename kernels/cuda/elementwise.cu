// Ops that look at every element once: sums of two arrays, gated activations, columns, embedding, rotary
// embedding, conversion. Each thread takes eight neighbouring elements, in and out by 16-byte accesses.
#include "kernels/cuda/eights.h"
#include "kernels/cuda/ops.h"

namespace nibble::kernels::NIBBLE_CUDA {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kPerBlock = kThreads * 8;

__device__ __forceinline__ int64_t FirstOfThread() {
  return (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 8;
}

template <typename Act>
__global__ void __launch_bounds__(kThreads)
    AddKernel(Act* out, const Act* a, const Act* b, int64_t count, bool vector) {
  const int64_t first = FirstOfThread();
  float values[2][8];
  LoadEights(values, {a + first, b + first}, count - first, vector);
#pragma unroll
  for (int i = 0; i < 8; ++i) values[0][i] += values[1][i];
  Store8(out + first, values[0], count - first, vector);
}

// activation(g) and its slope.
struct Activated {
  float value, slope;
};

__device__ __forceinline__ Activated Activate(float g, Activation activation) {
  if (activation == Activation::kSilu) {
    const float sigmoid = __fdividef(1.0f, 1.0f + __expf(-g));
    return {g * sigmoid, sigmoid * (1.0f + g * (1.0f - sigmoid))};
  }
  const float c = 0.7978845608028654f, a = 0.044715f;
  // tanh(z) = 1 - 2 / (exp(2z) + 1): exact enough for 16 bits, and right at both ends.
  // Beyond 64 it is g, or nothing, in every precision; powers would overflow beside a factor of zero.
  const float near = g > 64 ? 64 : g < -64 ? -64 : g;
  const float z = c * (near + a * near * near * near);
  const float t = 1.0f - __fdividef(2.0f, __expf(2.0f * z) + 1.0f);
  return {g / 2 * (1.0f + t), (1.0f + t) / 2 + near / 2 * (1.0f - t * t) * c * (1.0f + 3 * a * near * near)};
}

// Eight neighbours of a row: where they are in the dense arrays and in those with a stride, and how many are
// left from there to the row's end.
struct Eight {
  int64_t dense, strided, left;
};
__device__ __forceinline__ Eight EightOfThread(const GatedArgs& args) {
  const unsigned index = blockIdx.x * kThreads + threadIdx.x;
  if (args.rows == 1) return {int64_t{index} * 8, int64_t{index} * 8, args.width - int64_t{index} * 8};
  const auto per_row = static_cast<unsigned>(CeilDiv<int64_t>(args.width, 8));
  const unsigned row = index / per_row;
  const int64_t column = int64_t{index % per_row} * 8;
  return {row * args.width + column, row * args.stride + column, row < args.rows ? args.width - column : 0};
}

template <typename Act>
__global__ void __launch_bounds__(kThreads)
    GatedForwardKernel(Act* out, const Act* gate, const Act* up, GatedArgs args, bool vector) {
  const Eight at = EightOfThread(args);
  float values[2][8];
  LoadEights(values, {gate + at.strided, up + at.strided}, at.left, vector);
  auto &g = values[0], &u = values[1];
#pragma unroll
  for (int i = 0; i < 8; ++i) g[i] = Activate(g[i], args.activation).value * u[i];
  Store8(out + at.dense, g, at.left, vector);
}

template <typename Act>
__global__ void __launch_bounds__(kThreads)
    GatedBackwardKernel(Act* dgate, Act* dup, const Act* dout, const Act* gate, const Act* up, GatedArgs args,
                        bool vector) {
  const Eight at = EightOfThread(args);
  float values[3][8];
  LoadEights(values, {gate + at.strided, up + at.strided, dout + at.dense}, at.left, vector);
  auto &g = values[0], &u = values[1], &d = values[2];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const Activated of = Activate(g[i], args.activation);
    g[i] = d[i] * u[i] * of.slope;
    u[i] = d[i] * of.value;
  }
  Store8(dgate + at.strided, g, at.left, vector);
  Store8(dup + at.strided, u, at.left, vector);
}

// A thread has eight neighbours of a row of all; `vector`: they are of one part, and so is what a store takes.
template <typename Act, bool kJoin>
__global__ void __launch_bounds__(kThreads)
    ColumnsKernel(Act* all, ColumnsArgs args, unsigned width, bool vector) {
  const unsigned per_row = CeilDiv(width, 8u), index = blockIdx.x * kThreads + threadIdx.x;
  const unsigned row = index / per_row, first = index % per_row * 8;
  if (row >= args.rows) return;
  Act* const at = all + int64_t{row} * width + first;
  // Without an index that is not known here, for which the arguments would be copied to a stack.
  const auto part_of = [&](unsigned column) {
    int64_t left = column, columns = args.width[0];
    void* part = args.part[0];
#pragma unroll
    for (int p = 1; p < kMostColumns; ++p) {
      if (left < columns) continue;
      left -= columns;
      columns = args.width[p];
      part = args.part[p];
    }
    return static_cast<Act*>(part) + int64_t{row} * columns + left;
  };
  if (vector) {
    Act* const part = part_of(first);
    if constexpr (kJoin) {
      StoreVector(at, VectorAt<uint4>(part));
    } else {
      StoreVector(part, VectorAt<uint4>(at));
    }
    return;
  }
  for (unsigned i = 0; i < 8 && first + i < width; ++i) {
    Act* const part = part_of(first + i);
    if constexpr (kJoin) {
      at[i] = *part;
    } else {
      *part = at[i];
    }
  }
}

template <typename Act>
__global__ void __launch_bounds__(kThreads)
    ToActKernel(Act* out, const float* in, int64_t count, bool vector) {
  const int64_t first = FirstOfThread();
  float x[8];
  Load8(x, in + first, count - first, vector);
  Store8(out + first, x, count - first, vector);
}

// A thread has eight neighbours of a token's row; narrow rows stand side by side in a block.
template <typename Act>
__global__ void __launch_bounds__(kThreads)
    EmbeddingKernel(Act* out, const int32_t* ids, ParamView table, unsigned m, unsigned dim, float scale,
                    bool vector) {
  const unsigned per_row = CeilDiv(dim, 8u), index = blockIdx.x * kThreads + threadIdx.x;
  const unsigned row = index / per_row, column = index % per_row * 8;
  if (row >= m) return;
  float x[8];
  LoadParam8(x, table, int64_t{ids[row]} * dim + column, dim - column, vector);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] *= scale;
  Store8(out + int64_t{row} * dim + column, x, dim - column, vector);
}

// A thread turns kPairs neighbouring pairs of one head: (i, i + half), (i + 1, i + 1 + half), ...
template <typename Act, int kPairs>
__global__ void __launch_bounds__(kThreads)
    RopeKernel(Act* x, const int32_t* positions, const float* cos_sin, unsigned rows_heads, unsigned heads,
               unsigned head_dim, unsigned half, float sign) {
  const unsigned per_head = half / kPairs;
  const unsigned index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= rows_heads * per_head) return;
  const unsigned head = index / per_head, first = index % per_head * kPairs;
  Act* low = x + int64_t{head} * head_dim + first;
  const float* angles = cos_sin + (int64_t{positions[head / heads]} * half + first) * 2;
  float a[kPairs], b[kPairs], turn[2 * kPairs];
  if constexpr (kPairs == 8) {
    Load8(a, low, 8, true);
    Load8(b, low + half, 8, true);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 two = __ldg(reinterpret_cast<const float4*>(angles) + i);
      turn[4 * i] = two.x, turn[4 * i + 1] = two.y, turn[4 * i + 2] = two.z, turn[4 * i + 3] = two.w;
    }
  } else {
    a[0] = Get(low), b[0] = Get(low + half);
    turn[0] = angles[0], turn[1] = angles[1];
  }
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const float c = turn[2 * i], s = sign * turn[2 * i + 1], before = a[i];
    a[i] = before * c - b[i] * s;
    b[i] = b[i] * c + before * s;
  }
  if constexpr (kPairs == 8) {
    Store8(low, a, 8, true);
    Store8(low + half, b, 8, true);
  } else {
    Put(low, a[0]);
    Put(low + half, b[0]);
  }
}

}  // namespace

template <typename Act>
void Add(Context* ctx, void* out, const void* a, const void* b, int64_t count) {
  Launch(ctx, Blocks(count, kPerBlock), kThreads, 0, AddKernel<Act>, static_cast<Act*>(out),
         static_cast<const Act*>(a), static_cast<const Act*>(b), count, Aligned(out, a, b));
}

namespace {

// Dense arrays become one row. Returns the eights.
int64_t Flatten(GatedArgs* args) {
  if (args->stride == 0 || args->stride == args->width) {
    args->width *= args->rows;
    args->stride = args->width;
    args->rows = 1;
  }
  const int64_t eights = args->rows * CeilDiv<int64_t>(args->width, 8);
  KERNEL_CHECK(eights < int64_t{1} << 32);
  return eights;
}
// Rows that begin where eights may.
bool VectorRows(const GatedArgs& args) {
  return args.rows == 1 || (args.width % 8 == 0 && args.stride % 8 == 0);
}

}  // namespace

template <typename Act>
void GatedForward(Context* ctx, void* out, const void* gate, const void* up, const GatedArgs& given) {
  GatedArgs args = given;
  const int64_t eights = Flatten(&args);
  Launch(ctx, Blocks(eights, kThreads), kThreads, 0, GatedForwardKernel<Act>, static_cast<Act*>(out),
         static_cast<const Act*>(gate), static_cast<const Act*>(up), args,
         VectorRows(args) && Aligned(out, gate, up));
}

template <typename Act>
void GatedBackward(Context* ctx, void* dgate, void* dup, const void* dout, const void* gate, const void* up,
                   const GatedArgs& given) {
  GatedArgs args = given;
  const int64_t eights = Flatten(&args);
  Launch(ctx, Blocks(eights, kThreads), kThreads, 0, GatedBackwardKernel<Act>, static_cast<Act*>(dgate),
         static_cast<Act*>(dup), static_cast<const Act*>(dout), static_cast<const Act*>(gate),
         static_cast<const Act*>(up), args, VectorRows(args) && Aligned(dgate, dup, dout, gate, up));
}

namespace {

template <typename Act, bool kJoin>
void MoveColumns(Context* ctx, Act* all, const ColumnsArgs& args) {
  const auto width = static_cast<unsigned>(args.AllWidth());
  const int64_t eights = args.rows * CeilDiv<int64_t>(width, 8);
  KERNEL_CHECK(width > 0 && eights < int64_t{1} << 32);
  bool vector = Aligned(all, args.part[0], args.part[1], args.part[2]);
  for (const int64_t columns : args.width) vector = vector && columns % 8 == 0;
  Launch(ctx, Blocks(eights, kThreads), kThreads, 0, ColumnsKernel<Act, kJoin>, all, args, width, vector);
}

}  // namespace

template <typename Act>
void SplitColumns(Context* ctx, const void* all, const ColumnsArgs& args) {
  MoveColumns<Act, false>(ctx, static_cast<Act*>(const_cast<void*>(all)), args);
}

template <typename Act>
void JoinColumns(Context* ctx, void* all, const ColumnsArgs& args) {
  MoveColumns<Act, true>(ctx, static_cast<Act*>(all), args);
}

template <typename Act>
void ToAct(Context* ctx, void* out, const void* in, int64_t count) {
  Launch(ctx, Blocks(count, kPerBlock), kThreads, 0, ToActKernel<Act>, static_cast<Act*>(out),
         static_cast<const float*>(in), count, Aligned(out, in));
}

template <typename Act>
void EmbeddingForward(Context* ctx, void* out, const int32_t* ids, ParamView table, int64_t m, int64_t dim,
                      float scale) {
  const int64_t eights = m * CeilDiv<int64_t>(dim, 8);
  KERNEL_CHECK(eights < int64_t{1} << 32);
  Launch(ctx, Blocks(eights, kThreads), kThreads, 0, EmbeddingKernel<Act>, static_cast<Act*>(out), ids, table,
         static_cast<unsigned>(m), static_cast<unsigned>(dim), scale,
         dim % 8 == 0 && Aligned(out, table.data));
}

template <typename Act>
void Rope(Context* ctx, void* x, const int32_t* positions, const float* cos_sin, int64_t m, int64_t heads,
          int64_t head_dim, int64_t rotary_dim, bool inverse) {
  const float sign = inverse ? -1.0f : 1.0f;
  const int64_t pairs = m * heads * (rotary_dim / 2);
  KERNEL_CHECK(pairs < int64_t{1} << 31);
  const auto rows_heads = static_cast<unsigned>(m * heads), half = static_cast<unsigned>(rotary_dim / 2);
  const bool vector = rotary_dim % 16 == 0 && head_dim % 8 == 0 && Aligned(x, cos_sin);
  Launch(ctx, Blocks(pairs, vector ? kThreads * 8 : kThreads), kThreads, 0,
         vector ? RopeKernel<Act, 8> : RopeKernel<Act, 1>, static_cast<Act*>(x), positions, cos_sin,
         rows_heads, static_cast<unsigned>(heads), static_cast<unsigned>(head_dim), half, sign);
}

#define INSTANTIATE(Act)                                                                                    \
  template void Add<Act>(Context*, void*, const void*, const void*, int64_t);                               \
  template void GatedForward<Act>(Context*, void*, const void*, const void*, const GatedArgs&);             \
  template void GatedBackward<Act>(Context*, void*, void*, const void*, const void*, const void*,           \
                                   const GatedArgs&);                                                       \
  template void SplitColumns<Act>(Context*, const void*, const ColumnsArgs&);                               \
  template void JoinColumns<Act>(Context*, void*, const ColumnsArgs&);                                      \
  template void EmbeddingForward<Act>(Context*, void*, const int32_t*, ParamView, int64_t, int64_t, float); \
  template void Rope<Act>(Context*, void*, const int32_t*, const float*, int64_t, int64_t, int64_t,         \
                          int64_t, bool);                                                                   \
  template void ToAct<Act>(Context*, void*, const void*, int64_t);
INSTANTIATE(BF16)
INSTANTIATE(FP16)
#undef INSTANTIATE

}  // namespace nibble::kernels::NIBBLE_CUDA

// AdamW, AdamW with 8-bit moments, and the gradient's norm. Everything here is fp32 whatever the activations
// are.
//
// Each operation is rounded by itself, in the reference's order (ref/elementwise.h, ref/adam8.h): the 8-bit
// codes come out the same bits on every backend.
#include <cmath>

#include "kernels/cuda/moments.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/workspace.h"

namespace nibble::kernels::NIBBLE_CUDA {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kPerBlock = kThreads * 8;

// The constants of a step, formed in double on the host.
struct Step {
  explicit Step(const AdamWArgs& args)
      : beta1(static_cast<float>(args.beta1)),
        beta2(static_cast<float>(args.beta2)),
        rest1(static_cast<float>(1 - args.beta1)),
        rest2(static_cast<float>(1 - args.beta2)),
        rate(static_cast<float>(args.learning_rate /
                                (1 - std::pow(args.beta1, static_cast<double>(args.step))))),
        correction(static_cast<float>(1 / (1 - std::pow(args.beta2, static_cast<double>(args.step))))),
        decay(static_cast<float>(args.learning_rate * args.weight_decay)),
        epsilon(static_cast<float>(args.epsilon)),
        clip(static_cast<float>(args.gradient_scale)) {}
  float beta1, beta2, rest1, rest2, rate, correction, decay, epsilon, clip;
};

__device__ __forceinline__ void UpdateOne(float& p, float g, float& m, float& v, const Step& s) {
  g = g * s.clip;
  m = s.beta1 * m + s.rest1 * g;
  v = s.beta2 * v + s.rest2 * g * g;
  p -= s.decay * p;
  p -= s.rate * m / (sqrtf(v * s.correction) + s.epsilon);
}

__global__ void __launch_bounds__(kThreads)
    AdamWKernel(float* p, const float* g, float* m, float* v, int64_t count, Step s, bool vector) {
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 8, left = count - first;
  float param[8], gradient[8], one[8], two[8];
  Load8(param, p + first, left, vector);
  Load8(gradient, g + first, left, vector);
  Load8(one, m + first, left, vector);
  Load8(two, v + first, left, vector);
#pragma unroll
  for (int i = 0; i < 8; ++i) UpdateOne(param[i], gradient[i], one[i], two[i], s);
  Store8(p + first, param, left, vector);
  Store8(m + first, one, left, vector);
  Store8(v + first, two, left, vector);
}

// --- 8-bit moments -------------------------------------------------------------------------------------

__device__ __forceinline__ uint2 LoadCodes8(const uint8_t* at, int64_t left, bool vector) {
  if (vector && left >= 8) return VectorAt<uint2>(at);
  uint2 codes = make_uint2(0, 0);
  for (int i = 0; i < 8; ++i)
    if (i < left) (i < 4 ? codes.x : codes.y) |= static_cast<unsigned>(at[i]) << (8 * (i % 4));
  return codes;
}

__device__ __forceinline__ void StoreCodes8(uint8_t* at, uint2 codes, int64_t left, bool vector) {
  if (vector && left >= 8) {
    *reinterpret_cast<uint2*>(at) = codes;
    return;
  }
  for (int i = 0; i < 8; ++i)
    if (i < left) at[i] = static_cast<uint8_t>((i < 4 ? codes.x : codes.y) >> (8 * (i % 4)));
}

template <bool kSigned>
__device__ __forceinline__ void Decode(float (&values)[8], const Map<kSigned>& map, uint2 codes,
                                       float absmax) {
#pragma unroll
  for (int i = 0; i < 8; ++i)
    values[i] = map.entries[(i < 4 ? codes.x : codes.y) >> (8 * (i % 4)) & 255] * absmax;
}

// By the warp that has the whole block: its lanes' values, of which `left` count.
template <bool kSigned>
__device__ __forceinline__ void Encode(const float (&values)[8], const Map<kSigned>& map, uint8_t* codes,
                                       float* absmax, int64_t left, bool vector) {
  float largest = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) largest = fmaxf(largest, i < left ? fabsf(values[i]) : 0.0f);
  largest = WarpMax(largest);
  if (threadIdx.x % 32 == 0) *absmax = largest;
  // Of far too small or large values as many times 2^96; a quotient that is still too small for Divide to be exact
  // is below all midpoints.
  const float factor = largest < 1e-24f ? 0x1p96f : largest > 1e30f ? 0x1p-96f : 1.0f, divisor = largest * factor;
  const float reciprocal = largest > 0 ? 1.0f / divisor : 0.0f;
  uint2 out = make_uint2(0, 0);
#pragma unroll
  for (int i = 0; i < 8; ++i)
    (i < 4 ? out.x : out.y) |= CodeOf(map, Divide(values[i] * factor, divisor, reciprocal)) << (8 * (i % 4));
  StoreCodes8(codes, out, left, vector);
}

// A warp to a block of kAdam8Block states: eight neighbours to a lane.
static_assert(kAdam8Block == 32 * 8);

// kWhole: the block has all its states, and sixteen-byte accesses may be used.
template <bool kWhole>
__device__ __forceinline__ void UpdateBlock(float* p, const float* g, const Adam8State& state, int64_t block,
                                            int64_t count, const Step& s, const Map<true>& signed_map,
                                            const Map<false>& unsigned_map) {
  const int64_t first = block * kAdam8Block + threadIdx.x % 32 * 8, left = kWhole ? 8 : count - first;
  float param[8], gradient[8], one[8], two[8];
  Load8(param, p + first, left, kWhole);
  Load8(gradient, g + first, left, kWhole);
  const uint2 m_codes = LoadCodes8(state.m + first, left, kWhole), v_codes = LoadCodes8(state.v + first, left, kWhole);
  Decode(one, signed_map, m_codes, state.m_absmax[block]);
  Decode(two, unsigned_map, v_codes, state.v_absmax[block]);
  __syncwarp();  // everyone has read the old absmax
#pragma unroll
  for (int i = 0; i < 8; ++i) UpdateOne(param[i], gradient[i], one[i], two[i], s);
  Store8(p + first, param, left, kWhole);
  Encode(one, signed_map, state.m + first, state.m_absmax + block, left, kWhole);
  Encode(two, unsigned_map, state.v + first, state.v_absmax + block, left, kWhole);
}

// Blocks first .. end - 1. Which way they are updated is the launch's matter: within a kernel that has both the
// compiler does not know that a warp's lanes go the same.
template <bool kWhole>
__global__ void __launch_bounds__(kThreads)
    AdamW8Kernel(float* p, const float* g, Adam8State state, int64_t first, int64_t end, int64_t count, Step s) {
  __shared__ Map<true> signed_map;
  __shared__ Map<false> unsigned_map;
  LoadMap<kThreads>(signed_map, state.signed_map);
  LoadMap<kThreads>(unsigned_map, state.unsigned_map);
  __syncthreads();
  const int64_t warps = int64_t{gridDim.x} * (kThreads / 32);
#pragma unroll 1
  for (int64_t block = first + int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32; block < end;
       block += warps)
    UpdateBlock<kWhole>(p, g, state, block, count, s, signed_map, unsigned_map);
}

// --- Sum of squares ------------------------------------------------------------------------------------

// One sum for each block of a grid whose size depends on `count` alone; the squares are exact in double.
__global__ void __launch_bounds__(kThreads)
    SquaresKernel(double* parts, const float* x, int64_t count, bool vector) {
  double sum = 0;
  for (int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 8; first < count;
       first += gridDim.x * kPerBlock) {
    float values[8];
    Load8(values, x + first, count - first, vector);
#pragma unroll
    for (int i = 0; i < 8; ++i)
      sum = fma(static_cast<double>(values[i]), static_cast<double>(values[i]), sum);
  }
  sum = BlockSum<kThreads>(sum);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads) SumKernel(double* out, const double* parts, int count) {
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) sum += parts[i];
  sum = BlockSum<kThreads>(sum);
  if (threadIdx.x == 0) *out = sum;
}

}  // namespace

void AdamW(Context* ctx, void* p, const void* g, void* m, void* v, const AdamWArgs& args) {
  KERNEL_CHECK(args.step >= 1);
  Launch(ctx, Blocks(args.count, kPerBlock), kThreads, 0, AdamWKernel, static_cast<float*>(p),
         static_cast<const float*>(g), static_cast<float*>(m), static_cast<float*>(v), args.count, Step(args),
         Aligned(p, g, m, v));
}

void AdamW8(Context* ctx, void* p, const void* g, const Adam8State& state, const AdamWArgs& args) {
  KERNEL_CHECK(args.step >= 1);
  const bool vector = Aligned(p, g, state.m, state.v);
  const int64_t whole = vector ? args.count / kAdam8Block : 0, all = CeilDiv(args.count, kAdam8Block);
  const auto launch = [&](auto kernel, int64_t first, int64_t end) {
    // Loading the maps is shared by several blocks of states.
    Launch(ctx, Blocks(end - first, kThreads / 32, 1024), kThreads, 0, kernel, static_cast<float*>(p),
           static_cast<const float*>(g), state, first, end, args.count, Step(args));
  };
  launch(AdamW8Kernel<true>, 0, whole);
  launch(AdamW8Kernel<false>, whole, all);
}

void SumSquares(Context* ctx, double* out, const void* x, int64_t count) {
  KERNEL_CHECK(ctx->workspace_bytes >= cuda_workspace::SumSquaresWorkspaceBytes());
  auto* parts = static_cast<double*>(ctx->workspace);
  const unsigned blocks = Blocks(count, kPerBlock, cuda_workspace::kSumSquaresParts);
  Launch(ctx, blocks, kThreads, 0, SquaresKernel, parts, static_cast<const float*>(x), count, Aligned(x));
  Launch(ctx, 1, kThreads, 0, SumKernel, out, parts, static_cast<int>(blocks));
}

}  // namespace nibble::kernels::NIBBLE_CUDA

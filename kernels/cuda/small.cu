// A warp has four outputs: its lanes walk along the inputs, eight at a time, and meet at the end. x comes
// from the cache, once for the four.
#include "kernels/cuda/decode.h"
#include "kernels/cuda/small.h"

namespace nibble::kernels::NIBBLE_CUDA {
namespace {

constexpr int kThreads = 256;
constexpr int kOutputs = 4;
constexpr int64_t kPerBlock = kThreads / 32 * kOutputs;

// What is added to a product: bias, and scale * u B^T.
template <typename Act>
struct Tail {
  ParamView bias;
  const Act* u = nullptr;
  const Act* b = nullptr;
  int r = 0;
  float scale = 0;
};

// kCoded: w has 4-bit codes; else its data are Act. kRows is 1 or kSmallRows, m at most that.
template <typename Act, bool kCoded, int kRows>
__global__ void __launch_bounds__(kThreads)
    SmallKernel(Act* y, const Act* x, WeightView w, int m, Tail<Act> tail, int block_shift) {
  __shared__ float table[16];
  if constexpr (kCoded) {
    if (threadIdx.x < 16) table[threadIdx.x] = w.code_book[threadIdx.x];
    __syncthreads();
  }
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t n0 = int64_t{blockIdx.x} * kPerBlock + threadIdx.x / 32 * kOutputs;
  if (n0 >= w.n) return;
  float sums[kOutputs][kRows] = {};
  for (int64_t k = lane * 8; k < w.k; k += 32 * 8) {
    float weights[kOutputs][8];
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      const int64_t at = Min(n0 + o, w.n - 1) * w.k + k;
      if constexpr (kCoded) {
        const uint32_t codes =
            __ldcs(reinterpret_cast<const unsigned*>(static_cast<const uint8_t*>(w.data) + at / 2));
        Decode8(weights[o], codes, table, AbsmaxOf(w, at >> block_shift));
        Unpack8<Act>(weights[o], Pack8<Act>(weights[o]));
      } else {
        Load8(weights[o], static_cast<const Act*>(w.data) + at, 8, true);
      }
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      float values[8] = {};
      if (kRows == 1 || row < m) Load8(values, x + row * w.k + k, 8, true);
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
#pragma unroll
        for (int i = 0; i < 8; ++i) sums[o][row] = fmaf(values[i], weights[o][i], sums[o][row]);
      }
    }
  }
#pragma unroll 1
  for (int j = lane; j < tail.r; j += 32) {
    float up[kOutputs];
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) up[o] = tail.scale * Get(tail.b + Min(n0 + o, w.n - 1) * tail.r + j);
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const float down = kRows == 1 || row < m ? Get(tail.u + row * tail.r + j) : 0.0f;
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) sums[o][row] = fmaf(down, up[o], sums[o][row]);
    }
  }
  // Lane o writes output o.
  const int64_t n = n0 + lane;
  const bool writes = lane < kOutputs && n < w.n;
  const float bias = writes && tail.bias.data != nullptr ? GetParam(tail.bias, n) : 0.0f;
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    float sum = 0;
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      const float total = WarpSum(sums[o][row]);
      if (lane == o) sum = total;
    }
    if (writes && row < m) Put(y + row * w.n + n, sum + bias);
  }
}

template <typename Act, bool kCoded>
void LaunchSmall(Context* ctx, Act* y, const Act* x, const WeightView& w, int64_t m, const Tail<Act>& tail) {
  const auto kernel =
      m == 1 ? SmallKernel<Act, kCoded, 1> : SmallKernel<Act, kCoded, static_cast<int>(kSmallRows)>;
  Launch(ctx, Blocks(w.n, kPerBlock), kThreads, 0, kernel, y, x, w, static_cast<int>(m), tail,
         ShiftOf(w.block));
}

bool FourBit(QuantType type) {
  return type == QuantType::kNF4 || type == QuantType::kFP4 || type == QuantType::kINT4;
}

}  // namespace

template <typename Act>
bool LinearForwardSmall(Context* ctx, void* y, const void* x, const LinearArgs& args) {
  const WeightView& w = args.w;
  KERNEL_CHECK(w.order == WeightOrder::kFlat);
  const bool coded = FourBit(w.type) && ShiftOf(w.block) >= 3;
  const bool plain = w.type == QuantType::kBF16 && ActType<Act>::kType == DType::kBF16;
  if (args.m > kSmallRows || w.k % 8 != 0 || !(coded || plain) || !Aligned(x, w.data)) return false;
  if (args.lora != nullptr && (args.lora->dropout.p > 0 || !Aligned(args.lora->a))) return false;
  if (args.m == 0) return true;
  Tail<Act> tail;
  tail.bias = args.bias;
  if (args.lora != nullptr) {
    const LoraArgs& lora = *args.lora;
    WeightView down;
    down.n = lora.r;
    down.k = w.k;
    down.data = lora.a;
    LaunchSmall<Act, false>(ctx, static_cast<Act*>(lora.u), static_cast<const Act*>(x), down, args.m,
                            Tail<Act>());
    tail.u = static_cast<const Act*>(lora.u);
    tail.b = static_cast<const Act*>(lora.b);
    tail.r = static_cast<int>(lora.r);
    tail.scale = lora.scale;
  }
  if (coded)
    LaunchSmall<Act, true>(ctx, static_cast<Act*>(y), static_cast<const Act*>(x), w, args.m, tail);
  else
    LaunchSmall<Act, false>(ctx, static_cast<Act*>(y), static_cast<const Act*>(x), w, args.m, tail);
  return true;
}

template bool LinearForwardSmall<BF16>(Context*, void*, const void*, const LinearArgs&);
template bool LinearForwardSmall<FP16>(Context*, void*, const void*, const LinearArgs&);

}  // namespace nibble::kernels::NIBBLE_CUDA

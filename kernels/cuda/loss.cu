// cross_entropy and logits.
//
// The rows with a label are listed first, then taken a chunk at a time: gathered, multiplied with
// the whole head into float logits, turned into the gradient in place (in the act type), and
// multiplied back. A chunk is always multiplied at its full size, so that no sum depends on how
// many rows are left. How many rows have a label is known on the device alone, and nobody waits for
// it: the caller's bound (Context::most_labels) says how many chunks there may be, and rows behind the
// last labelled one are skipped on the device.
#include <utility>

#include "kernels/cuda/matmul.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/workspace.h"

namespace nibble::kernels::NIBBLE_CUDA {
namespace {

using namespace cuda_workspace;  // NOLINT: formulas only

// A chunk may have fewer than two rows for each of a device's processors: many threads to a row.
constexpr int kListThreads = 256, kRowThreads = 512, kSumThreads = 256;

// A logit's share of the cap is tanh(logit / cap); without kCapped logits stay what they are.
template <bool kCapped>
struct SoftCap {
  float cap, inverse;
  __device__ __forceinline__ float Share(float logit) const {
    if constexpr (!kCapped) return logit;
    return tanhf(logit * inverse);
  }
  __device__ __forceinline__ float Capped(float share) const {
    if constexpr (!kCapped) return share;
    return cap * share;
  }
  __device__ __forceinline__ float Logit(float logit) const { return Capped(Share(logit)); }
  // Of the logit, from that of the capped one.
  __device__ __forceinline__ float Gradient(float gradient, float share) const {
    if constexpr (!kCapped) return gradient;
    return gradient * fmaf(-share, share, 1.0f);
  }
};

// rows[0 .. count - 1] = the labelled rows in order, rows[m] = count.
__global__ void __launch_bounds__(kListThreads) ListKernel(int32_t* rows, const int32_t* labels, int64_t m) {
  __shared__ int warps[kListThreads / 32];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  int listed = 0;
  for (int64_t first = 0; first < m; first += kListThreads) {
    const int64_t row = first + thread;
    const bool labelled = row < m && labels[row] >= 0;
    const unsigned ballot = __ballot_sync(kAllLanes, labelled);
    if (lane == 0) warps[warp] = __popc(ballot);
    __syncthreads();
    int before = listed;
    for (int i = 0; i < kListThreads / 32; ++i) {
      if (i < warp) before += warps[i];
      listed += warps[i];
    }
    if (labelled) rows[before + __popc(ballot & ((1u << lane) - 1))] = static_cast<int32_t>(row);
    __syncthreads();
  }
  if (thread == 0) rows[m] = listed;
}

// gathered[i] = h[rows[first + i]], zeros behind the last.
template <typename Act>
__global__ void __launch_bounds__(128) GatherKernel(Act* gathered, const Act* h, const int32_t* rows,
                                                    int64_t m, int64_t first, int64_t dim, bool vector) {
  const int64_t i = first + blockIdx.x;
  const bool some = i < rows[m];
  const Act* from = some ? h + rows[i] * dim : nullptr;
  for (int64_t column = static_cast<int64_t>(threadIdx.x) * 8; column < dim; column += 128 * 8) {
    float values[8] = {};
    if (some) Load8(values, from + column, dim - column, vector);
    Store8(gathered + blockIdx.x * dim + column, values, dim - column, vector);
  }
}

// dh[rows[first + i]] = gradient[i].
template <typename Act>
__global__ void __launch_bounds__(128) ScatterKernel(Act* dh, const float* gradient, const int32_t* rows,
                                                     int64_t m, int64_t first, int64_t dim, bool vector) {
  const int64_t i = first + blockIdx.x;
  if (i >= rows[m]) return;
  for (int64_t column = static_cast<int64_t>(threadIdx.x) * 8; column < dim; column += 128 * 8) {
    float values[8];
    Load8(values, gradient + blockIdx.x * dim + column, dim - column, vector);
    Store8(dh + rows[i] * dim + column, values, dim - column, vector);
  }
}

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// What exponents of two are taken relative to, a logit in units of log 2. Far from zero what rounding took
// away is kept as well: it may be hundreds, and the largest logit's own exponent must be nothing.
struct Base {
  float rounded, rest;

  static __device__ __forceinline__ Base Of(float logit) {
    const float rounded = logit * kLog2E;
    return {rounded, IsFar(rounded) ? fmaf(logit, kLog2E, -rounded) : 0.0f};
  }
  static __device__ __forceinline__ bool IsFar(float rounded) { return fabsf(rounded) >= 8192.0f; }
  __device__ __forceinline__ float Exponent(float logit) const {
    return fmaf(logit, kLog2E, -rounded) - rest;
  }
};

// Of some of a row's logits. What is below the lowest counts as nothing.
constexpr float kLowest = -1e38f;
struct Peak {
  float largest;
  Base base;    // of the largest
  float total;  // of e^(logit - largest)
};
__device__ __forceinline__ Peak Join(const Peak& a, const Peak& b) {
  const Base base = a.largest >= b.largest ? a.base : b.base;
  const auto shrink = [&](const Peak& p) {
    return exp2f(p.base.rounded - base.rounded + (p.base.rest - base.rest));
  };
  return {fmaxf(a.largest, b.largest), base, fmaf(a.total, shrink(a), b.total * shrink(b))};
}

// One row of logits: its loss; and, with kGradient, gradient_scale * (softmax - one) over the
// logits' own place, in act. The row's block reads a span before it writes the span's half, so
// nothing is lost.
template <bool kGradient, bool kCapped, typename Act>
__global__ void __launch_bounds__(kRowThreads)
    SoftmaxKernel(float* logits, double* losses, const int32_t* rows, const int32_t* labels, int64_t m,
                  int64_t first, int64_t vocab, int64_t stride, double gradient_scale, const double* late_scale,
                  SoftCap<kCapped> soft_cap) {
  __shared__ Peak peaks[kRowThreads / 32];
  const int64_t i = first + blockIdx.x;
  if (i >= rows[m]) return;
  float* row = logits + blockIdx.x * stride;
  const int64_t label = labels[rows[i]];
  const auto scale = static_cast<float>(late_scale != nullptr ? *late_scale : gradient_scale);
  const int thread = static_cast<int>(threadIdx.x);
  Peak mine{kLowest, Base::Of(kLowest), 0};
  for (int64_t at = static_cast<int64_t>(thread) * 8; at < vocab; at += kRowThreads * 8) {
    float values[8];
    Load8(values, row + at, vocab - at, true);
    const int count = static_cast<int>(Min<int64_t>(8, vocab - at));
#pragma unroll
    for (int e = 0; e < 8; ++e) values[e] = soft_cap.Logit(values[e]);
    Peak local{kLowest, {}, 0};
#pragma unroll
    for (int e = 0; e < 8; ++e)
      local.largest = e < count ? fmaxf(local.largest, values[e]) : local.largest;
    local.base = Base::Of(local.largest);
#pragma unroll
    for (int e = 0; e < 8; ++e)
      if (e < count) local.total += exp2f(local.base.Exponent(values[e]));
    mine = Join(mine, local);
  }
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) {
    const float largest = __shfl_xor_sync(kAllLanes, mine.largest, bits);
    const Peak other{largest, Base::Of(largest), __shfl_xor_sync(kAllLanes, mine.total, bits)};
    // The lower lane's part first, so that all lanes get the same bits.
    mine = (thread & bits) == 0 ? Join(mine, other) : Join(other, mine);
  }
  if (thread % 32 == 0) peaks[thread / 32] = mine;
  __syncthreads();
  Peak all = peaks[0];
  for (int w = 1; w < kRowThreads / 32; ++w) all = Join(all, peaks[w]);
  const float log_total = log2f(all.total);  // in units of log 2, as is what follows
  const bool far = Base::IsFar(all.base.rounded);
  const Base log_sum =
      far ? Base{all.base.rounded, all.base.rest + log_total} : Base{all.base.rounded + log_total, 0};
  if (thread == 0) {
    const float of_label = soft_cap.Logit(row[label]);
    losses[i] = far ? static_cast<double>(all.largest) - of_label + kLn2 * log_total
                    : static_cast<double>(fmaf(log_sum.rounded, kLn2, -of_label));
  }
  if constexpr (kGradient) {
    Act* gradient = reinterpret_cast<Act*>(row);
    for (int64_t span = 0; span < vocab; span += kRowThreads * 8) {
      const int64_t at = span + static_cast<int64_t>(thread) * 8;
      float values[8];
      Load8(values, row + at, at < vocab ? vocab - at : 0, at < vocab);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float share = soft_cap.Share(values[e]);
        const float probability = exp2f(log_sum.Exponent(soft_cap.Capped(share)));
        values[e] = soft_cap.Gradient(probability - (at + e == label ? 1.0f : 0.0f), share) * scale;
      }
      __syncthreads();  // the span has been read, and the label's logit
      Store8(gradient + at, values, at < vocab ? vocab - at : 0, at < vocab);
    }
  }
}

// All of `count` logits, where the softmax is not ours.
__global__ void __launch_bounds__(256)
    CapKernel(float* logits, int64_t count, SoftCap<true> soft_cap, bool vector) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) * 8;
  if (at >= count) return;
  float values[8];
  Load8(values, logits + at, count - at, vector);
#pragma unroll
  for (int e = 0; e < 8; ++e) values[e] = soft_cap.Logit(values[e]);
  Store8(logits + at, values, count - at, vector);
}

// *loss_sum += losses[0] + losses[1] + ..., one after the other.
__global__ void __launch_bounds__(kSumThreads)
    LossKernel(double* loss_sum, const double* losses, const int32_t* rows, int64_t m) {
  __shared__ double some[kSumThreads];
  const int64_t count = rows[m];
  double sum = threadIdx.x == 0 ? *loss_sum : 0;
  for (int64_t first = 0; first < count; first += kSumThreads) {
    if (first + threadIdx.x < count) some[threadIdx.x] = losses[first + threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0)
      for (int64_t i = 0; i < Min<int64_t>(kSumThreads, count - first); ++i) sum += some[i];
    __syncthreads();
  }
  if (threadIdx.x == 0) *loss_sum = sum;
}

template <typename Act>
__global__ void __launch_bounds__(256)
    ConvertKernel(Act* out, ParamView in, int64_t first, int64_t count, bool vector) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) * 8;
  if (at >= count) return;
  float values[8];
  LoadParam8(values, in, first + at, count - at, vector);
  Store8(out + at, values, count - at, true);
}

// Calls run(first row, rows, their weights in act) for the panels of the head; for one, when it is
// in act.
template <typename Act, typename F>
void ForHeadPanels(Context* ctx, ParamView head, int64_t vocab, int64_t dim, void* panel, const F& run) {
  if (head.type == ActType<Act>::kType) {
    run(int64_t{0}, vocab, head.data);
    return;
  }
  const int64_t rows = PanelRows(vocab, dim);
  for (int64_t first = 0; first < vocab; first += rows) {
    const int64_t count = Min(rows, vocab - first);
    Launch(ctx, Blocks(count * dim, 256 * 8), 256, 0, ConvertKernel<Act>, static_cast<Act*>(panel), head,
           first * dim, count * dim, Aligned(static_cast<const char*>(head.data)) && first * dim % 8 == 0);
    run(first, count, static_cast<const void*>(panel));
  }
}

// out float [M, vocab] = h head^T, rows of `out` `stride` apart.
template <typename Act>
void HeadProduct(Context* ctx, float* out, int64_t stride, const void* h, ParamView head, int64_t m,
                 int64_t dim, int64_t vocab, void* panel, void* scratch) {
  ForHeadPanels<Act>(ctx, head, vocab, dim, panel, [&](int64_t first, int64_t rows, const void* weights) {
    MatMulArgs product;
    product.m = m;
    product.n = rows;
    product.k = dim;
    product.a = h;
    product.b = weights;
    product.a_stride = product.b_stride = dim;
    product.c = out + first;
    product.c_stride = stride;
    product.c_float = true;
    MatMul<Act>(ctx, product, scratch);
  });
}

}  // namespace

template <typename Act>
void CrossEntropy(Context* ctx, double* loss_sum, void* dh, const void* h, ParamView head,
                  const int32_t* labels, int64_t m, int64_t dim, int64_t vocab, double gradient_scale,
                  float soft_cap) {
  KERNEL_CHECK(m >= 0 && dim > 0 && vocab > 0 && soft_cap >= 0);
  if (m == 0) return;
  WorkspaceShape s;
  s.m = m;
  s.k = dim;
  s.vocab = vocab;
  const bool converts_head = head.type != ActType<Act>::kType;
  const int64_t own = CrossEntropyOwnBytes(s, converts_head);
  KERNEL_CHECK(own + (HasLibrary(ctx) ? kLibraryBytes : 0) <= ctx->workspace_bytes);
  const int64_t chunk = CrossEntropyRows(m, vocab), stride = CrossEntropyStride(vocab);
  char* at = static_cast<char*>(ctx->workspace);
  const auto take = [&](int64_t bytes) { return std::exchange(at, at + RoundUp(bytes, 256)); };
  auto* logits = reinterpret_cast<float*>(take(4 * chunk * stride));
  auto* gathered = reinterpret_cast<Act*>(take(2 * chunk * dim));
  auto* gradient = reinterpret_cast<float*>(take(4 * chunk * dim));
  auto* rows = reinterpret_cast<int32_t*>(take(4 * (m + 1)));
  auto* losses = reinterpret_cast<double*>(take(8 * m));
  void* panel = take(HeadPanelBytes(vocab, dim, converts_head));
  void* scratch = at;
  const auto aligned = [&](const void* array) {
    return dim % 8 == 0 && Aligned(static_cast<const char*>(array));
  };

  Launch(ctx, 1, kListThreads, 0, ListKernel, rows, labels, m);
  if (dh != nullptr) FillBytes(ctx, dh, 0, 2 * m * dim);
  const int64_t count = ctx->most_labels < 0 ? m : Min(ctx->most_labels, m);
  const auto blocks = static_cast<unsigned>(chunk);
  for (int64_t first = 0; first < count; first += chunk) {
    Launch(ctx, blocks, 128, 0, GatherKernel<Act>, gathered, static_cast<const Act*>(h), rows, m, first, dim,
           aligned(h));
    HeadProduct<Act>(ctx, logits, stride, gathered, head, chunk, dim, vocab, panel, scratch);
    const auto softmax = [&]<bool kCapped>(SoftCap<kCapped> cap) {
      Launch(ctx, blocks, kRowThreads, 0,
             dh != nullptr ? SoftmaxKernel<true, kCapped, Act> : SoftmaxKernel<false, kCapped, Act>, logits,
             losses, rows, labels, m, first, vocab, stride, gradient_scale, ctx->late_gradient_scale, cap);
    };
    if (soft_cap > 0)
      softmax(SoftCap<true>{soft_cap, 1 / soft_cap});
    else
      softmax(SoftCap<false>{});
    if (dh == nullptr) continue;
    ForHeadPanels<Act>(ctx, head, vocab, dim, panel,
                       [&](int64_t row, int64_t panel_rows, const void* weights) {
                         MatMulArgs product;
                         product.m = chunk;
                         product.n = dim;
                         product.k = panel_rows;
                         product.a = reinterpret_cast<const Act*>(logits) + row;
                         product.a_stride = 2 * stride;
                         product.b = weights;
                         product.b_stride = dim;
                         product.b_transposed = true;
                         product.c = gradient;
                         product.c_stride = dim;
                         product.c_float = true;
                         product.accumulate = row > 0;
                         MatMul<Act>(ctx, product, scratch);
                       });
    Launch(ctx, blocks, 128, 0, ScatterKernel<Act>, static_cast<Act*>(dh), gradient, rows, m, first, dim,
           aligned(dh));
  }
  Launch(ctx, 1, kSumThreads, 0, LossKernel, loss_sum, losses, rows, m);
}

template <typename Act>
void Logits(Context* ctx, float* out, const void* h, ParamView head, int64_t m, int64_t dim, int64_t vocab,
            float soft_cap) {
  KERNEL_CHECK(m >= 0 && dim > 0 && vocab > 0 && soft_cap >= 0);
  WorkspaceShape s;
  s.m = m;
  s.k = dim;
  s.vocab = vocab;
  const int64_t own = LogitsOwnBytes(s, head.type != ActType<Act>::kType);
  KERNEL_CHECK(own + (HasLibrary(ctx) ? kLibraryBytes : 0) <= ctx->workspace_bytes);
  HeadProduct<Act>(ctx, out, vocab, h, head, m, dim, vocab, ctx->workspace,
                   static_cast<char*>(ctx->workspace) + own);
  if (soft_cap > 0)
    Launch(ctx, Blocks(m * vocab, 256 * 8), 256, 0, CapKernel, out, m * vocab,
           SoftCap<true>{soft_cap, 1 / soft_cap}, Aligned(out));
}

template void CrossEntropy<BF16>(Context*, double*, void*, const void*, ParamView, const int32_t*, int64_t,
                                 int64_t, int64_t, double, float);
template void CrossEntropy<FP16>(Context*, double*, void*, const void*, ParamView, const int32_t*, int64_t,
                                 int64_t, int64_t, double, float);
template void Logits<BF16>(Context*, float*, const void*, ParamView, int64_t, int64_t, int64_t, float);
template void Logits<FP16>(Context*, float*, const void*, ParamView, int64_t, int64_t, int64_t, float);

}  // namespace nibble::kernels::NIBBLE_CUDA

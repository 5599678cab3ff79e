// attention_decode: one query per head against a cache. The keys are cut into pieces of
// kDecodeKeys; a block has one piece and one head, and a second kernel joins a head's pieces in
// order.
#include "kernels/cuda/attention.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/workspace.h"

namespace nibble::kernels::NIBBLE_CUDA {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32, kMostDim = 256;
constexpr int kKeys = static_cast<int>(cuda_workspace::kDecodeKeys);

struct DecodeArgs {
  const void *q, *k, *v;
  void* out;
  float *sums, *largest, *totals;  // [pieces, heads, dim], [pieces, heads] twice
  int64_t first, length;           // keys first .. length - 1
  int64_t pieces;
  int heads, group, dim;
  Scoring scoring;
};

template <typename Act>
__global__ void __launch_bounds__(kThreads) PieceKernel(DecodeArgs args) {
  __shared__ float scores[kKeys];
  __shared__ float query[kMostDim];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32, dim = args.dim;
  const int head = static_cast<int>(blockIdx.y);
  const int64_t key0 = args.first + static_cast<int64_t>(blockIdx.x) * kKeys;
  const int count = static_cast<int>(Min<int64_t>(kKeys, args.length - key0));
  const int64_t stride = static_cast<int64_t>(args.heads / args.group) * dim;
  const Act* k = static_cast<const Act*>(args.k) + key0 * stride + head / args.group * dim;
  const Act* v = static_cast<const Act*>(args.v) + key0 * stride + head / args.group * dim;
  for (int i = thread; i < dim; i += kThreads)
    query[i] = Get(static_cast<const Act*>(args.q) + head * dim + i);
  __syncthreads();
  for (int key = warp; key < count; key += kWarps) {
    float sum = 0;
    for (int i = lane; i < dim; i += 32) sum = fmaf(query[i], Get(k + key * stride + i), sum);
    sum = WarpSum(sum);
    if (lane == 0)
      scores[key] = args.scoring.capped() ? args.scoring.Score(sum) : sum * args.scoring.factor;
  }
  __syncthreads();
  float largest = -INFINITY, total = 0;
  for (int key = 0; key < count; ++key) largest = fmaxf(largest, scores[key]);
  __syncthreads();
  for (int key = thread; key < count; key += kThreads) scores[key] = FastExp2(scores[key] - largest);
  __syncthreads();
  for (int key = 0; key < count; ++key) total += scores[key];
  const int64_t at = static_cast<int64_t>(blockIdx.x) * args.heads + head;
  for (int i = thread; i < dim; i += kThreads) {
    float sum = 0;
    for (int key = 0; key < count; ++key) sum = fmaf(scores[key], Get(v + key * stride + i), sum);
    args.sums[at * dim + i] = sum;
  }
  if (thread == 0) {
    args.largest[at] = largest;
    args.totals[at] = total;
  }
}

template <typename Act>
__global__ void __launch_bounds__(kThreads) JoinKernel(DecodeArgs args) {
  const int head = static_cast<int>(blockIdx.x);
  float largest = -INFINITY, total = 0;
  for (int64_t piece = 0; piece < args.pieces; ++piece)
    largest = fmaxf(largest, args.largest[piece * args.heads + head]);
  for (int64_t piece = 0; piece < args.pieces; ++piece) {
    const int64_t at = piece * args.heads + head;
    total = fmaf(args.totals[at], FastExp2(args.largest[at] - largest), total);
  }
  for (int i = static_cast<int>(threadIdx.x); i < args.dim; i += kThreads) {
    float sum = 0;
    for (int64_t piece = 0; piece < args.pieces; ++piece) {
      const int64_t at = piece * args.heads + head;
      sum = fmaf(args.sums[at * args.dim + i], FastExp2(args.largest[at] - largest), sum);
    }
    Put(static_cast<Act*>(args.out) + head * args.dim + i, sum / total);
  }
}

}  // namespace

template <typename Act>
void AttentionDecode(Context* ctx, void* out, const void* q, const void* k_cache, const void* v_cache,
                     int64_t length, const AttentionArgs& args) {
  CheckAttention(args);
  KERNEL_CHECK(length > 0);
  DecodeArgs d;
  d.q = q;
  d.k = k_cache;
  d.v = v_cache;
  d.out = out;
  d.length = length;
  d.first = args.window > 0 ? Max<int64_t>(0, length - args.window) : 0;
  d.pieces = CeilDiv<int64_t>(length - d.first, kKeys);
  d.heads = static_cast<int>(args.heads);
  d.group = static_cast<int>(args.heads / args.kv_heads);
  d.dim = static_cast<int>(args.head_dim);
  d.scoring = ScoringOf(args);
  KERNEL_CHECK(cuda_workspace::AttentionDecodeWorkspaceBytes(length - d.first, args.heads, args.head_dim) <=
               ctx->workspace_bytes);
  d.sums = static_cast<float*>(ctx->workspace);
  d.largest = d.sums + d.pieces * args.heads * args.head_dim;
  d.totals = d.largest + d.pieces * args.heads;
  Launch(ctx, dim3(static_cast<unsigned>(d.pieces), static_cast<unsigned>(d.heads)), kThreads, 0,
         PieceKernel<Act>, d);
  Launch(ctx, static_cast<unsigned>(d.heads), kThreads, 0, JoinKernel<Act>, d);
}

template void AttentionDecode<BF16>(Context*, void*, const void*, const void*, const void*, int64_t,
                                    const AttentionArgs&);
template void AttentionDecode<FP16>(Context*, void*, const void*, const void*, const void*, int64_t,
                                    const AttentionArgs&);

}  // namespace nibble::kernels::NIBBLE_CUDA

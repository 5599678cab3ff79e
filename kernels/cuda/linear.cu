// linear_forward and linear_backward.
//
// The frozen weight is decoded a panel at a time, whole rows going forward and whole columns going
// back, so that no sum is ever cut; each panel meets the vendor's product. The adapter's branch is
// where the sums start: y = bias + scale u B^T and dx = dropout'(du A) (+ dx) are written first,
// rounded to act, and the large product accumulates onto them.
#include "kernels/cuda/decode.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/small.h"
#include "kernels/cuda/workspace.h"

namespace nibble::kernels::NIBBLE_CUDA {
namespace {

using namespace cuda_workspace;  // NOLINT: formulas only

// ctx->workspace: a panel, du, partial sums, and the library's scratch.
template <typename Act>
struct Workspace {
  Act* panel;
  void* du;
  float* partial;
  void* scratch;
};

template <typename Act>
Workspace<Act> Divide(const Context* ctx, const LinearArgs& args) {
  WorkspaceShape s;
  s.m = args.m;
  s.k = args.w.k;
  s.n = args.w.n;
  s.r = args.lora != nullptr ? args.lora->r : 0;
  const int64_t own = LinearOwnBytes(s);
  KERNEL_CHECK(own + (HasLibrary(ctx) ? kLibraryBytes : 0) <= ctx->workspace_bytes);
  char* at = static_cast<char*>(ctx->workspace);
  Workspace<Act> out;
  out.panel = reinterpret_cast<Act*>(at);
  out.du = at + PanelBytes(s.n, s.k);
  out.partial = reinterpret_cast<float*>(static_cast<char*>(out.du) + RoundUp(2 * s.m * s.r, 256));
  out.scratch = at + own;
  return out;
}

// A product with few columns, its depth cut: partial sums [splits, rows, columns]. Returns the
// splits.
template <typename Act>
int64_t Skinny(Context* ctx, float* partial, int64_t rows, int64_t columns, int64_t depth,
               const GemmOperand& a, const GemmOperand& b, const DropoutKey& dropout) {
  GemmArgs args;
  args.m = rows;
  args.n = columns;
  args.k = depth;
  args.a = a;
  args.b = b;
  args.a_dropout = dropout;
  args.partial = partial;
  args.splits = DepthSplits(rows, columns, depth);
  Gemm<Act>(ctx, args);
  return args.splits;
}

float KeepScale(const DropoutKey& dropout) { return dropout.p > 0 ? 1.0f / (1.0f - dropout.p) : 1.0f; }

// u = dropout(x) A^T.
template <typename Act>
void DownProjection(Context* ctx, const void* x, const LinearArgs& args, const Workspace<Act>& work) {
  const LoraArgs& lora = *args.lora;
  const int64_t splits = Skinny<Act>(ctx, work.partial, args.m, lora.r, args.w.k, {x, args.w.k, false},
                                     {lora.a, args.w.k, false}, lora.dropout);
  SumPartials<Act>(ctx, lora.u, work.partial, splits, args.m * lora.r, KeepScale(lora.dropout));
}

// y = bias + scale u B^T, either of which may be missing.
template <typename Act>
void StartOutput(Context* ctx, void* y, const LinearArgs& args) {
  GemmArgs branch;
  branch.m = args.m;
  branch.n = args.w.n;
  branch.c = y;
  branch.c_stride = args.w.n;
  branch.bias = args.bias;
  if (const LoraArgs* lora = args.lora; lora != nullptr) {
    branch.k = lora->r;
    branch.a = {lora->u, lora->r, false};
    branch.b = {lora->b, lora->r, false};
    branch.alpha = lora->scale;
  }
  Gemm<Act>(ctx, branch);
}

// dx = dropout'(du A) (+ dx).
template <typename Act>
void StartInputGradient(Context* ctx, void* dx, bool accumulate, const void* du, const LinearArgs& args) {
  const LoraArgs& lora = *args.lora;
  GemmArgs branch;
  branch.m = args.m;
  branch.n = args.w.k;
  branch.k = lora.r;
  branch.a = {du, lora.r, false};
  branch.b = {lora.a, args.w.k, true};
  branch.c = dx;
  branch.c_stride = args.w.k;
  branch.accumulate = accumulate;
  branch.c_dropout = lora.dropout;
  Gemm<Act>(ctx, branch);
}

// du = scale dy B; da += du^T dropout(x); db += scale dy^T u.
template <typename Act>
void AdapterGradients(Context* ctx, const void* dy, const void* x, const LinearArgs& args,
                      const Workspace<Act>& work) {
  const LoraArgs& lora = *args.lora;
  const int64_t m = args.m, k = args.w.k, n = args.w.n, r = lora.r;
  int64_t splits = Skinny<Act>(ctx, work.partial, m, r, n, {dy, n, false}, {lora.b, r, true}, {});
  SumPartials<Act>(ctx, work.du, work.partial, splits, m * r, lora.scale);
  if (lora.da != nullptr) {
    splits = Skinny<Act>(ctx, work.partial, k, r, m, {x, k, true}, {work.du, r, true}, lora.dropout);
    AddPartials(ctx, static_cast<float*>(lora.da), work.partial, splits, k, r, KeepScale(lora.dropout), true);
  }
  if (lora.db != nullptr) {
    splits = Skinny<Act>(ctx, work.partial, n, r, m, {dy, n, true}, {lora.u, r, true}, {});
    AddPartials(ctx, static_cast<float*>(lora.db), work.partial, splits, n, r, lora.scale, false);
  }
}

// A weight that is stored in the act type is its own panel: no panel is decoded, the product is one.
// (WeightView::decoded takes the place of panels, but of each alone: the same products as without.)
template <typename Act>
const Act* Undecoded(const WeightView& w) {
  const bool is_act = w.type == QuantType::kBF16 && ActType<Act>::kType == DType::kBF16;
  return is_act ? static_cast<const Act*>(w.data) : nullptr;
}

}  // namespace

template <typename Act>
void LinearForward(Context* ctx, void* y, const void* x, const LinearArgs& args) {
  const WeightView& w = args.w;
  KERNEL_CHECK(args.m >= 0 && w.n > 0 && w.k > 0);
  if (args.m == 0 || LinearForwardSmall<Act>(ctx, y, x, args)) return;
  const Workspace<Act> work = Divide<Act>(ctx, args);
  if (args.lora != nullptr) DownProjection<Act>(ctx, x, args, work);
  MatMulArgs product;
  product.accumulate = args.lora != nullptr || args.bias.data != nullptr;
  if (product.accumulate) StartOutput<Act>(ctx, y, args);
  product.m = args.m;
  product.k = w.k;
  product.a = x;
  product.a_stride = product.b_stride = w.k;
  product.c_stride = w.n;
  const Act* whole = Undecoded<Act>(w);
  const int64_t rows = whole != nullptr ? w.n : PanelRows(w.n, w.k);
  for (int64_t n0 = 0; n0 < w.n; n0 += rows) {
    product.n = Min(rows, w.n - n0);
    product.b = whole;
    if (whole == nullptr && w.decoded != nullptr) {
      product.b = static_cast<const Act*>(w.decoded) + n0 * w.k;
    } else if (whole == nullptr) {
      DecodePanel<Act>(ctx, work.panel, w, n0, product.n, 0, w.k);
      product.b = work.panel;
    }
    product.c = static_cast<Act*>(y) + n0;
    MatMul<Act>(ctx, product, work.scratch);
  }
}

template <typename Act>
void LinearBackward(Context* ctx, void* dx, bool accumulate, const void* dy, const void* x,
                    const LinearArgs& args) {
  const WeightView& w = args.w;
  KERNEL_CHECK(args.m >= 0 && w.n > 0 && w.k > 0);
  if (args.m == 0) return;
  const Workspace<Act> work = Divide<Act>(ctx, args);
  if (args.lora != nullptr) AdapterGradients<Act>(ctx, dy, x, args, work);
  if (dx == nullptr) return;
  if (args.lora != nullptr) StartInputGradient<Act>(ctx, dx, accumulate, work.du, args);
  MatMulArgs product;
  product.accumulate = accumulate || args.lora != nullptr;
  product.m = args.m;
  product.k = w.n;
  product.a = dy;
  product.a_stride = w.n;
  product.b_transposed = true;
  product.c_stride = w.k;
  const Act* whole = Undecoded<Act>(w);
  const int64_t columns = whole != nullptr ? w.k : PanelRows(w.k, w.n);
  for (int64_t k0 = 0; k0 < w.k; k0 += columns) {
    product.n = Min(columns, w.k - k0);
    product.b = whole;
    product.b_stride = w.k;
    product.c = static_cast<Act*>(dx) + k0;
    if (whole == nullptr && w.decoded != nullptr) {
      product.b = static_cast<const Act*>(w.decoded) + k0;
      product.b_as_if = product.n;
    }
    if (whole == nullptr && (w.decoded == nullptr || !CanStride<Act>(ctx, product))) {
      DecodePanel<Act>(ctx, work.panel, w, 0, w.n, k0, product.n);
      product.b = work.panel;
      product.b_stride = product.n;
    }
    MatMul<Act>(ctx, product, work.scratch);
  }
}

template void LinearForward<BF16>(Context*, void*, const void*, const LinearArgs&);
template void LinearForward<FP16>(Context*, void*, const void*, const LinearArgs&);
template void LinearBackward<BF16>(Context*, void*, bool, const void*, const void*, const LinearArgs&);
template void LinearBackward<FP16>(Context*, void*, bool, const void*, const void*, const LinearArgs&);

}  // namespace nibble::kernels::NIBBLE_CUDA

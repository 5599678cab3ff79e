// linear_forward, linear_backward, and both for groups of layers that share their input.
//
// A group is one layer with the outputs of all: its weights stand one below the other, a panel of them is
// decoded in one launch (panels.h) and meets the vendor's product once. The adapters' branches are their own,
// of one rank and each with its dropout; their skinny products are launches of the whole group.
//
// Of one layer, and of a group whose outputs are columns of one array, the adapter's branch is where the sums
// start: y = bias + scale u B^T is written first, rounded to act, and the large product accumulates onto it.
// Outputs in arrays of their own cannot be written by one product: it goes to the workspace, rounded to act,
// and the pass that computes the branch adds both. Each way moves six bytes for an output. Going back,
// dx = sum of dropout'(du A) (+ dx) is written first, and the product over the columns of all dy, which are
// brought together in the workspace where they are apart, accumulates onto it.
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/panels.h"
#include "kernels/cuda/small.h"
#include "kernels/cuda/workspace.h"

namespace nibble::kernels::NIBBLE_CUDA {
namespace {

using namespace cuda_workspace;  // NOLINT: formulas only

// Layers of one input, and their parts of ctx->workspace: a panel, per layer du and partial sums, the columns
// of all outputs, the library's scratch.
template <typename Act>
struct Layers {
  Context* ctx;
  const LinearArgs* of;
  int count;
  int64_t m;
  Stack stack;
  bool apart;      // outputs are arrays of their own
  int64_t stride;  // of the columns of all outputs
  Act* panel;
  void* du[kMostGrouped];
  float* partial[kMostGrouped];
  Act* columns;
  void* scratch;
};

// `stride` as in LinearGroup.
template <typename Act>
Layers<Act> Divide(Context* ctx, const LinearArgs* of, int count, int64_t stride) {
  KERNEL_CHECK(count >= 1 && count <= kMostGrouped);
  Layers<Act> out;
  out.ctx = ctx;
  out.of = of;
  out.count = count;
  out.m = of->m;
  out.apart = count > 1 && stride == 0;
  WeightView w[kMostGrouped];
  int64_t n[kMostGrouped];
  WorkspaceShape s;
  s.m = of->m;
  s.k = of->w.k;
  for (int i = 0; i < count; ++i) {
    KERNEL_CHECK(of[i].m == of->m && of[i].w.k == of->w.k && of[i].m >= 0 && of[i].w.n > 0 && of[i].w.k > 0);
    w[i] = of[i].w;
    n[i] = of[i].w.n;
    if (of[i].lora == nullptr) continue;
    KERNEL_CHECK(s.r == 0 || of[i].lora->r == s.r);  // a lower rank may need more partial sums
    s.r = of[i].lora->r;
  }
  out.stack = StackOf(w, count);
  out.stride = out.stack.n;
  KERNEL_CHECK(stride == 0 || stride == out.stride);
  const bool tiles = ctx->ahead != nullptr;
  const int64_t own = LinearGroupOwnBytes(s, n, count, out.apart, tiles);
  KERNEL_CHECK(own + (HasLibrary(ctx) ? kLibraryBytes : 0) <= ctx->workspace_bytes);
  char* at = static_cast<char*>(ctx->workspace);
  out.scratch = at + own;
  out.panel = reinterpret_cast<Act*>(at);
  if (!tiles) at += PanelBytes(out.stack.n, out.stack.k);
  for (int i = 0; i < count; ++i) {
    s.n = n[i];
    out.du[i] = at;
    at += AdapterGradientBytes(s);
    out.partial[i] = reinterpret_cast<float*>(at);
    at += AdapterPartialBytes(s);
  }
  out.columns = reinterpret_cast<Act*>(at);
  return out;
}

// Products with few columns, their depth cut, and what becomes of their partial sums: at most one per layer.
template <typename Act>
struct Skinny {
  GemmArgs products[kMostGrouped];
  PartialSums sums[kMostGrouped];
  int count = 0;

  void Add(void* out, float* partial, int64_t rows, int64_t columns, int64_t depth, const GemmOperand& a,
           const GemmOperand& b, const DropoutKey& dropout, float alpha, bool transposed) {
    GemmArgs& args = products[count];
    args.m = rows;
    args.n = columns;
    args.k = depth;
    args.a = a;
    args.b = b;
    args.a_dropout = dropout;
    args.partial = partial;
    args.splits = DepthSplits(rows, columns, depth);
    sums[count++] = {out, partial, args.splits, rows, columns, alpha, transposed};
  }
  // To act, or added to real.
  void Write(Context* ctx) {
    if (count == 0) return;
    Gemm<Act>(ctx, products, count);
    SumPartials<Act>(ctx, sums, count);
  }
  void Accumulate(Context* ctx) {
    if (count == 0) return;
    Gemm<Act>(ctx, products, count);
    AddPartials(ctx, sums, count);
  }
};

float KeepScale(const DropoutKey& dropout) { return dropout.p > 0 ? 1.0f / (1.0f - dropout.p) : 1.0f; }

// u = dropout(x) A^T.
template <typename Act>
void DownProjections(const Layers<Act>& layers, const void* x) {
  const int64_t k = layers.stack.k;
  Skinny<Act> u;
  for (int i = 0; i < layers.count; ++i) {
    if (layers.of[i].lora == nullptr) continue;
    const LoraArgs& lora = *layers.of[i].lora;
    u.Add(lora.u, layers.partial[i], layers.m, lora.r, k, {x, k, false}, {lora.a, k, false}, lora.dropout,
          KeepScale(lora.dropout), false);
  }
  u.Write(layers.ctx);
}

// y = bias + scale u B^T, either of which may be missing, plus what is in the columns of all outputs where
// these are apart.
template <typename Act>
void Branches(const Layers<Act>& layers, void* const* y) {
  GemmArgs branches[kMostGrouped];
  const Act* columns = layers.columns;
  for (int i = 0; i < layers.count; ++i) {
    const LinearArgs& args = layers.of[i];
    GemmArgs& branch = branches[i];
    branch.m = layers.m;
    branch.n = args.w.n;
    branch.c = y[i];
    branch.c_stride = layers.apart ? args.w.n : layers.stride;
    branch.bias = args.bias;
    if (layers.apart) {
      branch.add = columns;
      branch.add_stride = layers.stride;
      columns += args.w.n;
    }
    if (args.lora == nullptr) continue;
    branch.k = args.lora->r;
    branch.a = {args.lora->u, args.lora->r, false};
    branch.b = {args.lora->b, args.lora->r, false};
    branch.alpha = args.lora->scale;
  }
  Gemm<Act>(layers.ctx, branches, layers.count);
}

// du = scale dy B; da += du^T dropout(x); db += scale dy^T u.
template <typename Act>
void AdapterGradients(const Layers<Act>& layers, void* const* dy, const void* x) {
  const int64_t m = layers.m, k = layers.stack.k;
  Skinny<Act> du, da, db;
  for (int i = 0; i < layers.count; ++i) {
    if (layers.of[i].lora == nullptr) continue;
    const LoraArgs& lora = *layers.of[i].lora;
    const int64_t n = layers.of[i].w.n, r = lora.r, stride = layers.apart ? n : layers.stride;
    float* partial = layers.partial[i];
    void* of_u = layers.du[i];
    du.Add(of_u, partial, m, r, n, {dy[i], stride, false}, {lora.b, r, true}, {}, lora.scale, false);
    if (lora.da != nullptr)
      da.Add(lora.da, partial, k, r, m, {x, k, true}, {of_u, r, true}, lora.dropout, KeepScale(lora.dropout),
             true);
    if (lora.db != nullptr)
      db.Add(lora.db, partial, n, r, m, {dy[i], stride, true}, {lora.u, r, true}, {}, lora.scale, false);
  }
  du.Write(layers.ctx);
  da.Accumulate(layers.ctx);
  db.Accumulate(layers.ctx);
}

// dx = sum of dropout'(du A) (+ dx). False: there is no adapter, nothing was written.
template <typename Act>
bool StartInputGradient(const Layers<Act>& layers, void* dx, bool accumulate) {
  GemmTerm terms[kMostGrouped];
  int count = 0;
  for (int i = 0; i < layers.count; ++i) {
    if (layers.of[i].lora == nullptr) continue;
    const LoraArgs& lora = *layers.of[i].lora;
    terms[count++] = {layers.du[i], lora.a, lora.r, 1.0f, lora.dropout};
  }
  if (count == 0) return false;
  GemmArgs out;
  out.m = layers.m;
  out.n = out.c_stride = out.add_stride = layers.stack.k;
  out.c = dx;
  if (accumulate) out.add = dx;
  GemmTerms<Act>(layers.ctx, out, terms, count);
  return true;
}

struct Columns {
  const void* from[kMostGrouped];  // act [m, n[i]]
  int64_t n[kMostGrouped];
  int64_t offset[kMostGrouped];
  int64_t m, stride;
};

constexpr int kThreads = 256;

// A thread has eight neighbours; blockIdx.y is the array they come from.
template <typename Act>
__global__ void __launch_bounds__(kThreads) GatherKernel(Act* to, const __grid_constant__ Columns columns,
                                                         bool vector) {
  const int64_t n = columns.n[blockIdx.y];
  const auto per_row = static_cast<unsigned>(CeilDiv<int64_t>(n, 8));
  const unsigned index = blockIdx.x * kThreads + threadIdx.x;
  const int64_t row = index / per_row, column = int64_t{index % per_row} * 8;
  if (row >= columns.m) return;
  float values[8];
  Load8(values, static_cast<const Act*>(columns.from[blockIdx.y]) + row * n + column, n - column, vector);
  Store8(to + row * columns.stride + columns.offset[blockIdx.y] + column, values, n - column, vector);
}

template <typename Act>
void Gather(const Layers<Act>& layers, void* const* dy) {
  Columns columns{};
  columns.m = layers.m;
  columns.stride = layers.stride;
  int64_t offset = 0, most = 0;
  bool vector = Aligned(layers.columns);
  for (int i = 0; i < layers.count; ++i) {
    const int64_t n = layers.of[i].w.n;
    columns.from[i] = dy[i];
    columns.n[i] = n;
    columns.offset[i] = offset;
    offset += n;
    most = Max(most, layers.m * CeilDiv<int64_t>(n, 8));
    vector = vector && n % 8 == 0 && Aligned(static_cast<const char*>(dy[i]));
  }
  KERNEL_CHECK(most < int64_t{1} << 32);
  Launch(layers.ctx, dim3(Blocks(most, kThreads), static_cast<unsigned>(layers.count)), kThreads, 0,
         GatherKernel<Act>, layers.columns, columns, vector);
}

template <typename Act>
void Forward(const Layers<Act>& layers, void* const* y, const void* x) {
  const Stack& stack = layers.stack;
  DownProjections(layers, x);
  bool branches = false;
  for (int i = 0; i < layers.count; ++i)
    branches = branches || layers.of[i].lora != nullptr || layers.of[i].bias.data != nullptr;
  if (branches && !layers.apart) Branches(layers, y);
  MatMulArgs product;
  product.accumulate = branches && !layers.apart;
  product.m = layers.m;
  product.k = stack.k;
  product.a = x;
  product.a_stride = product.b_stride = stack.k;
  product.c_stride = layers.stride;
  Act* out = layers.apart ? layers.columns : static_cast<Act*>(y[0]);
  bool stored = false;
  const Act* whole = WholeStack<Act>(stack, &stored);
  const int64_t rows = whole != nullptr && stored ? stack.n : PanelStep(stack, false);
  for (int64_t n0 = 0; n0 < stack.n; n0 += rows) {
    product.n = Min(rows, stack.n - n0);
    product.b = whole != nullptr ? whole + n0 * stack.k
                                 : TakePanel(layers.ctx, stack, false, n0, product.n, layers.panel);
    product.c = out + n0;
    MatMul<Act>(layers.ctx, product, layers.scratch);
  }
  if (layers.apart) Branches(layers, y);
}

template <typename Act>
void Backward(const Layers<Act>& layers, void* dx, bool accumulate, void* const* dy, const void* x) {
  const Stack& stack = layers.stack;
  AdapterGradients(layers, dy, x);
  if (dx == nullptr) return;
  const bool started = StartInputGradient(layers, dx, accumulate);
  if (layers.apart) Gather(layers, dy);
  MatMulArgs product;
  product.accumulate = accumulate || started;
  product.m = layers.m;
  product.k = stack.n;
  product.a = layers.apart ? layers.columns : dy[0];
  product.a_stride = layers.stride;
  product.b_transposed = true;
  product.c_stride = stack.k;
  bool stored = false;
  const Act* whole = WholeStack<Act>(stack, &stored);
  const int64_t columns = whole != nullptr && stored ? stack.k : PanelStep(stack, true);
  for (int64_t k0 = 0; k0 < stack.k; k0 += columns) {
    product.n = Min(columns, stack.k - k0);
    product.c = static_cast<Act*>(dx) + k0;
    product.b = whole != nullptr ? whole + k0 : nullptr;
    product.b_stride = stack.k;
    product.b_as_if = whole != nullptr && !stored ? product.n : 0;  // the sums of a panel
    if (whole == nullptr || (!stored && !CanStride<Act>(layers.ctx, product))) {
      product.b = TakePanel(layers.ctx, stack, true, k0, product.n, layers.panel);
      product.b_stride = product.n;
      product.b_as_if = 0;
    }
    MatMul<Act>(layers.ctx, product, layers.scratch);
  }
}

}  // namespace

template <typename Act>
void LinearForward(Context* ctx, void* y, const void* x, const LinearArgs& args) {
  KERNEL_CHECK(args.m >= 0 && args.w.n > 0 && args.w.k > 0);
  if (args.m == 0) return;
  if (LinearForwardSmall<Act>(ctx, y, x, args)) return LeavePanel(ctx);
  Forward<Act>(Divide<Act>(ctx, &args, 1, 0), &y, x);
}

template <typename Act>
void LinearBackward(Context* ctx, void* dx, bool accumulate, const void* dy, const void* x,
                    const LinearArgs& args) {
  if (args.m == 0) return;
  void* const only_read = const_cast<void*>(dy);
  Backward<Act>(Divide<Act>(ctx, &args, 1, 0), dx, accumulate, &only_read, x);
}

template <typename Act>
void LinearGroupForward(Context* ctx, const void* x, const LinearGroup& group) {
  if (group.linear[0].m == 0) return;
  Forward<Act>(Divide<Act>(ctx, group.linear, group.count, group.stride), group.y, x);
}

template <typename Act>
void LinearGroupBackward(Context* ctx, void* dx, const void* x, const LinearGroup& group) {
  if (group.linear[0].m == 0) return;
  Backward<Act>(Divide<Act>(ctx, group.linear, group.count, group.stride), dx, false, group.y, x);
}

#define INSTANTIATE(Act)                                                                                 \
  template void LinearForward<Act>(Context*, void*, const void*, const LinearArgs&);                     \
  template void LinearBackward<Act>(Context*, void*, bool, const void*, const void*, const LinearArgs&); \
  template void LinearGroupForward<Act>(Context*, const void*, const LinearGroup&);                      \
  template void LinearGroupBackward<Act>(Context*, void*, const void*, const LinearGroup&);
INSTANTIATE(BF16)
INSTANTIATE(FP16)
#undef INSTANTIATE

}  // namespace nibble::kernels::NIBBLE_CUDA

// Cross-entropy over chunks of labelled tokens, and logits.
//
// Per chunk: gather the labelled rows, all their logits in fp32 (the only place where tokens x vocabulary
// exists, for a chunk), softmax minus one-hot in place as operands, and the product with the head again.
#pragma once

#include <cmath>

#include "kernels/cpu/body/elementwise.h"
#include "kernels/cpu/body/gemm.h"
#include "kernels/cpu/body/gemv.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

static WeightView HeadView(const ParamView& head, int64_t vocab, int64_t dim) {
  KERNEL_CHECK(IsReadable(head));
  WeightView view;
  view.type = head.type == DType::kBF16 ? QuantType::kBF16 : QuantType::kF32;
  view.n = vocab;
  view.k = dim;
  view.data = head.data;
  return view;
}

// out f32 rows of `out_stride`; whole vectors may be stored past `columns` when the rows are padded.
static void LogitProduct(Context* ctx, int64_t reserved, float* out, int64_t out_stride, const BF16* h,
                         const WeightView& head, int64_t rows) {
  Gemm(ctx, reserved, GemmShape{rows, head.n, head.k}, Lhs{h, head.k},
       RowPacker<WeightSource, OperandFormat>{{head}},
       [&](int64_t row, int64_t count, int64_t column, int64_t width, const float* sums, int64_t stride) {
         for (int64_t i = 0; i < count; ++i)
           for (int64_t v = 0; v < width; v += kLanes)
             StoreSome(out + (row + i) * out_stride + column + v, Load(sums + i * stride + v), width - v);
       });
}

// Logits become soft_cap * tanh(logits / soft_cap).
static void CapLogits(float* logits, int64_t count, float soft_cap) {
  const F32 inverse = Set1(1.0f / soft_cap), cap = Set1(soft_cap);
  for (int64_t i = 0; i < count; i += kLanes)
    StoreSome(logits + i, Mul(cap, Tanh(Mul(LoadSome(logits + i, count - i), inverse))), count - i);
}

// -log softmax(row)[label]; the row becomes softmax - one-hot as operands, when wanted. With kCapped the
// logits are capped already, and gradients are those of the logits before.
template <bool kCapped>
static double SoftmaxRow(float* logits, int64_t vocab, int32_t label, bool gradient,
                         [[maybe_unused]] float soft_cap) {
  F32 largest = Set1(-INFINITY);
  int64_t i = 0;
  for (; i + kLanes <= vocab; i += kLanes) largest = Max(largest, Load(logits + i));
  float top = MaxLanes(largest);
  for (; i < vocab; ++i) top = logits[i] > top ? logits[i] : top;
  const F32 shift = Set1(top);
  F32 sums = Zero();
  for (i = 0; i < vocab; i += kLanes) {
    const F32 e = Exp(Sub(LoadSome(logits + i, vocab - i), shift));
    sums = Add(sums, vocab - i >= kLanes ? e : KeepLanes(e, 0, vocab - i, Zero()));
  }
  const float total = SumLanes(sums);
  const float log_total = std::log(total);
  const double loss =
      static_cast<double>(top) + static_cast<double>(log_total) - static_cast<double>(logits[label]);
  if (!gradient) return loss;
  // In place: an operand is at most as wide as a float, so writing never overtakes reading.
  auto* out = reinterpret_cast<Operand*>(logits);
  const F32 inverse = Set1(1.0f / total);
  const float label_logit = logits[label];
  const auto probability = [&](F32 logit) __attribute__((always_inline)) {
    return Mul(Exp(Sub(logit, shift)), inverse);
  };
  const auto before_cap = [&](F32 value, [[maybe_unused]] F32 logit) __attribute__((always_inline)) {
    if constexpr (!kCapped) return value;
    const F32 share = Div(logit, Set1(soft_cap));
    return Mul(value, NegFma(share, share, Set1(1.0f)));
  };
  for (i = 0; i < vocab; i += kLanes) {
    const F32 logit = LoadSome(logits + i, vocab - i);
    StoreSome(out + i, before_cap(probability(logit), logit), vocab - i);
  }
  const F32 logit = Set1(label_logit);
  float label_value[kLanes];
  Store(label_value, before_cap(Sub(probability(logit), Set1(1.0f)), logit));
  out[label] = ToOperand(label_value[0]);
  return loss;
}

static void CrossEntropy(Context* ctx, double* loss_sum, void* dh, const void* h, ParamView head,
                         const int32_t* labels, int64_t m, int64_t dim, int64_t vocab,
                         double gradient_scale, float soft_cap) {
  KERNEL_CHECK(m >= 0 && dim > 0 && vocab > 0 && soft_cap >= 0);
  WorkspaceShape shape;
  shape.m = m;
  shape.k = dim;
  shape.vocab = vocab;
  shape.threads = PoolThreads(ctx->pool);
  KERNEL_CHECK(ctx->workspace_bytes >= CrossEntropyWorkspaceBytes(shape));
  const WeightView weights = HeadView(head, vocab, dim);
  const int64_t chunk = CrossEntropyChunk(m, vocab);
  const int64_t stride = RoundUp(vocab, 64);
  auto* logits = static_cast<float*>(ctx->workspace);
  auto* losses = reinterpret_cast<double*>(logits + chunk * stride);
  auto* rows = reinterpret_cast<int64_t*>(losses + chunk);
  auto* gathered = reinterpret_cast<BF16*>(rows + chunk);
  const int64_t reserved =
      RoundUp(chunk * (4 * stride + 16) + 2 * chunk * dim, 64);
  auto* gradient = static_cast<BF16*>(dh);
  const auto* hidden = static_cast<const BF16*>(h);

  int64_t next = 0;
  while (next < m) {
    int64_t count = 0;
    for (; next < m && count < chunk; ++next) {
      if (labels[next] < 0) {
        if (gradient != nullptr) std::memset(gradient + next * dim, 0, static_cast<size_t>(2 * dim));
        continue;
      }
      KERNEL_CHECK(labels[next] < vocab);
      rows[count] = next;
      std::memcpy(gathered + count * dim, hidden + next * dim, static_cast<size_t>(2 * dim));
      ++count;
    }
    if (count == 0) break;
    LogitProduct(ctx, reserved, logits, stride, gathered, weights, count);
    RunRows(ctx, count, vocab, [&](int64_t i) {
      float* const row = logits + i * stride;
      if (soft_cap > 0) CapLogits(row, vocab, soft_cap);
      const auto softmax = soft_cap > 0 ? SoftmaxRow<true> : SoftmaxRow<false>;
      losses[i] = softmax(row, vocab, labels[rows[i]], gradient != nullptr, soft_cap);
    });
    for (int64_t i = 0; i < count; ++i) *loss_sum += losses[i];
    if (gradient == nullptr) continue;
    const int64_t operand_stride = stride * 4 / static_cast<int64_t>(sizeof(Operand));
    const F32 scale = Set1(static_cast<float>(gradient_scale));
    Gemm(ctx, reserved, GemmShape{count, dim, vocab}, Lhs{logits, operand_stride, true},
         ColumnPacker<WeightSource>{{weights}},
         [&](int64_t row, int64_t tile_rows, int64_t column, int64_t width, const float* sums,
             int64_t sums_stride) {
           for (int64_t i = 0; i < tile_rows; ++i)
             for (int64_t v = 0; v < width; v += kLanes)
               StoreSome(gradient + rows[row + i] * dim + column + v,
                         Mul(Load(sums + i * sums_stride + v), scale), width - v);
         });
  }
}

static void Logits(Context* ctx, float* out, const void* h, ParamView head, int64_t m, int64_t dim,
                   int64_t vocab, float soft_cap) {
  KERNEL_CHECK(soft_cap >= 0);
  WorkspaceShape shape;
  shape.m = m;
  shape.threads = PoolThreads(ctx->pool);
  KERNEL_CHECK(ctx->workspace_bytes >= LogitsWorkspaceBytes(shape));
  const WeightView weights = HeadView(head, vocab, dim);
  if (m == 1)
    RowProducts(ctx, weights, static_cast<const BF16*>(h), [out](int64_t n, float sum) { out[n] = sum; });
  else
    LogitProduct(ctx, 0, out, vocab, static_cast<const BF16*>(h), weights, m);
  if (soft_cap > 0)
    RunSpans(ctx, m * vocab,
             [&](int64_t first, int64_t last) { CapLogits(out + first, last - first, soft_cap); });
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY

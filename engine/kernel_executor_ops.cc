// The operations of KernelExecutor between the linear ones: what step.h names becomes one call of the table.
#include "engine/kernel_executor.h"
#include "engine/model_args.h"
#include "engine/spec/rope.h"

namespace nibble::engine {

using kernels::Lane;
using spec::Slot;
using spec::StepPhase;

KernelExecutor::NormArgs KernelExecutor::NormOf(spec::Norm norm, int32_t layer) const {
  const int64_t m = shape_.rows;
  const BaseView::Layer& of = base_.layers[static_cast<size_t>(layer)];
  switch (norm) {
    case spec::Norm::kInput:
      return {of.input_norm, m, model_.hidden_size};
    case spec::Norm::kPost:
      return {of.post_norm, m, model_.hidden_size};
    case spec::Norm::kQuery:
      return {of.q_norm, m * model_.heads, model_.head_dim};
    case spec::Norm::kKey:
      return {of.k_norm, m * model_.kv_heads, model_.head_dim};
    case spec::Norm::kAttention:
      return {of.attention_norm, m, model_.hidden_size};
    case spec::Norm::kMlp:
      return {of.mlp_norm, m, model_.hidden_size};
    case spec::Norm::kFinal:
      break;
  }
  return {base_.final_norm, m, model_.hidden_size};
}

kernels::AttentionArgs KernelExecutor::AttentionOf(int32_t layer) const {
  kernels::AttentionArgs args = AttentionArgsOf(model_, layer);
  args.m = shape_.rows;
  args.starts = reinterpret_cast<const int32_t*>(At({Slot::kStarts}));
  args.documents = shape_.documents;
  return args;
}

void KernelExecutor::Embedding(Tensor out) {
  table_.embedding_forward(NextOp(StepPhase::kElementwise), out,
                           reinterpret_cast<const int32_t*>(At({Slot::kIds})), base_.embedding, shape_.rows,
                           model_.hidden_size, EmbeddingScale(model_, table_.act));
}

void KernelExecutor::RmsNorm(Tensor y, Tensor rstd, Tensor x, spec::Norm norm, int32_t layer) {
  const NormArgs a = NormOf(norm, layer);
  table_.rmsnorm_forward(NextOp(StepPhase::kElementwise), y, rstd, x, a.weight, a.rows, a.dim,
                         static_cast<float>(model_.rms_norm_eps), NormOffset(model_));
}

void KernelExecutor::RmsNormBackward(Tensor dx, bool accumulate, Tensor dy, Tensor x, Tensor rstd,
                                     spec::Norm norm, int32_t layer) {
  const NormArgs a = NormOf(norm, layer);
  table_.rmsnorm_backward(NextOp(StepPhase::kElementwise), dx, accumulate, dy, x, a.weight, rstd, a.rows,
                          a.dim, NormOffset(model_));
}

void KernelExecutor::Add(Tensor out, Tensor a, Tensor b) {
  table_.add(NextOp(StepPhase::kElementwise), out, a, b, shape_.rows * model_.hidden_size);
}

void KernelExecutor::Rope(Tensor x, int64_t heads, int32_t layer, bool inverse) {
  const int64_t table = spec::RopeTableBegin(model_, layer, spec_.sequence_len);
  table_.rope(NextOp(StepPhase::kElementwise), x, reinterpret_cast<const int32_t*>(At({Slot::kPositions})),
              reinterpret_cast<const float*>(persistent_ + plan_.persistent.rope) + table, shape_.rows, heads,
              model_.head_dim, model_.RotaryWidth(), inverse);
}

void KernelExecutor::Attention(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, int32_t layer) {
  table_.attention_forward(NextOp(StepPhase::kAttention), out, lse, q, k, v, AttentionOf(layer));
}

void KernelExecutor::AttentionBackward(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse,
                                       Tensor q, Tensor k, Tensor v, int32_t layer) {
  table_.attention_backward(NextOp(StepPhase::kAttention), dq, dk, dv, dout, out, lse, q, k, v,
                            AttentionOf(layer));
}

kernels::ColumnsArgs KernelExecutor::ColumnsOf(Tensor q, Tensor k, Tensor v) const {
  return {.rows = shape_.rows,
          .width = {model_.QueryWidth(), model_.KeyValueWidth(), model_.KeyValueWidth()},
          .part = {q, k, v}};
}

void KernelExecutor::Split(Tensor q, Tensor k, Tensor v, Tensor all) {
  table_.split_columns(NextOp(StepPhase::kElementwise), all, ColumnsOf(q, k, v));
}

void KernelExecutor::Join(Tensor all, Tensor q, Tensor k, Tensor v) {
  table_.join_columns(NextOp(StepPhase::kElementwise), all, ColumnsOf(q, k, v));
}

kernels::GatedArgs KernelExecutor::GatedOf(bool one) const {
  const int64_t width = model_.intermediate_size;
  return {.rows = shape_.rows,
          .width = width,
          .stride = one ? 2 * width : width,
          .activation = ActivationOf(model_)};
}

void KernelExecutor::Gated(Tensor out, Tensor gate, Tensor up) {
  const bool one = IsNone(up);
  if (one) up = Column(gate, model_.intermediate_size);
  table_.gated_forward(NextOp(StepPhase::kElementwise), out, gate, up, GatedOf(one));
}

void KernelExecutor::GatedBackward(Tensor dgate, Tensor dup, Tensor dout, Tensor gate, Tensor up) {
  const bool one = IsNone(up);
  if (one) {
    up = Column(gate, model_.intermediate_size);
    dup = Column(dgate, model_.intermediate_size);
  }
  table_.gated_backward(NextOp(StepPhase::kElementwise), dgate, dup, dout, gate, up, GatedOf(one));
}

void KernelExecutor::CrossEntropy(Tensor dh, Tensor h) {
  std::byte* const late = Late(2);
  auto* loss = reinterpret_cast<double*>(late != nullptr ? late : LossSlot(micro_batch_));
  context_.late_gradient_scale = reinterpret_cast<const double*>(Late(1));
  backend_.Fill(loss, 0, sizeof *loss);
  table_.cross_entropy(NextOp(StepPhase::kLoss), loss, dh, h, base_.head,
                       reinterpret_cast<const int32_t*>(At({Slot::kLabels})), shape_.rows, model_.hidden_size,
                       model_.vocab_size, gradient_scale_, LogitCap(model_));
}

void KernelExecutor::Offload(Tensor x, int32_t layer) {
  NextOp(StepPhase::kElementwise);
  backend_.Wait(Lane::kOut, Lane::kCompute);
  backend_.CopyOut(Lane::kOut, InputSlot(layer), x, InputBytes());
}

void KernelExecutor::OffloadDone(Tensor) {
  NextOp(StepPhase::kElementwise);
  backend_.Wait(Lane::kCompute, Lane::kOut);
}

void KernelExecutor::Fetch(Tensor x, int32_t layer) {
  NextOp(StepPhase::kElementwise);
  backend_.Wait(Lane::kIn, Lane::kCompute);  // who had this memory before is done
  backend_.CopyIn(Lane::kIn, x, InputSlot(layer), InputBytes());
}

void KernelExecutor::FetchDone(Tensor) {
  NextOp(StepPhase::kElementwise);
  backend_.Wait(Lane::kCompute, Lane::kIn);
}

}  // namespace nibble::engine

#include "engine/kernel_executor.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/status.h"
#include "kernels/counter.h"

namespace nibble::engine {

using kernels::Context;
using spec::Module;
using spec::Slot;

KernelExecutor::KernelExecutor(const kernels::KernelTable& table, Context& context,
                               const BaseView& base, const spec::ModelConfig& model,
                               const spec::TrainSpec& spec, const spec::CompiledPlan& plan,
                               std::byte* persistent)
    : table_(table),
      context_(context),
      base_(base),
      model_(model),
      spec_(spec),
      plan_(plan),
      persistent_(persistent),
      adapter_of_(static_cast<size_t>(model.layers * spec::kModuleCount), nullptr) {
  for (const spec::AdapterMatrix& matrix : plan.adapters.matrices) {
    adapter_of_[static_cast<size_t>(matrix.layer * spec::kModuleCount +
                                    static_cast<int>(matrix.module))] = &matrix;
  }
}

double KernelExecutor::Train(const MicroBatch& batch, double gradient_scale, int64_t step,
                             int64_t micro_batch) {
  Stage(batch);
  op_ = 0;
  training_ = true;
  gradient_scale_ = gradient_scale;
  loss_sum_ = 0;
  // 14 bits are left for layer and module, 17 for the micro-batch: see the bounds of the two.
  dropout_stream_ =
      (static_cast<uint64_t>(step) << 31) | (static_cast<uint64_t>(micro_batch) << 14);
  spec::TrainMicroBatch(*this, model_, spec_);
  CHECK(op_ == static_cast<size_t>(plan_.optimizer_op));
  return loss_sum_;
}

double KernelExecutor::Evaluate(const MicroBatch& batch) {
  Stage(batch);
  op_ = static_cast<size_t>(plan_.evaluate_op);
  training_ = false;
  loss_sum_ = 0;
  spec::EvalMicroBatch(*this, model_, spec_);
  CHECK(op_ == plan_.workspace_offset.size());
  return loss_sum_;
}

void KernelExecutor::ZeroGradients() {
  std::memset(persistent_ + plan_.persistent.gradient, 0,
              static_cast<size_t>(plan_.adapters.elements * kernels::DTypeBytes(table_.real)));
}

KernelExecutor::Update KernelExecutor::Optimize(double learning_rate, int64_t update, double loss) {
  op_ = static_cast<size_t>(plan_.optimizer_op);
  adamw_ = {.count = plan_.adapters.elements,
            .learning_rate = learning_rate,
            .beta1 = spec_.adam_beta1,
            .beta2 = spec_.adam_beta2,
            .epsilon = spec_.adam_epsilon,
            .weight_decay = spec_.weight_decay,
            .step = update};
  apply_ = std::isfinite(loss);
  spec::OptimizerStep(*this);
  return {std::sqrt(sum_squares_), apply_};
}

void KernelExecutor::RefreshCompute() {
  apply_ = true;
  op_ = static_cast<size_t>(plan_.evaluate_op) - 1;
  ToAct();
}

void KernelExecutor::Stage(const MicroBatch& batch) {
  const int64_t room = int64_t{spec_.micro_batch_size} * spec_.sequence_len;
  CHECK(batch.tokens() > 0 && batch.tokens() <= room);
  CHECK(static_cast<int64_t>(batch.starts.size()) <= room + 1);
  batch_ = &batch;
  const auto copy = [&](Slot slot, const std::vector<int32_t>& values) {
    std::memcpy(At({slot}), values.data(), values.size() * sizeof(int32_t));
  };
  copy(Slot::kIds, batch.ids);
  copy(Slot::kLabels, batch.labels);
  copy(Slot::kPositions, batch.positions);
  copy(Slot::kStarts, batch.starts);
}

Context* KernelExecutor::NextOp() {
  context_.workspace = step_ + plan_.workspace_offset[op_];
  context_.workspace_bytes = plan_.workspace_bytes[op_];
  ++op_;
  return &context_;
}

KernelExecutor::NormArgs KernelExecutor::NormOf(spec::Norm norm, int32_t layer) const {
  const int64_t m = batch_->tokens();
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
    case spec::Norm::kFinal:
      break;
  }
  return {base_.final_norm, m, model_.hidden_size};
}

kernels::AttentionArgs KernelExecutor::AttentionOf() const {
  return {.m = batch_->tokens(),
          .heads = model_.heads,
          .kv_heads = model_.kv_heads,
          .head_dim = model_.head_dim,
          .starts = reinterpret_cast<const int32_t*>(At({Slot::kStarts})),
          .documents = static_cast<int64_t>(batch_->starts.size()) - 1,
          .scale = 1.0f / std::sqrt(static_cast<float>(model_.head_dim)),
          .window = model_.sliding_window};
}

kernels::LinearArgs KernelExecutor::LinearOf(Tensor u, int32_t layer, Module module,
                                             kernels::LoraArgs& lora) const {
  const BaseView::Layer& of = base_.layers[static_cast<size_t>(layer)];
  const int m = static_cast<int>(module);
  kernels::LinearArgs args{.m = batch_->tokens(), .w = of.linear[m], .bias = of.bias[m]};
  const spec::AdapterMatrix* matrix =
      adapter_of_[static_cast<size_t>(layer * spec::kModuleCount + m)];
  if (matrix == nullptr) return args;
  const int64_t act = kernels::DTypeBytes(table_.act);
  const int64_t real = kernels::DTypeBytes(table_.real);
  const std::byte* compute = persistent_ + plan_.persistent.compute;
  std::byte* gradient = persistent_ + plan_.persistent.gradient;
  lora = {.r = spec_.lora_r,
          .scale = static_cast<float>(spec_.LoraScale()),
          .a = compute + matrix->a * act,
          .b = compute + matrix->b * act,
          .u = u,
          .da = gradient + matrix->a * real,
          .db = gradient + matrix->b * real};
  if (training_) {
    lora.dropout = {
        .seed = spec_.seed,
        .stream = dropout_stream_ | (static_cast<uint64_t>(layer) << 3 | static_cast<uint64_t>(m)),
        .p = static_cast<float>(spec_.lora_dropout)};
  }
  args.lora = &lora;
  return args;
}

void KernelExecutor::Embedding(Tensor out) {
  table_.embedding_forward(NextOp(), out, reinterpret_cast<const int32_t*>(At({Slot::kIds})),
                           base_.embedding, batch_->tokens(), model_.hidden_size, 1.0f);
}

void KernelExecutor::RmsNorm(Tensor y, Tensor rstd, Tensor x, spec::Norm norm, int32_t layer) {
  const NormArgs a = NormOf(norm, layer);
  table_.rmsnorm_forward(NextOp(), y, rstd, x, a.weight, a.rows, a.dim,
                         static_cast<float>(model_.rms_norm_eps), 0.0f);
}

void KernelExecutor::RmsNormBackward(Tensor dx, bool accumulate, Tensor dy, Tensor x, Tensor rstd,
                                     spec::Norm norm, int32_t layer) {
  const NormArgs a = NormOf(norm, layer);
  table_.rmsnorm_backward(NextOp(), dx, accumulate, dy, x, a.weight, rstd, a.rows, a.dim, 0.0f);
}

void KernelExecutor::Linear(Tensor y, Tensor x, Tensor u, int32_t layer, Module module) {
  kernels::LoraArgs lora;
  const kernels::LinearArgs args = LinearOf(u, layer, module, lora);
  table_.linear_forward(NextOp(), y, x, args);
}

void KernelExecutor::LinearBackward(Tensor dx, bool accumulate, Tensor dy, Tensor x, Tensor u,
                                    int32_t layer, Module module) {
  kernels::LoraArgs lora;
  const kernels::LinearArgs args = LinearOf(u, layer, module, lora);
  table_.linear_backward(NextOp(), dx, accumulate, dy, x, args);
}

void KernelExecutor::Add(Tensor out, Tensor a, Tensor b) {
  table_.add(NextOp(), out, a, b, batch_->tokens() * model_.hidden_size);
}

void KernelExecutor::Rope(Tensor x, int64_t heads, bool inverse) {
  table_.rope(NextOp(), x, reinterpret_cast<const int32_t*>(At({Slot::kPositions})),
              reinterpret_cast<const float*>(persistent_ + plan_.persistent.rope), batch_->tokens(),
              heads, model_.head_dim, inverse);
}

void KernelExecutor::Attention(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v) {
  table_.attention_forward(NextOp(), out, lse, q, k, v, AttentionOf());
}

void KernelExecutor::AttentionBackward(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out,
                                       Tensor lse, Tensor q, Tensor k, Tensor v) {
  table_.attention_backward(NextOp(), dq, dk, dv, dout, out, lse, q, k, v, AttentionOf());
}

void KernelExecutor::Gated(Tensor out, Tensor gate, Tensor up) {
  table_.gated_forward(NextOp(), out, gate, up, batch_->tokens() * model_.intermediate_size,
                       kernels::Activation::kSilu);
}

void KernelExecutor::GatedBackward(Tensor dgate, Tensor dup, Tensor dout, Tensor gate, Tensor up) {
  table_.gated_backward(NextOp(), dgate, dup, dout, gate, up,
                        batch_->tokens() * model_.intermediate_size, kernels::Activation::kSilu);
}

void KernelExecutor::CrossEntropy(Tensor dh, Tensor h) {
  table_.cross_entropy(NextOp(), &loss_sum_, dh, h, base_.head,
                       reinterpret_cast<const int32_t*>(At({Slot::kLabels})), batch_->tokens(),
                       model_.hidden_size, model_.vocab_size, gradient_scale_);
}

void KernelExecutor::SumSquares() {
  table_.sum_squares(NextOp(), &sum_squares_, persistent_ + plan_.persistent.gradient,
                     plan_.adapters.elements);
  apply_ = apply_ && std::isfinite(sum_squares_);
  const double norm = std::sqrt(sum_squares_);
  if (spec_.max_grad_norm > 0 && norm > spec_.max_grad_norm) {
    adamw_.gradient_scale = spec_.max_grad_norm / (norm + 1e-6);  // torch's clip_grad_norm_
  }
}

void KernelExecutor::AdamW() {
  Context* context = NextOp();
  if (!apply_) return;
  table_.adamw(context, persistent_ + plan_.persistent.master,
               persistent_ + plan_.persistent.gradient, persistent_ + plan_.persistent.moment1,
               persistent_ + plan_.persistent.moment2, adamw_);
}

void KernelExecutor::ToAct() {
  Context* context = NextOp();
  if (!apply_) return;
  table_.to_act(context, persistent_ + plan_.persistent.compute,
                persistent_ + plan_.persistent.master, plan_.adapters.elements);
}

namespace {

// Separates these draws from dropout's, whose streams begin with a step number.
constexpr uint64_t kInitStream = 0xA0ull << 56;

template <typename T>
void InitMasters(const spec::CompiledPlan& plan, const spec::TrainSpec& spec, T* master) {
  std::fill(master, master + plan.adapters.elements, T{0});
  for (const spec::AdapterMatrix& matrix : plan.adapters.matrices) {
    const uint64_t stream = kInitStream | static_cast<uint64_t>(matrix.layer) << 3 |
                            static_cast<uint64_t>(matrix.module);
    const float bound = 1.0f / std::sqrt(static_cast<float>(matrix.in));
    for (int64_t i = 0; i < spec.lora_r * matrix.in; ++i) {
      const float unit = kernels::CounterUniform(spec.seed, stream, static_cast<uint64_t>(i));
      master[matrix.a + i] = static_cast<T>((2.0f * unit - 1.0f) * bound);
    }
  }
}

}  // namespace

void InitAdapters(const spec::CompiledPlan& plan, const spec::TrainSpec& spec, kernels::DType real,
                  std::byte* persistent) {
  std::byte* master = persistent + plan.persistent.master;
  if (real == kernels::DType::kF64) {
    InitMasters(plan, spec, reinterpret_cast<double*>(master));
  } else {
    InitMasters(plan, spec, reinterpret_cast<float*>(master));
  }
}

}  // namespace nibble::engine

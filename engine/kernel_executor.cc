#include "engine/kernel_executor.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/status.h"
#include "kernels/counter.h"
#include "kernels/nf4.h"

namespace nibble::engine {

using kernels::Context;
using kernels::Lane;
using spec::Module;
using spec::Slot;
using spec::StepPhase;

KernelExecutor::KernelExecutor(kernels::Backend& backend, const kernels::KernelTable& table,
                               const BaseView& base, const spec::ModelConfig& model,
                               const spec::TrainSpec& spec, const spec::CompiledPlan& plan,
                               std::byte* persistent)
    : backend_(backend),
      table_(table),
      context_(backend.context()),
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
  scalars_ = static_cast<double*>(backend.AllocatePinned(spec::ScalarBytes(spec)));
  CHECK(scalars_ != nullptr);
  if (!backend.is_host()) {
    staging_ = static_cast<std::byte*>(
        backend.AllocatePinned(spec::kStagingSets * spec::StagingBytes(spec)));
    CHECK(staging_ != nullptr);
  }
  if (table.act == kernels::DType::kF16) loss_scale_.scale = LossScale::kInitial;
}

KernelExecutor::~KernelExecutor() {
  backend_.Synchronize();  // copies may be under way
  backend_.ReleasePinned(scalars_);
  if (staging_ != nullptr) backend_.ReleasePinned(staging_);
}

void KernelExecutor::Queue(const MicroBatch& batch, double gradient_scale, int64_t step,
                           int64_t micro_batch) {
  CHECK(micro_batch < loss_slots());
  BeginPhase(StepPhase::kData);
  Stage(batch);
  op_ = 0;
  training_ = true;
  gradient_scale_ = gradient_scale * loss_scale_.scale;
  micro_batch_ = micro_batch;
  // 14 bits are left for layer and module, 17 for the micro-batch: see the bounds of the two.
  dropout_stream_ =
      (static_cast<uint64_t>(step) << 31) | (static_cast<uint64_t>(micro_batch) << 14);
  spec::TrainMicroBatch(*this, model_, spec_);
  CHECK(op_ == static_cast<size_t>(plan_.optimizer_op));
}

void KernelExecutor::QueueEvaluation(const MicroBatch& batch, int64_t slot) {
  CHECK(slot < loss_slots());
  Stage(batch);
  op_ = static_cast<size_t>(plan_.evaluate_op);
  training_ = false;
  micro_batch_ = slot;
  spec::EvalMicroBatch(*this, model_, spec_);
  CHECK(op_ == plan_.workspace_offset.size());
}

double KernelExecutor::Losses(int64_t count) {
  backend_.CopyOut(Lane::kCompute, scalars_, LossSlot(0), 8 * count);
  backend_.Synchronize();
  staged_ = 0;
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += scalars_[i];
  return sum;
}

double KernelExecutor::Train(const MicroBatch& batch, double gradient_scale, int64_t step,
                             int64_t micro_batch) {
  Queue(batch, gradient_scale, step, micro_batch);
  Losses(micro_batch + 1);
  return scalars_[micro_batch];
}

double KernelExecutor::Evaluate(const MicroBatch& batch) {
  QueueEvaluation(batch, 0);
  return Losses(1);
}

void KernelExecutor::ZeroGradients() {
  backend_.Fill(persistent_ + plan_.persistent.gradient, 0,
                plan_.adapters.elements * kernels::DTypeBytes(table_.real));
}

KernelExecutor::Update KernelExecutor::Optimize(double learning_rate, int64_t update,
                                                int64_t count) {
  op_ = static_cast<size_t>(plan_.optimizer_op);
  adamw_ = {.count = plan_.adapters.elements,
            .learning_rate = learning_rate,
            .beta1 = spec_.adam_beta1,
            .beta2 = spec_.adam_beta2,
            .epsilon = spec_.adam_epsilon,
            .weight_decay = spec_.weight_decay,
            .step = update};
  micro_batches_ = count;
  update_ = {};
  spec::OptimizerStep(*this);
  update_.applied = apply_;
  return update_;
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
  context_.most_labels = std::count_if(batch.labels.begin(), batch.labels.end(),
                                       [](int32_t label) { return label >= 0; });
  std::byte* set = nullptr;  // a device copies from there while the host goes on
  if (staging_ != nullptr) {
    if (staged_ == spec::kStagingSets) {
      backend_.Synchronize();
      staged_ = 0;
    }
    set = staging_ + staged_++ * spec::StagingBytes(spec_);
  }
  const auto copy = [&](Slot slot, const std::vector<int32_t>& values) {
    const size_t bytes = values.size() * sizeof(int32_t);
    const void* from = values.data();
    if (set != nullptr) {
      from = std::memcpy(set, from, bytes);
      set += bytes;
    }
    backend_.CopyIn(Lane::kCompute, At({slot}), from, static_cast<int64_t>(bytes));
  };
  copy(Slot::kIds, batch.ids);
  copy(Slot::kLabels, batch.labels);
  copy(Slot::kPositions, batch.positions);
  copy(Slot::kStarts, batch.starts);
}

void KernelExecutor::BeginPhase(spec::StepPhase phase) {
  if (!backend_.is_host()) return;
  const auto now = std::chrono::steady_clock::now();
  phase_ns_[phase_] += std::chrono::nanoseconds(now - phase_since_).count();
  phase_ = static_cast<size_t>(phase);
  phase_since_ = now;
}

spec::StepPhaseTimes KernelExecutor::TakePhaseTimes() {
  BeginPhase(StepPhase::kData);
  phase_ = kNoPhase;
  spec::StepPhaseTimes times{};
  for (size_t i = 0; i < times.size(); ++i) times[i] = phase_ns_[i] / 1000;
  phase_ns_ = {};
  return times;
}

Context* KernelExecutor::NextOp(spec::StepPhase phase) {
  BeginPhase(phase);
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
  table_.embedding_forward(NextOp(StepPhase::kElementwise), out,
                           reinterpret_cast<const int32_t*>(At({Slot::kIds})), base_.embedding,
                           batch_->tokens(), model_.hidden_size, 1.0f);
}

void KernelExecutor::RmsNorm(Tensor y, Tensor rstd, Tensor x, spec::Norm norm, int32_t layer) {
  const NormArgs a = NormOf(norm, layer);
  table_.rmsnorm_forward(NextOp(StepPhase::kElementwise), y, rstd, x, a.weight, a.rows, a.dim,
                         static_cast<float>(model_.rms_norm_eps), 0.0f);
}

void KernelExecutor::RmsNormBackward(Tensor dx, bool accumulate, Tensor dy, Tensor x, Tensor rstd,
                                     spec::Norm norm, int32_t layer) {
  const NormArgs a = NormOf(norm, layer);
  table_.rmsnorm_backward(NextOp(StepPhase::kElementwise), dx, accumulate, dy, x, a.weight, rstd,
                          a.rows, a.dim, 0.0f);
}

void KernelExecutor::Linear(Tensor y, Tensor x, Tensor u, int32_t layer, Module module) {
  kernels::LoraArgs lora;
  const kernels::LinearArgs args = LinearOf(u, layer, module, lora);
  table_.linear_forward(NextOp(StepPhase::kLinear), y, x, args);
}

void KernelExecutor::LinearBackward(Tensor dx, bool accumulate, Tensor dy, Tensor x, Tensor u,
                                    int32_t layer, Module module) {
  kernels::LoraArgs lora;
  const kernels::LinearArgs args = LinearOf(u, layer, module, lora);
  table_.linear_backward(NextOp(StepPhase::kLinear), dx, accumulate, dy, x, args);
}

void KernelExecutor::Add(Tensor out, Tensor a, Tensor b) {
  table_.add(NextOp(StepPhase::kElementwise), out, a, b, batch_->tokens() * model_.hidden_size);
}

void KernelExecutor::Rope(Tensor x, int64_t heads, bool inverse) {
  table_.rope(NextOp(StepPhase::kElementwise), x, reinterpret_cast<const int32_t*>(At({Slot::kPositions})),
              reinterpret_cast<const float*>(persistent_ + plan_.persistent.rope), batch_->tokens(),
              heads, model_.head_dim, inverse);
}

void KernelExecutor::Attention(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v) {
  table_.attention_forward(NextOp(StepPhase::kAttention), out, lse, q, k, v, AttentionOf());
}

void KernelExecutor::AttentionBackward(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out,
                                       Tensor lse, Tensor q, Tensor k, Tensor v) {
  table_.attention_backward(NextOp(StepPhase::kAttention), dq, dk, dv, dout, out, lse, q, k, v,
                            AttentionOf());
}

void KernelExecutor::Gated(Tensor out, Tensor gate, Tensor up) {
  table_.gated_forward(NextOp(StepPhase::kElementwise), out, gate, up,
                       batch_->tokens() * model_.intermediate_size, kernels::Activation::kSilu);
}

void KernelExecutor::GatedBackward(Tensor dgate, Tensor dup, Tensor dout, Tensor gate, Tensor up) {
  table_.gated_backward(NextOp(StepPhase::kElementwise), dgate, dup, dout, gate, up,
                        batch_->tokens() * model_.intermediate_size, kernels::Activation::kSilu);
}

void KernelExecutor::CrossEntropy(Tensor dh, Tensor h) {
  auto* loss = reinterpret_cast<double*>(LossSlot(micro_batch_));
  backend_.Fill(loss, 0, sizeof *loss);
  table_.cross_entropy(NextOp(StepPhase::kLoss), loss, dh, h, base_.head,
                       reinterpret_cast<const int32_t*>(At({Slot::kLabels})), batch_->tokens(),
                       model_.hidden_size, model_.vocab_size, gradient_scale_);
}

void KernelExecutor::SumSquares() {
  table_.sum_squares(NextOp(StepPhase::kOptimizer), reinterpret_cast<double*>(LossSlot(loss_slots())),
                     persistent_ + plan_.persistent.gradient, plan_.adapters.elements);
  // The one time in a step that the host waits.
  backend_.CopyOut(Lane::kCompute, scalars_, LossSlot(0), 8 * (loss_slots() + 1));
  apply_ = backend_.Synchronize();
  staged_ = 0;
  for (int64_t i = 0; i < micro_batches_; ++i) update_.loss_sum += scalars_[i];
  const double sum_squares = scalars_[loss_slots()];
  const double scale = loss_scale_.scale;
  const double norm = std::sqrt(sum_squares) / scale;
  update_.grad_norm = norm;
  apply_ = apply_ && std::isfinite(update_.loss_sum) && std::isfinite(sum_squares);
  adamw_.gradient_scale = 1 / scale;
  if (spec_.max_grad_norm > 0 && norm > spec_.max_grad_norm) {
    adamw_.gradient_scale = spec_.max_grad_norm / (norm + 1e-6) / scale;  // torch's clip_grad_norm_
  }
  if (table_.act == kernels::DType::kF16) {
    update_.overflow = !apply_ && scale > 1;
    loss_scale_.Update(apply_);
  }
}

void KernelExecutor::AdamW() {
  Context* context = NextOp(StepPhase::kOptimizer);
  if (!apply_) return;
  if (spec_.optimizer == spec::OptimizerKind::kAdamW8bit) {
    const spec::PersistentLayout& at = plan_.persistent;
    const auto* maps = reinterpret_cast<const float*>(persistent_ + at.maps);
    const kernels::Adam8State state{
        .m = reinterpret_cast<uint8_t*>(persistent_ + at.moment1),
        .v = reinterpret_cast<uint8_t*>(persistent_ + at.moment2),
        .m_absmax = reinterpret_cast<float*>(persistent_ + at.absmax1),
        .v_absmax = reinterpret_cast<float*>(persistent_ + at.absmax2),
        .signed_map = maps,
        .unsigned_map = maps + 256};
    table_.adamw8(context, persistent_ + at.master, persistent_ + at.gradient, state, adamw_);
    return;
  }
  table_.adamw(context, persistent_ + plan_.persistent.master,
               persistent_ + plan_.persistent.gradient, persistent_ + plan_.persistent.moment1,
               persistent_ + plan_.persistent.moment2, adamw_);
}

void KernelExecutor::ToAct() {
  Context* context = NextOp(StepPhase::kOptimizer);
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

void InitOptimizer(kernels::Backend& backend, const spec::CompiledPlan& plan,
                   const spec::TrainSpec& spec, std::byte* persistent) {
  if (spec.optimizer != spec::OptimizerKind::kAdamW8bit) return;  // zero is zero bytes
  const float* const maps[] = {kernels::SignedDynamicMap(), kernels::UnsignedDynamicMap()};
  const int64_t codes[] = {plan.persistent.moment1, plan.persistent.moment2};
  constexpr int64_t kMapBytes = 256 * sizeof(float);
  for (int i = 0; i < 2; ++i) {
    backend.CopyIn(kernels::Lane::kCompute, persistent + plan.persistent.maps + i * kMapBytes,
                   maps[i], kMapBytes);
    const auto zero = std::find(maps[i], maps[i] + 256, 0.0f) - maps[i];
    const std::vector<uint8_t> zeros(static_cast<size_t>(plan.adapters.elements),
                                     static_cast<uint8_t>(zero));
    backend.CopyIn(kernels::Lane::kCompute, persistent + codes[i], zeros.data(),
                   plan.adapters.elements);
    backend.Synchronize();
  }
}

void InitAdapters(const spec::CompiledPlan& plan, const spec::TrainSpec& spec, kernels::DType real,
                  void* master) {
  if (real == kernels::DType::kF64) {
    InitMasters(plan, spec, static_cast<double*>(master));
  } else {
    InitMasters(plan, spec, static_cast<float*>(master));
  }
}

}  // namespace nibble::engine

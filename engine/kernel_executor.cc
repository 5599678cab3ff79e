#include "engine/kernel_executor.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/status.h"
#include "engine/model_args.h"
#include "engine/spec/rope.h"
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
  recorded_.reserve(kMostRecordings);
  pinned_ = static_cast<std::byte*>(backend.AllocatePinned(plan.pinned.total_bytes));
  if (pinned_ == nullptr) return;
  // Offloaded inputs are written before they are read.
  std::memset(pinned_, 0,
              static_cast<size_t>(plan.offloaded ? plan.pinned.inputs : plan.pinned.total_bytes));
  scalars_ = reinterpret_cast<double*>(pinned_ + plan.pinned.scalars);
  if (!backend.is_host()) staging_ = pinned_ + plan.pinned.staging;
  if (table.act == kernels::DType::kF16) loss_scale_.scale = LossScale::kInitial;
}

KernelExecutor::~KernelExecutor() {
  backend_.Synchronize();  // copies may be under way
  DropRecordings();
  if (pinned_ != nullptr) backend_.ReleasePinned(pinned_);
}

void KernelExecutor::Begin(const MicroBatch& batch, double gradient_scale, int64_t step,
                           int64_t micro_batch) {
  CHECK(micro_batch < loss_slots());
  BeginPhase(StepPhase::kData);
  Stage(batch);
  training_ = true;
  gradient_scale_ = gradient_scale * loss_scale_.scale;
  micro_batch_ = micro_batch;
  // 14 bits are left for layer and module, 17 for the micro-batch: see the bounds of the two.
  dropout_stream_ =
      (static_cast<uint64_t>(step) << 31) | (static_cast<uint64_t>(micro_batch) << 14);
  op_ = 0;
}

void KernelExecutor::Queue(const MicroBatch& batch, double gradient_scale, int64_t step,
                           int64_t micro_batch) {
  Begin(batch, gradient_scale, step, micro_batch);
  if (!plan_.pads) return RunMicroBatch();
  // From memory of this function: it has been read when the call returns.
  const uint64_t stream = dropout_stream_;
  backend_.CopyIn(Lane::kCompute, Late(0), &stream, sizeof stream);
  backend_.CopyIn(Lane::kCompute, Late(1), &gradient_scale_, sizeof gradient_scale_);
  const auto known = std::find_if(recorded_.begin(), recorded_.end(),
                                  [&](const Recorded& r) { return r.shape == shape_; });
  if (known != recorded_.end() && known->recording != nullptr) {
    BeginDecodeAhead();
    backend_.Replay(known->recording);
    context_.ahead = nullptr;
  } else {
    RunMicroBatch();
    if (known == recorded_.end() && recorded_.size() < kMostRecordings)
      recorded_.push_back({shape_, nullptr});
  }
  backend_.CopyWithin(Lane::kCompute, LossSlot(micro_batch), Late(2), 8);
}

void KernelExecutor::RunMicroBatch() {
  op_ = 0;
  BeginDecodeAhead();
  spec::TrainMicroBatch(*this, model_, spec_);
  context_.ahead = nullptr;
  CHECK(stopped_ || op_ == static_cast<size_t>(plan_.optimizer_op));
}

void KernelExecutor::StopStep() {
  Rest();
  backend_.Synchronize();
  staged_ = 0;
  stopped_ = false;
}

void KernelExecutor::Record(const MicroBatch& batch) {
  // The other lanes, of a plan that offloads, are not recorded.
  if (!plan_.pads || plan_.offloaded || !records_) return;
  shape_ = ShapeOf(batch);
  for (Recorded& known : recorded_) {
    if (!(known.shape == shape_) || known.recording != nullptr) continue;
    if (records_ = backend_.BeginRecording(); !records_) return;
    training_ = true;
    context_.most_labels = shape_.most_labels;
    RunMicroBatch();
    known.recording = backend_.EndRecording();
    records_ = known.recording != nullptr;
  }
}

void KernelExecutor::DropRecordings() {
  for (const Recorded& known : recorded_) {
    if (known.recording != nullptr) backend_.ReleaseRecording(known.recording);
  }
  recorded_.clear();
}

void KernelExecutor::set_step_region(std::byte* step) {
  if (step != step_ && !recorded_.empty()) {
    backend_.Synchronize();  // one may be running
    DropRecordings();
  }
  step_ = step;
  const int64_t own = plan_.persistent.activations;
  tensors_ = own < 0 ? step : persistent_ + own;
}

KernelExecutor::Shape KernelExecutor::ShapeOf(const MicroBatch& batch) const {
  Shape shape{.rows = batch.tokens(),
              .documents = static_cast<int64_t>(batch.starts.size()) - 1,
              .most_labels = std::count_if(batch.labels.begin(), batch.labels.end(),
                                           [](int32_t label) { return label >= 0; })};
  if (!plan_.pads) return shape;
  shape.rows = spec::PaddedTokens(spec_, shape.rows);
  shape.documents = shape.rows;  // as many as there can be; most are empty
  const int64_t quarter = (shape.rows + 3) / 4;
  shape.most_labels = std::min(shape.rows, (shape.most_labels + quarter - 1) / quarter * quarter);
  return shape;
}

void KernelExecutor::QueueEvaluation(const MicroBatch& batch, int64_t slot) {
  CHECK(slot < loss_slots());
  Stage(batch);
  op_ = static_cast<size_t>(plan_.evaluate_op);
  training_ = false;
  micro_batch_ = slot;
  BeginDecodeAhead();
  spec::EvalMicroBatch(*this, model_, spec_);
  context_.ahead = nullptr;
  CHECK(stopped_ || op_ == plan_.workspace_offset.size());
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

void KernelExecutor::DecodeBase() {
  if (plan_.persistent.decoded < 0) return;
  const int64_t act = kernels::DTypeBytes(table_.act);
  for (size_t layer = 0; layer < base_.layers.size(); ++layer) {
    for (const Module module : spec::ModulesOf(model_)) {
      const kernels::WeightView& w = base_.layers[layer].linear[static_cast<int>(module)];
      std::byte* out = persistent_ + plan_.persistent.decoded +
                       spec::DecodedOffset(model_, static_cast<int64_t>(layer), module, act);
      table_.decode_weight(&context_, out, w, 0, w.n);
    }
  }
}

void KernelExecutor::Stage(const MicroBatch& batch) {
  const int64_t room = int64_t{spec_.micro_batch_size} * spec_.sequence_len;
  CHECK(batch.tokens() > 0 && batch.tokens() <= room);
  CHECK(static_cast<int64_t>(batch.starts.size()) <= room + 1);
  shape_ = ShapeOf(batch);
  context_.most_labels = shape_.most_labels;
  std::byte* set = nullptr;  // a device copies from there while the host goes on
  if (staging_ != nullptr) {
    if (staged_ == spec::StagingSets(spec_)) {
      backend_.Synchronize();
      staged_ = 0;
    }
    set = staging_ + staged_++ * spec::StagingBytes(spec_);
  }
  // What is missing to `count` values is padding: `fill` and then ever `grow` more, up to the rows.
  const auto copy = [&](Slot slot, const std::vector<int32_t>& values, int64_t count, int64_t fill,
                        int64_t grow) {
    const auto given = static_cast<int64_t>(values.size());
    const void* from = values.data();
    if (set != nullptr) {
      auto* const to = reinterpret_cast<int32_t*>(set);
      std::memcpy(to, from, static_cast<size_t>(given) * sizeof(int32_t));
      for (int64_t i = given; i < count; ++i, fill += grow)
        to[i] = static_cast<int32_t>(std::min(fill, shape_.rows));
      from = to;
      set += count * sizeof(int32_t);
    }
    backend_.CopyIn(Lane::kCompute, At({slot}), from, count * static_cast<int64_t>(sizeof(int32_t)));
  };
  // A token of padding is a document of its own, without a label.
  copy(Slot::kIds, batch.ids, shape_.rows, 0, 0);
  copy(Slot::kLabels, batch.labels, shape_.rows, -1, 0);
  copy(Slot::kPositions, batch.positions, shape_.rows, 0, 0);
  copy(Slot::kStarts, batch.starts, shape_.documents + 1, batch.tokens() + 1, 1);
}

void KernelExecutor::BeginPhase(spec::StepPhase phase) {
  if (!backend_.is_host()) return;
  const auto now = std::chrono::steady_clock::now();
  phase_ns_[phase_] += std::chrono::nanoseconds(now - phase_since_).count();
  phase_ = static_cast<size_t>(phase);
  phase_since_ = now;
}

void KernelExecutor::Rest() {
  BeginPhase(StepPhase::kData);
  phase_ = kNoPhase;
}

spec::StepPhaseTimes KernelExecutor::TakePhaseTimes() {
  Rest();
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
  if (plan_.paged) return UpdatePaged(context);
  const spec::PersistentLayout& at = plan_.persistent;
  UpdateAdamW(context, 0, plan_.adapters.elements,
              {persistent_ + at.moment1, persistent_ + at.moment2, persistent_ + at.absmax1,
               persistent_ + at.absmax2});
}

void KernelExecutor::UpdateAdamW(Context* context, int64_t first, int64_t count,
                                 const MomentPlaces& moments) {
  const spec::PersistentLayout& at = plan_.persistent;
  const int64_t offset = first * kernels::DTypeBytes(table_.real);
  std::byte* const master = persistent_ + at.master + offset;
  std::byte* const gradient = persistent_ + at.gradient + offset;
  kernels::AdamWArgs args = adamw_;
  args.count = count;
  if (spec_.optimizer != spec::OptimizerKind::kAdamW8bit) {
    table_.adamw(context, master, gradient, moments.m, moments.v, args);
    return;
  }
  const auto* maps = reinterpret_cast<const float*>(persistent_ + at.maps);
  const kernels::Adam8State state{.m = reinterpret_cast<uint8_t*>(moments.m),
                                  .v = reinterpret_cast<uint8_t*>(moments.v),
                                  .m_absmax = reinterpret_cast<float*>(moments.m_absmax),
                                  .v_absmax = reinterpret_cast<float*>(moments.v_absmax),
                                  .signed_map = maps,
                                  .unsigned_map = maps + 256};
  table_.adamw8(context, master, gradient, state, args);
}

KernelExecutor::MomentPlaces KernelExecutor::PlacesIn(std::byte* chunk) const {
  const int64_t elements = spec::ChunkOf(spec_, plan_.adapters.elements).elements;
  const bool small = spec_.optimizer == spec::OptimizerKind::kAdamW8bit;
  const int64_t bytes = small ? elements : 4 * elements;
  const int64_t absmax_bytes = elements / spec::kMomentBlock * 4;
  return {chunk, chunk + bytes, chunk + 2 * bytes, chunk + 2 * bytes + absmax_bytes};
}

void KernelExecutor::CopyMoments(Lane lane, std::byte* chunk, int64_t first, int64_t count) {
  const spec::PinnedLayout& at = plan_.pinned;
  const MomentPlaces places = PlacesIn(chunk);
  const auto copy = [&](std::byte* device, int64_t array, int64_t offset, int64_t bytes) {
    std::byte* const host = pinned_ + array + offset;
    if (lane == Lane::kIn) {
      backend_.CopyIn(lane, device, host, bytes);
    } else {
      backend_.CopyOut(lane, host, device, bytes);
    }
  };
  const int64_t wide = spec_.optimizer == spec::OptimizerKind::kAdamW8bit ? 1 : 4;
  copy(places.m, at.moment1, wide * first, wide * count);
  copy(places.v, at.moment2, wide * first, wide * count);
  if (wide == 4) return;
  const int64_t scale_first = first / spec::kMomentBlock * 4, scale_bytes = count / spec::kMomentBlock * 4;
  copy(places.m_absmax, at.absmax1, scale_first, scale_bytes);
  copy(places.v_absmax, at.absmax2, scale_first, scale_bytes);
}

// While a chunk is worked on the next one comes in and the one before goes out.
void KernelExecutor::UpdatePaged(Context* context) {
  const int64_t elements = plan_.adapters.elements;
  const spec::MomentChunk chunk = spec::ChunkOf(spec_, elements);
  std::byte* const buffers = static_cast<std::byte*>(context->workspace);
  const auto buffer = [&](int64_t first) { return buffers + first / chunk.elements % 2 * chunk.bytes; };
  const auto count = [&](int64_t first) { return std::min(chunk.elements, elements - first); };
  backend_.Wait(Lane::kIn, Lane::kCompute);  // who had this memory before is done
  CopyMoments(Lane::kIn, buffer(0), 0, count(0));
  for (int64_t first = 0; first < elements; first += chunk.elements) {
    backend_.Wait(Lane::kCompute, Lane::kIn);
    const int64_t next = first + chunk.elements;
    if (next < elements) {
      backend_.Wait(Lane::kIn, Lane::kOut);  // what its buffer held has gone out
      CopyMoments(Lane::kIn, buffer(next), next, count(next));
    }
    UpdateAdamW(context, first, count(first), PlacesIn(buffer(first)));
    backend_.Wait(Lane::kOut, Lane::kCompute);
    CopyMoments(Lane::kOut, buffer(first), first, count(first));
  }
  backend_.Wait(Lane::kCompute, Lane::kOut);
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
                            static_cast<uint64_t>(spec::NumberOf(matrix.module));
    const float bound = 1.0f / std::sqrt(static_cast<float>(matrix.in));
    for (int64_t i = 0; i < spec.lora_r * matrix.in; ++i) {
      const float unit = kernels::CounterUniform(spec.seed, stream, static_cast<uint64_t>(i));
      master[matrix.a + i] = static_cast<T>((2.0f * unit - 1.0f) * bound);
    }
  }
}

}  // namespace

void InitOptimizer(kernels::Backend& backend, const spec::CompiledPlan& plan,
                   const spec::TrainSpec& spec, std::byte* persistent, std::byte* pinned) {
  if (spec.optimizer != spec::OptimizerKind::kAdamW8bit) return;  // zero is zero bytes
  const float* const maps[] = {kernels::SignedDynamicMap(), kernels::UnsignedDynamicMap()};
  const int64_t codes[] = {plan.persistent.moment1, plan.persistent.moment2};
  const int64_t pinned_codes[] = {plan.pinned.moment1, plan.pinned.moment2};
  constexpr int64_t kMapBytes = 256 * sizeof(float);
  for (int i = 0; i < 2; ++i) {
    backend.CopyIn(kernels::Lane::kCompute, persistent + plan.persistent.maps + i * kMapBytes,
                   maps[i], kMapBytes);
    const auto zero = std::find(maps[i], maps[i] + 256, 0.0f) - maps[i];
    if (plan.paged) {
      std::memset(pinned + pinned_codes[i], static_cast<int>(zero),
                  static_cast<size_t>(plan.adapters.elements));
      continue;
    }
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

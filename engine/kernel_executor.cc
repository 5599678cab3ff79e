// The driver of KernelExecutor: how micro-batches come in, are queued, replayed and timed.
#include "engine/kernel_executor.h"

#include <algorithm>
#include <cstring>

#include "base/status.h"
#include "engine/spec/step.h"

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
    known.recording = backend_.EndRecording(plan_.memory.recording_bytes - RecordedBytes());
    records_ = known.recording != nullptr;
  }
}

int64_t KernelExecutor::RecordedBytes() const {
  int64_t bytes = 0;
  for (const Recorded& known : recorded_) {
    if (known.recording != nullptr) bytes += backend_.RecordingBytes(known.recording);
  }
  return bytes;
}

void KernelExecutor::DropRecordings() {
  for (const Recorded& known : recorded_) {
    if (known.recording != nullptr) backend_.ReleaseRecording(known.recording);
  }
  recorded_.clear();
  records_ = true;  // there may be room again
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

}  // namespace nibble::engine

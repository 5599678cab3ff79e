// Runs the written-out step (engine/spec/step.h) on a KernelTable, at the offsets of a compiled
// plan.
//
// Nothing is allocated in a step: every tensor and every operation's workspace is an address in one of
// the two regions, which are the backend's memory; the host side is a few numbers and, for a device,
// staging buffers of the planned size. The executor counts operations just as the plan did, so the two
// cannot get out of step unnoticed.
//
// A device runs behind the host: Queue returns before the work is done. Losses and the norm of the
// gradients wait in the device's memory and are read together, once a step (Optimize).
//
// With a table whose activations are fp16 the loss is scaled (loss_scale.h). One thread drives it; it may
// be made before the regions are mapped, but not run.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <utility>
#include <vector>

#include "engine/loss_scale.h"
#include "engine/model/base_view.h"
#include "engine/spec/compile_plan.h"
#include "engine/spec/step_phases.h"
#include "engine/spec/step_program.h"
#include "engine/spec/step_tensors.h"
#include "kernels/backend.h"
#include "kernels/kernel_table.h"

namespace nibble::engine {

// One micro-batch: documents one behind the other, no padding.
struct MicroBatch {
  std::vector<int32_t> ids;
  std::vector<int32_t> labels;     // -1 = none
  std::vector<int32_t> positions;  // rows of RopeTable: from RopeFirstRow on in each document
  std::vector<int32_t> starts;     // documents + 1
  int64_t target_tokens = 0;       // labels that are not -1

  int64_t tokens() const { return static_cast<int64_t>(ids.size()); }
};

class KernelExecutor {
 public:
  using Tensor = std::byte*;

  // All must outlive the executor. `table` is the backend's, or for a host backend another one of the
  // same types. `step` may move (see set_step_region); `persistent` may not.
  KernelExecutor(kernels::Backend& backend, const kernels::KernelTable& table, const BaseView& base,
                 const spec::ModelConfig& model, const spec::TrainSpec& spec,
                 const spec::CompiledPlan& plan, std::byte* persistent);
  ~KernelExecutor();
  // False: the host had no page-locked memory of the planned size; then nothing but this may be called.
  bool has_memory() const { return pinned_ != nullptr; }
  // Page-locked memory of the plan's layout, zeroed. Read and written between steps only.
  std::byte* pinned() const { return pinned_; }
  KernelExecutor(const KernelExecutor&) = delete;
  KernelExecutor& operator=(const KernelExecutor&) = delete;

  void set_step_region(std::byte* step);
  const LossScale& loss_scale() const { return loss_scale_; }
  void set_loss_scale(const LossScale& scale) { loss_scale_ = scale; }

  // Asked before every micro-batch, and on the host before every block of one. Once it says true, what is
  // left of the step is not done: then StopStep, and no Optimize. Nothing that outlives a step was changed.
  void set_stop(std::function<bool()> stop) { stop_ = std::move(stop); }
  bool StepStopped() { return stopped_ = stopped_ || (stop_ && stop_()); }
  bool step_was_stopped() const { return stopped_; }
  // Waits for what was queued of it.
  void StopStep();

  // Before the first micro-batch of a step: gradients become zero.
  void ZeroGradients();
  // Forward and backward of one micro-batch, queued. Gradients are scaled by gradient_scale and added.
  // `step` (from 1) and `micro_batch` (from 0, below the accumulation steps) key the dropout.
  void Queue(const MicroBatch& batch, double gradient_scale, int64_t step, int64_t micro_batch);
  // Loss only, without dropout; `slot` from 0, below the accumulation steps.
  void QueueEvaluation(const MicroBatch& batch, int64_t slot);
  // Waits, and returns the sum of the losses of the first `count` micro-batches queued, in order.
  double Losses(int64_t count);
  // Queue and Losses of one micro-batch.
  double Train(const MicroBatch& batch, double gradient_scale, int64_t step, int64_t micro_batch);
  double Evaluate(const MicroBatch& batch);
  // Outside of a turn, before a micro-batch of this shape is queued: makes a recording of it (backend.h), if
  // the plan wants it and has room for it and one like it was queued before. Queue then replays it, with the
  // same bits.
  void Record(const MicroBatch& batch);
  // What recordings take of the device's memory now.
  int64_t RecordedBytes() const;
  // After the `count` micro-batches of a step. The global norm is clipped to spec.max_grad_norm and the
  // parameters are updated, unless the norm or the loss is not finite. `update` counts updates from 1.
  struct Update {
    double loss_sum = 0;   // of all target tokens
    double grad_norm = 0;  // before clipping
    bool applied = false;
    bool overflow = false;  // fp16: not applied, the scaled gradients overflowed; the scale is less now
  };
  Update Optimize(double learning_rate, int64_t update, int64_t count);
  // Compute copies from the masters.
  void RefreshCompute();
  // Fills the plan's copy of the decoded base, where it has one. Once, before the first micro-batch.
  void DecodeBase();
  // Time of the operations since the last call, by phase; zeros on a device.
  spec::StepPhaseTimes TakePhaseTimes();

  // ---- Queue in pieces, for Lockstep (lockstep.h). The plan must own its activations. ----
  // Before the first: notes the step as a list of operations; may allocate.
  void PrepareInPieces();
  // What Queue does before its first operation.
  void Begin(const MicroBatch& batch, double gradient_scale, int64_t step, int64_t micro_batch);
  // Goes as far as the next product with a frozen weight and returns its place (step_program.h); -1 = the
  // micro-batch is done.
  int32_t RunToProduct();
  bool product_is_backward() const { return program_[op_].kind == spec::StepOpKind::kLinearBackward; }
  // Hands that product over instead of doing it. `lora` is where the part's adapter goes.
  kernels::LinearPart TakeProduct(kernels::LoraArgs& lora);
  // It was done and took this long of the time of all.
  void CountProduct(int64_t time_ns);

  // ---- The Executor of step.h. ----
  Tensor None() const { return nullptr; }
  bool IsNone(Tensor t) const { return t == nullptr; }
  Tensor Act(const spec::TensorKey& key, int64_t) const { return At(key); }
  Tensor Real(const spec::TensorKey& key, int64_t) const { return At(key); }
  void Phase(spec::Phase, int32_t) {}
  bool Offloads() const { return plan_.offloaded; }
  bool Groups() const { return plan_.grouped; }
  bool Stopped() { return backend_.is_host() && StepStopped(); }  // a device's blocks may be being recorded
  Tensor Column(Tensor t, int64_t width) const { return t + width * kernels::DTypeBytes(table_.act); }
  void Embedding(Tensor out);
  void RmsNorm(Tensor y, Tensor rstd, Tensor x, spec::Norm norm, int32_t layer);
  void RmsNormBackward(Tensor dx, bool accumulate, Tensor dy, Tensor x, Tensor rstd,
                       spec::Norm norm, int32_t layer);
  void Linear(Tensor y, Tensor x, Tensor u, int32_t layer, spec::Module module);
  void LinearBackward(Tensor dx, bool accumulate, Tensor dy, Tensor x, Tensor u, int32_t layer,
                      spec::Module module);
  void LinearGroup(std::initializer_list<Tensor> y, Tensor x, const Tensor* u, int32_t layer,
                   spec::Module first);
  void LinearGroupBackward(Tensor dx, std::initializer_list<Tensor> dy, Tensor x, const Tensor* u,
                           int32_t layer, spec::Module first);
  void Add(Tensor out, Tensor a, Tensor b);
  void Rope(Tensor x, int64_t heads, int32_t layer, bool inverse);
  void Attention(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, int32_t layer);
  void AttentionBackward(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse, Tensor q,
                         Tensor k, Tensor v, int32_t layer);
  void Split(Tensor q, Tensor k, Tensor v, Tensor all);
  void Join(Tensor all, Tensor q, Tensor k, Tensor v);
  void Gated(Tensor out, Tensor gate, Tensor up);
  void GatedBackward(Tensor dgate, Tensor dup, Tensor dout, Tensor gate, Tensor up);
  void CrossEntropy(Tensor dh, Tensor h);
  void Offload(Tensor x, int32_t layer);
  void OffloadDone(Tensor x);
  void Fetch(Tensor x, int32_t layer);
  void FetchDone(Tensor x);
  void SumSquares();
  void AdamW();
  void ToAct();

 private:
  struct MomentPlaces {
    std::byte* m;
    std::byte* v;
    std::byte* m_absmax;  // of 8-bit moments
    std::byte* v_absmax;
  };
  struct NormArgs {
    kernels::ParamView weight;
    int64_t rows;
    int64_t dim;
  };

  Tensor At(const spec::TensorKey& key) const { return At(key.Index(model_.layers)); }
  Tensor At(int64_t index) const {
    const int64_t offset = plan_.tensor_offset[static_cast<size_t>(index)];
    return offset < 0 ? nullptr : tensors_ + offset;
  }
  // What an op of a micro-batch depends on besides memory.
  struct Shape {
    int64_t rows = 0;       // tokens, padded where the plan pads
    int64_t documents = 0;
    int64_t most_labels = 0;
    bool operator==(const Shape&) const = default;
  };
  struct Recorded {
    Shape shape;
    kernels::Recording* recording = nullptr;  // null: queued once, so it may be recorded
  };
  static constexpr size_t kMostRecordings = 4;
  Shape ShapeOf(const MicroBatch& batch) const;
  void DropRecordings();
  void Stage(const MicroBatch& batch);
  void RunMicroBatch();
  // Where an op reads what is known only when it runs; null = not in use.
  std::byte* Late(int64_t index) const {
    return training_ && plan_.pads ? persistent_ + plan_.persistent.late + 8 * index : nullptr;
  }
  std::byte* LossSlot(int64_t micro_batch) const {
    return persistent_ + plan_.persistent.scalars + 8 * micro_batch;
  }
  // The place of the sum of squares is behind the losses.
  int64_t loss_slots() const { return spec_.gradient_accumulation_steps; }
  // The context, with the workspace planned for the next operation, whose time counts for `phase`.
  kernels::Context* NextOp(spec::StepPhase phase);
  // What follows counts for `phase`.
  void BeginPhase(spec::StepPhase phase);
  // What follows is not this executor's.
  void Rest();
  NormArgs NormOf(spec::Norm norm, int32_t layer) const;
  kernels::AttentionArgs AttentionOf(int32_t layer) const;
  std::byte* InputSlot(int32_t layer) const {
    return pinned_ + plan_.pinned.inputs + layer * plan_.pinned.input_stride;
  }
  int64_t InputBytes() const {
    return shape_.rows * model_.hidden_size * kernels::DTypeBytes(table_.act);
  }
  // Of `count` parameters from `first` on; `moments` is where theirs begin.
  void UpdateAdamW(kernels::Context* context, int64_t first, int64_t count, const MomentPlaces& moments);
  void UpdatePaged(kernels::Context* context);
  MomentPlaces PlacesIn(std::byte* chunk) const;
  // Between page-locked memory and a chunk on the device.
  void CopyMoments(kernels::Lane lane, std::byte* chunk, int64_t first, int64_t count);
  kernels::LinearArgs LinearOf(Tensor u, int32_t layer, spec::Module module,
                               kernels::LoraArgs& lora) const;
  // `lora` has room for kMostGrouped.
  kernels::LinearGroup GroupOf(std::initializer_list<Tensor> y, const Tensor* u, int32_t layer,
                               spec::Module first, kernels::LoraArgs* lora) const;
  // NextOp of a linear: says what is to be decoded ahead of the one behind it.
  kernels::Context* NextLinear();
  // Before the ops of a micro-batch are queued: whether and where they decode ahead.
  void BeginDecodeAhead();
  // `one`: gate and up are one tensor's columns.
  kernels::GatedArgs GatedOf(bool one) const;
  kernels::ColumnsArgs ColumnsOf(Tensor q, Tensor k, Tensor v) const;

  kernels::Backend& backend_;
  const kernels::KernelTable& table_;
  kernels::Context& context_;
  const BaseView& base_;
  const spec::ModelConfig& model_;
  const spec::TrainSpec& spec_;
  const spec::CompiledPlan& plan_;
  std::byte* const persistent_;
  std::byte* step_ = nullptr;
  std::byte* tensors_ = nullptr;  // step_, or a place in persistent_
  spec::StepProgram program_;     // of PrepareInPieces
  std::vector<const spec::AdapterMatrix*> adapter_of_;  // by layer and module; null = none

  std::byte* pinned_ = nullptr;  // of plan_.pinned
  // Read back once a step. [loss_slots + 1]
  double* scalars_ = nullptr;
  // Of a device: staged batches on their way, StagingSets one behind the other.
  std::byte* staging_ = nullptr;
  int64_t staged_ = 0;  // sets handed out since the last wait
  LossScale loss_scale_;
  std::function<bool()> stop_;
  bool stopped_ = false;

  // Of the micro-batch or update under way.
  Shape shape_;
  std::vector<Recorded> recorded_;
  bool records_ = true;  // false: this device cannot, or the plan has no room for more
  size_t op_ = 0;
  bool training_ = false;
  double gradient_scale_ = 1;
  int64_t micro_batch_ = 0;
  int64_t micro_batches_ = 0;  // of the step that is being updated
  uint64_t dropout_stream_ = 0;
  Update update_;
  kernels::AdamWArgs adamw_;
  bool apply_ = false;

  // Nanoseconds by phase, up to phase_since_; then `phase_` is under way, or nothing (kNoPhase).
  static constexpr size_t kNoPhase = spec::kStepPhaseNames.size();
  std::array<int64_t, kNoPhase + 1> phase_ns_{};
  size_t phase_ = kNoPhase;
  std::chrono::steady_clock::time_point phase_since_;
};

// Fresh optimizer state in a region of zeros: zero moments. With 8-bit moments, zero is a code of its own.
// `pinned` is the executor's.
void InitOptimizer(kernels::Backend& backend, const spec::CompiledPlan& plan,
                   const spec::TrainSpec& spec, std::byte* persistent, std::byte* pinned);

// Fresh masters: A uniform in +-1/sqrt(in), B zero, as PEFT begins; keyed by the seed, layer and
// module. `master` is host memory, real [elements].
void InitAdapters(const spec::CompiledPlan& plan, const spec::TrainSpec& spec, kernels::DType real,
                  void* master);

}  // namespace nibble::engine

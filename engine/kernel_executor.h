// Runs the written-out step (engine/spec/step.h) on a KernelTable, at the offsets of a compiled
// plan.
//
// Nothing is allocated here: every tensor and every operation's workspace is an address in one of
// the two regions. The executor counts operations just as the plan did, so the two cannot get out
// of step unnoticed. One thread drives it; it may be made before the regions are mapped, but not
// run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/base_view.h"
#include "engine/spec/compile_plan.h"
#include "engine/spec/step.h"
#include "kernels/kernel_table.h"

namespace nibble::engine {

// One micro-batch: documents one behind the other, no padding.
struct MicroBatch {
  std::vector<int32_t> ids;
  std::vector<int32_t> labels;     // -1 = none
  std::vector<int32_t> positions;  // from 0 in each document
  std::vector<int32_t> starts;     // documents + 1
  int64_t target_tokens = 0;       // labels that are not -1

  int64_t tokens() const { return static_cast<int64_t>(ids.size()); }
};

class KernelExecutor {
 public:
  using Tensor = std::byte*;

  // All must outlive the executor. `step` may move (see set_step_region); `persistent` may not.
  KernelExecutor(const kernels::KernelTable& table, kernels::Context& context, const BaseView& base,
                 const spec::ModelConfig& model, const spec::TrainSpec& spec,
                 const spec::CompiledPlan& plan, std::byte* persistent);

  void set_step_region(std::byte* step) { step_ = step; }

  // Forward and backward of one micro-batch. Gradients are scaled by gradient_scale and added.
  // Returns the sum of the target tokens' losses. `step` (from 1) and `micro_batch` key the
  // dropout.
  double Train(const MicroBatch& batch, double gradient_scale, int64_t step, int64_t micro_batch);
  // Loss only, without dropout.
  double Evaluate(const MicroBatch& batch);
  void ZeroGradients();
  // The global norm is clipped to spec.max_grad_norm and the parameters are updated, unless the
  // norm or `loss` is not finite. `update` counts updates from 1. Returns the norm before clipping.
  struct Update {
    double grad_norm = 0;
    bool applied = false;
  };
  Update Optimize(double learning_rate, int64_t update, double loss);
  // Compute copies from the masters.
  void RefreshCompute();

  // ---- The Executor of step.h. ----
  Tensor None() const { return nullptr; }
  bool IsNone(Tensor t) const { return t == nullptr; }
  Tensor Act(const spec::TensorKey& key, int64_t) const { return At(key); }
  Tensor Real(const spec::TensorKey& key, int64_t) const { return At(key); }
  void Phase(spec::Phase, int32_t) {}
  void Embedding(Tensor out);
  void RmsNorm(Tensor y, Tensor rstd, Tensor x, spec::Norm norm, int32_t layer);
  void RmsNormBackward(Tensor dx, bool accumulate, Tensor dy, Tensor x, Tensor rstd,
                       spec::Norm norm, int32_t layer);
  void Linear(Tensor y, Tensor x, Tensor u, int32_t layer, spec::Module module);
  void LinearBackward(Tensor dx, bool accumulate, Tensor dy, Tensor x, Tensor u, int32_t layer,
                      spec::Module module);
  void Add(Tensor out, Tensor a, Tensor b);
  void Rope(Tensor x, int64_t heads, bool inverse);
  void Attention(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v);
  void AttentionBackward(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse,
                         Tensor q, Tensor k, Tensor v);
  void Gated(Tensor out, Tensor gate, Tensor up);
  void GatedBackward(Tensor dgate, Tensor dup, Tensor dout, Tensor gate, Tensor up);
  void CrossEntropy(Tensor dh, Tensor h);
  void SumSquares();
  void AdamW();
  void ToAct();

 private:
  struct NormArgs {
    kernels::ParamView weight;
    int64_t rows;
    int64_t dim;
  };

  Tensor At(const spec::TensorKey& key) const {
    const int64_t offset = plan_.tensor_offset[static_cast<size_t>(key.Index(model_.layers))];
    return offset < 0 ? nullptr : step_ + offset;
  }
  void Stage(const MicroBatch& batch);
  // The context, with the workspace planned for the next operation.
  kernels::Context* NextOp();
  NormArgs NormOf(spec::Norm norm, int32_t layer) const;
  kernels::AttentionArgs AttentionOf() const;
  kernels::LinearArgs LinearOf(Tensor u, int32_t layer, spec::Module module,
                               kernels::LoraArgs& lora) const;

  const kernels::KernelTable& table_;
  kernels::Context& context_;
  const BaseView& base_;
  const spec::ModelConfig& model_;
  const spec::TrainSpec& spec_;
  const spec::CompiledPlan& plan_;
  std::byte* const persistent_;
  std::byte* step_ = nullptr;
  std::vector<const spec::AdapterMatrix*> adapter_of_;  // by layer * 7 + module; null = none

  // Of the micro-batch or update under way.
  const MicroBatch* batch_ = nullptr;
  size_t op_ = 0;
  bool training_ = false;
  double gradient_scale_ = 1;
  double loss_sum_ = 0;
  uint64_t dropout_stream_ = 0;
  double sum_squares_ = 0;
  kernels::AdamWArgs adamw_;
  bool apply_ = false;
};

// Fresh masters: A uniform in +-1/sqrt(in), B zero, as PEFT begins; keyed by the seed, layer and
// module.
void InitAdapters(const spec::CompiledPlan& plan, const spec::TrainSpec& spec, kernels::DType real,
                  std::byte* persistent);

}  // namespace nibble::engine

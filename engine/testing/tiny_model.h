// A random model of a few thousand weights and random documents, for tests of the step. Not
// thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "engine/kernel_executor.h"
#include "engine/model/base_view.h"
#include "engine/region.h"
#include "engine/spec/compile_plan.h"
#include "kernels/backend.h"

namespace nibble::engine::testing {

struct TinyOptions {
  bool qkv_bias = false;
  bool qk_norm = false;
  bool fused = false;
  int gemma = 0;  // 1, 2, 3: as that Gemma is, with caps and windows that are felt
  int64_t layers = 2;
  int64_t sliding_window = 0;
  bool some_turn = false;  // queries and keys of every second layer only
  int64_t rotary_dim = 0;  // of the 8 numbers of a head; 0 = all turn
  uint64_t seed = 1;
  double weight_scale = 0.3;   // linear weights are uniform within it; less is better conditioned
  bool bf16_weights = false;  // every weight is one that bf16 holds
};

// By default GQA (4 query heads, 2 key heads), hidden 24, vocabulary 31; unquantized fp32.
class TinyModel {
 public:
  explicit TinyModel(const TinyOptions& options);
  // Any shape, its linears quantized.
  TinyModel(const spec::ModelConfig& config, spec::QuantKind quant, bool double_quant, uint64_t seed);
  const spec::ModelConfig& config() const { return config_; }
  const BaseView& view() const { return view_; }

 private:
  const float* Fill(int64_t count, double scale, double offset = 0);
  void FillView();
  // In place of fp32 values.
  void Quantize(kernels::WeightView& weight, spec::QuantKind quant, bool double_quant);

  spec::ModelConfig config_;
  BaseView view_;
  std::deque<std::vector<float>> arrays_;
  std::deque<std::vector<uint8_t>> codes_;
  uint64_t seed_;
  double weight_scale_ = TinyOptions().weight_scale;
  bool bf16_weights_ = false;
  uint64_t stream_ = 0;
};

// `documents` lengths; some labels are none.
MicroBatch RandomBatch(const std::vector<int>& documents, int64_t vocab, uint64_t seed);

// A model, a plan, mapped regions and an executor on `table`.
class StepRig {
 public:
  StepRig(const kernels::KernelTable& table, const TinyModel& model, const spec::TrainSpec& spec,
          int threads = 1, int64_t red_zone_bytes = 0);
  // On any backend; the model's arrays are copied there.
  StepRig(std::unique_ptr<kernels::Backend> backend, const TinyModel& model,
          const spec::TrainSpec& spec, int threads = 1, int64_t red_zone_bytes = 0);
  ~StepRig();

  kernels::Backend& backend() { return *backend_; }
  KernelExecutor& executor() { return *executor_; }
  const spec::CompiledPlan& plan() const { return plan_; }
  const spec::TrainSpec& spec() const { return spec_; }
  Region& persistent() { return persistent_; }
  Region& step() { return step_; }
  // A flat array of the persistent region, `elements` long, widened to double.
  std::vector<double> Read(int64_t offset) const;
  // The same written back.
  void Write(int64_t offset, const std::vector<double>& values);
  void WriteMaster(int64_t element, double value);
  double ReadMaster(int64_t element) const;
  // Random values in B too, so that every gradient is alive; compute copies refreshed.
  void Randomize(uint64_t seed);
  // Of a step of these micro-batches, each with this scale; without the loss scale of fp16. Flat, [elements].
  std::vector<double> Gradients(const std::vector<MicroBatch>& batches, double scale);

 private:
  // The model's arrays where the backend can reach them.
  BaseView PlaceModel(const TinyModel& model);
  int64_t RealBytes() const { return plan_.adapters.elements * kernels::DTypeBytes(table_.real); }

  std::unique_ptr<kernels::Backend> backend_;
  const kernels::KernelTable& table_;
  spec::TrainSpec spec_;
  spec::ModelConfig config_;
  spec::CompiledPlan plan_;
  Region persistent_, step_;
  std::vector<void*> arrays_;
  BaseView view_;
  std::unique_ptr<KernelExecutor> executor_;
};

}  // namespace nibble::engine::testing

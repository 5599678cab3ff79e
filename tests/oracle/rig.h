// The engine's own step over a model directory, opened up far enough to be compared with others: logits,
// losses, optimizer steps, the adapter it ends with.
//
// Used by the fixture tests and by the live comparisons (oracle_probe). Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/kernel_executor.h"
#include "engine/model/adapter.h"
#include "engine/model/base_model.h"
#include "engine/model/base_view.h"
#include "engine/region.h"
#include "engine/spec/compile_plan.h"
#include "kernels/kernel_table.h"
#include "kernels/parallel.h"

namespace nibble::oracle {

struct RigOptions {
  std::string model_dir;
  std::string cache_dir;
  std::string adapter_dir;                 // PEFT's layout; "" = fresh, which changes no logit
  const kernels::KernelTable* table = nullptr;
  spec::QuantKind quant = spec::QuantKind::kNF4;   // kBF16: the base as stored
  int32_t tokens = 256;                    // most tokens of a micro-batch
  double max_grad_norm = 1.0;
};

using Documents = std::vector<std::vector<int32_t>>;

class Rig {
 public:
  static absl::StatusOr<std::unique_ptr<Rig>> Open(const RigOptions& options);

  const spec::ModelConfig& model() const { return base_->config(); }
  const engine::BaseModel& base() const { return *base_; }

  // fp32 [tokens, vocabulary] of the documents, packed into one micro-batch.
  std::vector<float> Logits(const Documents& documents);
  // Sum over the documents of the losses of their tokens after the first.
  double LossSum(const Documents& documents);

  struct StepRow {
    double loss = 0;                       // mean over target tokens
    double grad_norm = 0;                  // before clipping
    int64_t target_tokens = 0;
  };
  // One optimizer step over all the documents, cut into micro-batches of at most `tokens`. Steps count
  // from 1 by themselves.
  StepRow Step(const Documents& documents, double learning_rate);

  // Adapter weights as they are now.
  engine::Adapter TrainedAdapter() const;

 private:
  Rig() = default;
  absl::Status Build(const RigOptions& options);
  void ImportWeights(const engine::Adapter& adapter);

  RigOptions options_;
  std::unique_ptr<engine::BaseModel> base_;
  engine::BaseView view_;
  spec::TrainSpec spec_;
  spec::CompiledPlan plan_;
  engine::Region persistent_, step_;
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<engine::KernelExecutor> executor_;
  int64_t steps_done_ = 0;
};

}  // namespace nibble::oracle

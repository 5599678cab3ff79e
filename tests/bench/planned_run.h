// One recipe's steps on one backend: its plan's two regions, mapped, and an executor on them.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/kernel_executor.h"
#include "engine/region.h"
#include "engine/spec/compile_plan.h"

namespace nibble::bench {

// The persistent region is zero but for the rotary table; adapters and optimizer are the caller's
// to set.
class PlannedRun {
 public:
  // The backend and what the view points to must outlive it.
  static absl::StatusOr<std::unique_ptr<PlannedRun>> Open(kernels::Backend& backend,
                                                          const engine::BaseView& view,
                                                          const spec::ModelConfig& model,
                                                          spec::TrainSpec spec,
                                                          const spec::CompiledPlan& plan);

  engine::KernelExecutor& executor() { return *executor_; }
  const spec::TrainSpec& spec() const { return spec_; }  // what is recomputed is the plan's choice
  const spec::CompiledPlan& plan() const { return plan_; }
  std::byte* persistent() const { return persistent_.data(); }
  std::byte* step() const { return step_.data(); }
  // The adapters' masters, in the backend's real type.
  void SetMaster(const void* master, int64_t bytes);

 private:
  PlannedRun(kernels::Backend& backend, const spec::ModelConfig& model, spec::TrainSpec spec,
             const spec::CompiledPlan& plan);

  kernels::Backend& backend_;
  const spec::ModelConfig model_;
  spec::TrainSpec spec_;
  const spec::CompiledPlan plan_;
  engine::Region persistent_, step_;
  std::unique_ptr<engine::KernelExecutor> executor_;
};

}  // namespace nibble::bench

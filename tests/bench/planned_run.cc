#include "tests/bench/planned_run.h"

#include <utility>
#include <vector>

#include "base/status.h"
#include "engine/spec/rope.h"

namespace nibble::bench {

PlannedRun::PlannedRun(kernels::Backend& backend, const spec::ModelConfig& model,
                       spec::TrainSpec spec, const spec::CompiledPlan& plan)
    : backend_(backend), model_(model), spec_(std::move(spec)), plan_(plan) {
  plan_.recompute.SetIn(spec_);
}

absl::StatusOr<std::unique_ptr<PlannedRun>> PlannedRun::Open(kernels::Backend& backend,
                                                             const engine::BaseView& view,
                                                             const spec::ModelConfig& model,
                                                             spec::TrainSpec spec,
                                                             const spec::CompiledPlan& plan) {
  std::unique_ptr<PlannedRun> run(new PlannedRun(backend, model, std::move(spec), plan));
  const spec::MemoryPlan& memory = run->plan_.memory;
  ASSIGN_OR_RETURN(run->persistent_, engine::Region::On(backend, memory.PersistentRegionBytes()));
  ASSIGN_OR_RETURN(run->step_, engine::Region::On(backend, memory.step_bytes));
  RETURN_IF_ERROR(run->persistent_.Map(memory.PersistentRegionBytes()));
  RETURN_IF_ERROR(run->step_.Map(memory.step_bytes));
  run->executor_ = std::make_unique<engine::KernelExecutor>(
      backend, backend.table(), view, run->model_, run->spec_, run->plan_, run->persistent());
  if (!run->executor_->has_memory())
    return absl::ResourceExhaustedError("no page-locked memory left");
  run->executor_->set_step_region(run->step());
  backend.Fill(run->persistent(), 0, run->persistent_.mapped_bytes());
  const std::vector<float> rope = spec::RopeTable(model, run->spec_.sequence_len);
  backend.CopyIn(kernels::Lane::kCompute, run->persistent() + run->plan_.persistent.rope,
                 rope.data(), static_cast<int64_t>(rope.size() * sizeof(float)));
  return run;
}

void PlannedRun::SetMaster(const void* master, int64_t bytes) {
  backend_.CopyIn(kernels::Lane::kCompute, persistent() + plan_.persistent.master, master, bytes);
}

}  // namespace nibble::bench

// One attached job: its data, its plan, its persistent region, and the work that is due next.
//
// Advance does one piece of work: an optimizer step, a share of an evaluation, a checkpoint or the
// final adapter. What is due follows from the number of steps done and the history alone, so a job
// that was interrupted anywhere comes out with the same bytes. Between Open and Start it has no
// region; inside a step it allocates nothing. One thread drives it; Device outlives it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "engine/checkpoint.h"
#include "engine/data/dataset.h"
#include "engine/data/packing.h"
#include "engine/device.h"
#include "engine/kernel_executor.h"
#include "engine/lockstep.h"
#include "engine/model/adapter.h"
#include "engine/spec/compile_plan.h"

namespace nibble::engine {

struct JobInput {
  std::string attempt;   // "<job>/<epoch>"
  std::string dir;       // of this attempt alone
  spec::TrainSpec spec;  // as given
  std::string dataset;
  std::string eval_dataset;  // may be empty
  std::string resume;        // checkpoint directory; empty = from the start
  std::string init_adapter;  // PEFT directory to start from; empty = fresh
  std::string numerics_id;   // empty = this engine's
  std::string base_name;     // for adapter_config.json
  std::string display_name;
  // A full disk is no failure: what could not be written is tried again after this long. 0 = it is
  // one.
  int64_t disk_retry_us = 0;
};

enum class JobWork { kStep, kEvaluate, kCheckpoint, kFinish, kNothing };

struct StepDone {
  MetricRow row;
  bool applied = true;  // false: not finite, parameters unchanged
};
struct EvalDone {
  MetricRow row;
};
struct CheckpointDone {
  int64_t step = 0;
  double loss = 0;
  SavedCheckpoint saved;
};
struct FinishDone {
  int64_t step = 0;
  std::string directory;
  std::vector<ExportedFile> files;
};
// The disk had no room. Of a checkpoint: steps go on, and it is made later. Of the adapter: nothing
// is left to do but that (NextWork says kFinish).
struct NoRoom {
  int64_t step = 0;
  absl::Status why;
};
// Empty: part of an evaluation, or a step that was stopped.
using JobEvent =
    std::variant<std::monostate, StepDone, EvalDone, CheckpointDone, FinishDone, NoRoom>;

class Job {
 public:
  // Reads and tokenizes the data and compiles the plan. Needs nothing of the device but what never changes,
  // so that it may run beside the turns of others. `stop` is asked between any two rows; true: it is given
  // up, with an error of no reason.
  static absl::StatusOr<std::unique_ptr<Job>> Open(Device& device, JobInput input, const Clock& clock,
                                                   const std::function<bool()>& stop = nullptr);
  ~Job();

  // Maps the persistent region; loads the checkpoint or begins afresh.
  absl::Status Start();

  JobWork NextWork() const;
  // Does it. The device's step region must be at least plan().step_bytes.
  absl::StatusOr<JobEvent> Advance();
  // After Start. Asked inside a step or evaluation (KernelExecutor::set_stop). When it says true the step
  // is given up: the job is as after the step before, and it is computed again when the job goes on.
  void set_stop(std::function<bool()> stop);
  bool StepWasStopped() const { return executor_->step_was_stopped(); }
  void StopStep() { executor_->StopStep(); }
  // The device is this job's for what comes next. Advance begins with it.
  absl::Status TakeDevice();
  // Asks for a checkpoint at the next boundary; one of the same step is reported again.
  void RequestCheckpoint() { checkpoint_requested_ = true; }
  // False before the first step, and right after a resume: there is nothing a checkpoint would add.
  bool WorthSaving() const { return step_ > 0 && (step_ != last_saved_step_ || last_saved_); }

  // What Advance does for a step: the first may allocate, the second (the turn proper) does not, the third
  // notes the result and fails when too many steps in a row were not finite.
  absl::Status PrepareStep();
  // nullopt: it was stopped.
  std::optional<StepDone> ComputeStep();
  absl::StatusOr<JobEvent> ConcludeStep(StepDone done);

  // A step may be part of a fused turn (fused_turn.h) when it is due and the plan keeps what it needs apart.
  bool CanFuse() const;
  // ComputeStep with the micro-batches left to others: between the two. EndStep's step_time_us is the time of
  // the phases, which is this job's share.
  void BeginStep();
  Lockstep::Member MicroBatches();
  StepDone EndStep();

  const JobInput& input() const { return input_; }
  const spec::TrainSpec& spec() const { return spec_; }
  const spec::MemoryPlan& plan() const { return plan_.memory; }
  const kernels::KernelTable& table() const { return *table_; }
  const DataReport& report() const { return data_.report; }
  const std::string& numerics_id() const { return numerics_id_; }
  int64_t total_steps() const { return schedule_->total_steps(); }
  int64_t step() const { return step_; }
  bool finished() const { return finished_; }
  // Why a checkpoint that was due is not there yet; OK when none is owed.
  const absl::Status& no_room() const { return no_room_; }
  const std::vector<MetricRow>& history() const { return history_; }
  // Touched pages of this job's region; on a device all of it, and what its recordings take.
  int64_t PersistentTouchedBytes() const {
    return persistent_.TouchedBytes() + (executor_ == nullptr ? 0 : executor_->RecordedBytes());
  }

 private:
  Job(Device& device, JobInput input, const Clock& clock)
      : device_(device), input_(std::move(input)), clock_(clock) {}

  void Keep(const MetricRow& row);
  absl::Status ChooseNumerics();
  absl::Status LoadData(const std::function<bool()>& stop);
  // Steps between what the spec asks for every `steps`, or so many times an epoch, or not at all
  // (-1): then as usual.
  int64_t Interval(int64_t steps, double per_epoch, int64_t usual_per_epoch,
                   int64_t usual_in_all) const;
  void PlanEvaluation();
  absl::Status Resume(const CheckpointArrays& arrays);
  absl::Status ImportMasters(float* master);
  // Masters and moments as host memory: the region itself, page-locked memory of paged moments, or a copy
  // of a device's that lives as long as the HostState. Write takes changes back to the device.
  class HostState;
  bool EvaluationDue() const;
  bool CheckpointDue() const;
  // Empty until the last share is done.
  absl::StatusOr<std::optional<EvalDone>> EvaluateSome();
  absl::StatusOr<CheckpointDone> Checkpoint();
  // `status` as an event, if it is of a full disk and those are waited for; else the error.
  absl::StatusOr<JobEvent> WaitForRoom(const absl::Status& status);
  absl::StatusOr<FinishDone> Finish();
  static void Clear(MicroBatch& batch);
  // Appends a row of examples of `part`.
  absl::Status Fill(std::span<const int32_t> row, const std::vector<int32_t>& part, MicroBatch& batch);

  Device& device_;
  JobInput input_;
  const Clock& clock_;
  const kernels::KernelTable* table_ = nullptr;
  std::string numerics_id_;
  spec::TrainSpec spec_;
  std::string spec_digest_;
  std::string data_digest_;
  Dataset data_;
  std::unique_ptr<StepSchedule> schedule_;
  spec::CompiledPlan plan_;
  Region persistent_;
  std::unique_ptr<KernelExecutor> executor_;

  int64_t step_ = 0;  // done
  int64_t updates_ = 0;
  int64_t skipped_in_a_row_ = 0;
  double last_loss_ = 0;
  std::vector<MetricRow> history_;  // by Keep
  bool finished_ = false;

  // The step made ready by PrepareStep; buffers keep their room.
  Example example_;  // the one being read
  std::vector<MicroBatch> batches_;
  size_t batch_count_ = 0;
  double epoch_done_ = 0;
  int64_t data_us_ = 0;   // it took
  MetricRow row_;         // of the step under way
  double row_scale_ = 0;  // of its gradients: one divisor for the whole step

  int64_t eval_interval_ = 0;  // 0 = no evaluation
  int64_t save_interval_ = 0;  // steps; 0 = none
  EpochRows eval_rows_;
  MicroBatch eval_batch_;
  int64_t eval_next_ = 0;  // row
  double eval_loss_sum_ = 0;
  int64_t eval_targets_ = 0;
  int64_t eval_tokens_ = 0;
  int64_t eval_time_us_ = 0;

  bool checkpoint_requested_ = false;
  int64_t last_saved_step_ = -1;              // also of the checkpoint resumed from
  std::optional<CheckpointDone> last_saved_;  // of this attempt
  int64_t last_saved_us_ = 0;
  absl::Status no_room_;  // of the checkpoint that is owed
  int64_t no_checkpoint_until_us_ = 0;
};

class Job::HostState {
 public:
  explicit HostState(const Job& job);
  const CheckpointArrays& arrays() const { return arrays_; }
  float* master() const { return static_cast<float*>(arrays_.parts[0].data); }
  void Write() const;

 private:
  const Job& job_;
  std::vector<std::byte> copy_;
  std::vector<int64_t> offsets_;  // of the parts, in the persistent region; -1 = of the host anyway
  CheckpointArrays arrays_;
};

}  // namespace nibble::engine

// The work of an attached job: what is due, and doing it.
#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/status.h"
#include "engine/job.h"
#include "engine/spec/rope.h"

namespace nibble::engine {
namespace {

constexpr int kSkipsBeforeFailure = 3;

}  // namespace

// In place, so that a long history is not in memory twice while it grows: what spec::HistoryRows plans.
void Job::Keep(const MetricRow& row) {
  constexpr int64_t kMost = int64_t{1} << 22;  // half a GB of addresses
  if (history_.size() == history_.capacity()) {
    const int64_t rows = total_steps() + (eval_interval_ > 0 ? total_steps() / eval_interval_ : 0) + 2;
    history_.reserve(static_cast<size_t>(std::min(kMost, rows)));
  }
  history_.push_back(row);
}

bool Job::EvaluationDue() const {
  if (eval_interval_ == 0) return false;
  // At the start for comparison, at every interval, and at the end.
  if (step_ % eval_interval_ != 0 && step_ != total_steps()) return false;
  for (auto row = history_.rbegin(); row != history_.rend() && row->step == step_; ++row) {
    if (row->is_eval) return false;
  }
  return true;
}

bool Job::CheckpointDue() const {
  if (checkpoint_requested_) return true;
  if (step_ == 0 || step_ == last_saved_step_ || step_ == total_steps()) return false;
  if (!no_room_.ok()) return clock_.NowMonotonicUs() >= no_checkpoint_until_us_;
  if (step_ % save_interval_ == 0) return true;
  return spec_.save_interval_seconds > 0 &&
         clock_.NowMonotonicUs() - last_saved_us_ >= spec_.save_interval_seconds * 1'000'000;
}

JobWork Job::NextWork() const {
  if (finished_) return JobWork::kNothing;
  // A checkpoint holds the evaluation of its step, except when it is asked for in the middle of
  // one.
  if (checkpoint_requested_) return JobWork::kCheckpoint;
  if (EvaluationDue()) return JobWork::kEvaluate;
  if (CheckpointDue()) return JobWork::kCheckpoint;
  return step_ == total_steps() ? JobWork::kFinish : JobWork::kStep;
}

absl::Status Job::TakeDevice() {
  RETURN_IF_ERROR(FaultStatus(device_.backend()));
  if (device_.step().mapped_bytes() < plan_.memory.step_bytes) {
    return Error(Reason::kOutOfMemory,
                 absl::StrCat("the device's step region has ", device_.step().mapped_bytes(),
                              " bytes, the plan ", plan_.memory.step_bytes));
  }
  executor_->set_step_region(device_.step().data());
  return absl::OkStatus();
}

absl::StatusOr<JobEvent> Job::Advance() {
  RETURN_IF_ERROR(TakeDevice());
  switch (NextWork()) {
    case JobWork::kNothing:
      return JobEvent{};
    case JobWork::kEvaluate: {
      ASSIGN_OR_RETURN(const std::optional<EvalDone> done, EvaluateSome());
      RETURN_IF_ERROR(FaultStatus(device_.backend()));
      if (!done) return JobEvent{};
      return JobEvent{*done};
    }
    case JobWork::kCheckpoint: {
      absl::StatusOr<CheckpointDone> done = Checkpoint();
      if (!done.ok()) {
        ASSIGN_OR_RETURN(JobEvent event, WaitForRoom(done.status()));
        no_room_ = done.status();
        no_checkpoint_until_us_ = clock_.NowMonotonicUs() + input_.disk_retry_us;
        return event;
      }
      no_room_ = absl::OkStatus();
      return JobEvent{*std::move(done)};
    }
    case JobWork::kFinish: {
      absl::StatusOr<FinishDone> done = Finish();
      if (!done.ok()) return WaitForRoom(done.status());
      return JobEvent{*std::move(done)};
    }
    case JobWork::kStep:
      break;
  }
  RETURN_IF_ERROR(PrepareStep());
  const std::optional<StepDone> done = ComputeStep();
  if (!done) return JobEvent{};
  return ConcludeStep(*done);
}

void Job::set_stop(std::function<bool()> stop) { executor_->set_stop(std::move(stop)); }

absl::StatusOr<JobEvent> Job::ConcludeStep(StepDone done) {
  if (device_.backend().is_host())
    done.row.phase_us[static_cast<size_t>(spec::StepPhase::kData)] += data_us_;
  RETURN_IF_ERROR(FaultStatus(device_.backend()));
  Keep(done.row);
  if (skipped_in_a_row_ >= kSkipsBeforeFailure) {
    return Error(Reason::kLossNotFinite,
                 absl::StrCat("loss or gradient norm was not finite in ", skipped_in_a_row_,
                              " steps in a row, the last of them step ", step_,
                              "; a lower learning rate or clipping may help"));
  }
  return JobEvent{done};
}

void Job::Clear(MicroBatch& batch) {
  batch.ids.clear();
  batch.labels.clear();
  batch.positions.clear();
  batch.starts.assign(1, 0);
  batch.target_tokens = 0;
}

absl::Status Job::Fill(std::span<const int32_t> row, const std::vector<int32_t>& part,
                       MicroBatch& batch) {
  for (const int32_t index : row) {
    RETURN_IF_ERROR(data_.tokens.Read(part[static_cast<size_t>(index)], example_));
    batch.ids.insert(batch.ids.end(), example_.ids.begin(), example_.ids.end());
    batch.labels.insert(batch.labels.end(), example_.labels.begin(), example_.labels.end());
    const int32_t first = spec::RopeFirstRow(device_.model(), static_cast<int64_t>(example_.ids.size()));
    for (size_t p = 0; p < example_.ids.size(); ++p) {
      batch.positions.push_back(first + static_cast<int32_t>(p));
      batch.target_tokens += example_.labels[p] != kNoLabel;
    }
    batch.starts.push_back(static_cast<int32_t>(batch.ids.size()));
  }
  return absl::OkStatus();
}

absl::Status Job::PrepareStep() {
  const int64_t begin_us = clock_.NowMonotonicUs();
  const StepSchedule::Step step = schedule_->At(step_ + 1);
  batch_count_ = step.batches.size();
  if (batches_.size() < batch_count_) batches_.resize(batch_count_);
  for (size_t i = 0; i < batch_count_; ++i) {
    Clear(batches_[i]);
    for (const std::vector<int32_t>& row : step.batches[i]) {
      RETURN_IF_ERROR(Fill(row, data_.train, batches_[i]));
    }
  }
  epoch_done_ = step.epoch_done;
  for (size_t i = 0; i < batch_count_; ++i) executor_->Record(batches_[i]);
  data_us_ = clock_.NowMonotonicUs() - begin_us;
  return absl::OkStatus();
}

std::optional<StepDone> Job::ComputeStep() {
  const int64_t begin_us = clock_.NowMonotonicUs();
  BeginStep();
  for (size_t i = 0; i < batch_count_ && !executor_->StepStopped(); ++i) {
    executor_->Queue(batches_[i], row_scale_, row_.step, static_cast<int64_t>(i));
  }
  if (executor_->step_was_stopped()) {
    executor_->StopStep();
    return std::nullopt;
  }
  StepDone done = EndStep();
  done.row.step_time_us = clock_.NowMonotonicUs() - begin_us;
  return done;
}

void Job::BeginStep() {
  row_ = {};
  row_.step = step_ + 1;
  row_.epoch = epoch_done_;
  for (size_t i = 0; i < batch_count_; ++i) {
    row_.tokens += batches_[i].tokens();
    row_.target_tokens += batches_[i].target_tokens;
  }
  // Known before its first forward.
  row_scale_ = row_.target_tokens > 0 ? 1.0 / static_cast<double>(row_.target_tokens) : 0;
  executor_->TakePhaseTimes();
  executor_->ZeroGradients();
}

StepDone Job::EndStep() {
  row_.learning_rate = spec::LearningRateAt(spec_, row_.step, total_steps());
  const KernelExecutor::Update update = executor_->Optimize(
      row_.learning_rate, updates_ + 1, static_cast<int64_t>(batch_count_));
  row_.phase_us = executor_->TakePhaseTimes();
  row_.step_time_us = std::accumulate(row_.phase_us.begin(), row_.phase_us.end(), int64_t{0});
  row_.loss = update.loss_sum * row_scale_;
  row_.grad_norm = update.grad_norm;
  updates_ += update.applied;
  // Finding the loss scale of fp16 costs steps without anything being wrong.
  if (!update.overflow) skipped_in_a_row_ = update.applied ? 0 : skipped_in_a_row_ + 1;
  step_ = row_.step;
  last_loss_ = row_.loss;
  return {row_, update.applied};
}

bool Job::CanFuse() const {
  return plan_.persistent.activations >= 0 && table_->linear_forward_parts != nullptr &&
         NextWork() == JobWork::kStep;
}

Lockstep::Member Job::MicroBatches() {
  executor_->PrepareInPieces();
  return {executor_.get(), {batches_.data(), batch_count_}, row_scale_, row_.step};
}

absl::StatusOr<std::optional<EvalDone>> Job::EvaluateSome() {
  const int64_t begin_us = clock_.NowMonotonicUs();
  const int64_t rows = eval_rows_.count();
  for (int i = 0; i < spec_.gradient_accumulation_steps && eval_next_ < rows; ++i) {
    if (executor_->StepStopped()) break;
    Clear(eval_batch_);
    const int64_t end = std::min(rows, eval_next_ + spec_.micro_batch_size);
    for (int64_t row = eval_next_; row < end; ++row) {
      RETURN_IF_ERROR(Fill(eval_rows_.Row(row), data_.eval, eval_batch_));
    }
    const double loss = executor_->Evaluate(eval_batch_);
    if (executor_->step_was_stopped()) break;
    eval_next_ = end;
    eval_loss_sum_ += loss;
    eval_targets_ += eval_batch_.target_tokens;
    eval_tokens_ += eval_batch_.tokens();
  }
  eval_time_us_ += clock_.NowMonotonicUs() - begin_us;
  if (executor_->step_was_stopped()) executor_->StopStep();
  if (eval_next_ < rows) return std::nullopt;
  MetricRow row;
  row.is_eval = true;
  row.step = step_;
  row.epoch = history_.empty() ? 0 : history_.back().epoch;
  row.loss = eval_loss_sum_ / static_cast<double>(std::max<int64_t>(1, eval_targets_));
  row.tokens = eval_tokens_;
  row.target_tokens = eval_targets_;
  row.step_time_us = eval_time_us_;
  Keep(row);
  eval_next_ = 0;
  eval_loss_sum_ = 0;
  eval_targets_ = eval_tokens_ = eval_time_us_ = 0;
  return EvalDone{row};
}

absl::StatusOr<CheckpointDone> Job::Checkpoint() {
  checkpoint_requested_ = false;
  // Somebody may be reading the one of this step; it says all there is to say.
  if (last_saved_ && last_saved_->step == step_) return *last_saved_;
  CheckpointHead head;
  head.step = step_;
  head.updates = updates_;
  head.skipped_in_a_row = skipped_in_a_row_;
  head.attempt = input_.attempt;
  head.spec_digest = spec_digest_;
  head.base_digest = device_.base().digest();
  head.data_digest = data_digest_;
  head.numerics_id = numerics_id_;
  head.seed = spec_.seed;
  head.loss = last_loss_;
  const std::string directory = JoinPath(input_.dir, "checkpoints");
  CheckpointDone done{step_, last_loss_, {}};
  head.loss_scale = executor_->loss_scale();
  const HostState state(*this);
  RETURN_IF_ERROR(FaultStatus(device_.backend()));
  ASSIGN_OR_RETURN(done.saved, SaveCheckpoint(directory, head, state.arrays(), history_));
  // The newest but one stays in any case: the newest may turn out to be unreadable. What cannot be deleted (a
  // network's file system holds files that somebody has open) takes room; the new one is there all the same.
  const absl::Status pruned = PruneCheckpoints(directory, std::max(2, spec_.save_total_limit));
  if (!pruned.ok()) {
    LogWarning("checkpoint.not_deleted",
               {{"attempt", input_.attempt}, {"why", std::string(pruned.message())}});
  }
  last_saved_step_ = step_;
  last_saved_us_ = clock_.NowMonotonicUs();
  last_saved_ = done;
  return done;
}

absl::StatusOr<JobEvent> Job::WaitForRoom(const absl::Status& status) {
  if (input_.disk_retry_us == 0 || StatusReason(status) != Reason::kStorageFull) return status;
  return JobEvent{NoRoom{step_, status}};
}

absl::StatusOr<FinishDone> Job::Finish() {
  AdapterExport adapter;
  adapter.config = {.r = spec_.lora_r,
                    .alpha = spec_.lora_alpha,
                    .dropout = spec_.lora_dropout,
                    .use_rslora = spec_.use_rslora,
                    .target_modules = spec_.target_modules,
                    .base_model_name = input_.base_name};
  const HostState state(*this);
  RETURN_IF_ERROR(FaultStatus(device_.backend()));
  const float* const master = state.master();
  for (const spec::AdapterMatrix& matrix : plan_.adapters.matrices) {
    adapter.pairs.push_back({matrix.layer, matrix.module, master + matrix.a, master + matrix.b});
  }
  adapter.model = device_.model();
  adapter.spec = spec_;
  adapter.has_eval_dataset = !input_.eval_dataset.empty();
  adapter.job_name = input_.display_name;
  adapter.base_digest = device_.base().digest();
  adapter.weights_digest = device_.base().weights_digest();
  adapter.numerics_id = numerics_id_;
  adapter.step = step_;
  adapter.total_steps = total_steps();
  adapter.metrics = history_;
  FinishDone done{step_, JoinPath(input_.dir, "adapter"), {}};
  ASSIGN_OR_RETURN(done.files, ExportAdapter(done.directory, adapter));
  finished_ = true;
  return done;
}

}  // namespace nibble::engine

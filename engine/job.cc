#include "engine/job.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/status.h"
#include "engine/spec/rope.h"

namespace nibble::engine {
namespace {

// Bounds of the defaults: many short epochs should not be spent on saving and measuring.
constexpr int64_t kDefaultSaves = 10;
constexpr int64_t kDefaultEvaluations = 40;

// Digest of what determines the result. What only says when to save or how to spend memory may
// differ between the attempts of a job.
std::string SpecDigest(spec::TrainSpec spec) {
  const spec::TrainSpec defaults;
  spec.recompute = defaults.recompute;
  spec.keep_blocks = defaults.keep_blocks;
  spec.paged_optimizer = defaults.paged_optimizer;
  spec.offload_activations = defaults.offload_activations;
  spec.base_cache = defaults.base_cache;
  spec.logging_steps = defaults.logging_steps;
  spec.save_steps = defaults.save_steps;
  spec.saves_per_epoch = defaults.saves_per_epoch;
  spec.save_interval_seconds = defaults.save_interval_seconds;
  spec.save_total_limit = defaults.save_total_limit;
  spec.allow_numerics_change = defaults.allow_numerics_change;
  spec.data_rows = defaults.data_rows;
  return Sha256Hex(spec::TrainSpecToJson(spec));
}

absl::StatusOr<std::string> DataDigest(const Dataset& data, const std::function<bool()>& stop) {
  Sha256 sha;
  const auto add = [&](const std::vector<int32_t>& values) {
    const auto count = static_cast<int64_t>(values.size());
    sha.Update(&count, sizeof count);
    sha.Update(values.data(), values.size() * sizeof(int32_t));
  };
  Example example;
  for (const std::vector<int32_t>* part : {&data.train, &data.eval}) {
    const auto count = static_cast<int64_t>(part->size());
    sha.Update(&count, sizeof count);
    for (const int32_t number : *part) {
      if (stop && stop()) return absl::CancelledError("reading was stopped");
      RETURN_IF_ERROR(data.tokens.Read(number, example));
      add(example.ids);
      add(example.labels);
    }
  }
  return sha.FinishHex();
}

}  // namespace

Job::~Job() = default;

absl::StatusOr<std::unique_ptr<Job>> Job::Open(Device& device, JobInput input, const Clock& clock,
                                               const std::function<bool()>& stop) {
  std::unique_ptr<Job> job(new Job(device, std::move(input), clock));
  ASSIGN_OR_RETURN(job->spec_, spec::ResolveTrainSpec(job->input_.spec, device.model()));
  const bool nested = job->spec_.double_quant;
  if (job->spec_.quant != device.quant() || (nested != device.double_quant() && nested)) {
    return Error(Reason::kInternal,
                 "the job wants another quantization than this engine's base has");
  }
  job->spec_digest_ = SpecDigest(job->spec_);
  RETURN_IF_ERROR(job->ChooseNumerics());
  RETURN_IF_ERROR(job->LoadData(stop));
  ASSIGN_OR_RETURN(job->plan_,
                   spec::CompileForEngine(device.model(), job->spec_, device.profile()));
  job->plan_.recompute.SetIn(job->spec_);
  job->spec_.base_cache = job->plan_.base_cache;
  if ((job->spec_.paged_optimizer && !job->plan_.paged) ||
      (job->spec_.offload_activations && !job->plan_.offloaded)) {
    LogInfo("job.notice",
            {{"attempt", job->input_.attempt},
             {"note", "paging and offloading change nothing on a CPU"}});
  }
  return job;
}

absl::Status Job::ChooseNumerics() {
  table_ = &device_.table();
  numerics_id_ = NumericsId(*table_);
  const std::string& wanted = input_.numerics_id;
  if (wanted.empty() || wanted == numerics_id_) return absl::OkStatus();
  const kernels::KernelTable* other = TableForNumerics(wanted);
  if (device_.backend().is_host() && other != nullptr && other->act == table_->act) {
    table_ = other;
    numerics_id_ = wanted;
    return absl::OkStatus();
  }
  if (spec_.allow_numerics_change) {
    LogWarning("job.numerics_changed",
               {{"attempt", input_.attempt}, {"from", wanted}, {"to", numerics_id_}});
    return absl::OkStatus();
  }
  return Error(
      Reason::kNumericsChanged,
      absl::StrCat("the job began under numerics ", wanted, ", this engine has ", numerics_id_,
                   "; set training.allow_numerics_change to go on with other rounding"));
}

absl::Status Job::LoadData(const std::function<bool()>& stop) {
  ASSIGN_OR_RETURN(data_,
                   LoadDataset(input_.dataset, input_.eval_dataset, device_.tokenizer(), spec_,
                               {device_.model().vocab_size, input_.dir, stop}));
  ASSIGN_OR_RETURN(data_digest_, DataDigest(data_, stop));
  schedule_ = std::make_unique<StepSchedule>(data_.Lengths(data_.train), spec_);
  save_interval_ = Interval(spec_.save_steps, spec_.saves_per_epoch, 1, kDefaultSaves);
  PlanEvaluation();
  return absl::OkStatus();
}

int64_t Job::Interval(int64_t steps, double per_epoch, int64_t usual_per_epoch,
                      int64_t usual_in_all) const {
  if (steps > 0) return steps;
  const int64_t epoch = schedule_->steps_per_epoch();
  if (per_epoch >= 0) {
    // Seldom enough is never before the end; what is next to nothing has an interval beyond all integers.
    const double interval = std::ceil(static_cast<double>(epoch) / per_epoch);
    if (!(interval < static_cast<double>(total_steps()))) return total_steps();
    return std::max<int64_t>(1, static_cast<int64_t>(interval));
  }
  const int64_t by_epoch = (epoch + usual_per_epoch - 1) / usual_per_epoch;
  const int64_t by_job = (total_steps() + usual_in_all - 1) / usual_in_all;
  return std::max<int64_t>({1, by_epoch, by_job});
}

void Job::PlanEvaluation() {
  if (data_.eval.empty()) return;
  eval_interval_ = Interval(spec_.eval_steps, spec_.evals_per_epoch, 4, kDefaultEvaluations);
  const std::vector<int32_t> lengths = data_.Lengths(data_.eval);
  std::vector<int32_t> order(lengths.size());
  std::iota(order.begin(), order.end(), 0);
  eval_rows_ = PackRows(lengths, order, spec_.sequence_len, spec_.sample_packing);
}

absl::Status Job::Start() {
  kernels::Backend& backend = device_.backend();
  ASSIGN_OR_RETURN(persistent_, Region::On(backend, plan_.memory.PersistentRegionBytes()));
  RETURN_IF_ERROR(persistent_.Map(plan_.memory.PersistentRegionBytes()));
  std::byte* const region = persistent_.data();
  backend.Fill(region, 0, persistent_.mapped_bytes());
  const std::vector<float> rope = spec::RopeTable(device_.model(), spec_.sequence_len);
  backend.CopyIn(kernels::Lane::kCompute, region + plan_.persistent.rope, rope.data(),
                 static_cast<int64_t>(rope.size() * sizeof(float)));
  executor_ = std::make_unique<KernelExecutor>(backend, *table_, device_.view(), device_.model(),
                                               spec_, plan_, region);
  if (!executor_->has_memory()) {
    executor_.reset();
    return Error(Reason::kOutOfMemory,
                 absl::StrCat("the host has no ", plan_.pinned.total_bytes,
                              " bytes of page-locked memory left; a paged optimizer and offloaded "
                              "activations need most of them"));
  }
  InitOptimizer(backend, plan_, spec_, region, executor_->pinned());
  {
    HostState state(*this);
    InitAdapters(plan_, spec_, table_->real, state.master());
    if (!input_.init_adapter.empty()) RETURN_IF_ERROR(ImportMasters(state.master()));
    if (!input_.resume.empty()) RETURN_IF_ERROR(Resume(state.arrays()));
    state.Write();
  }
  executor_->set_step_region(device_.step().data());
  executor_->DecodeBase();
  executor_->RefreshCompute();
  RETURN_IF_ERROR(FaultStatus(backend));
  last_saved_us_ = clock_.NowMonotonicUs();
  return MakeDirs(JoinPath(input_.dir, "checkpoints"));
}

absl::Status Job::ImportMasters(float* master) {
  ASSIGN_OR_RETURN(const Adapter adapter, ImportAdapter(input_.init_adapter, device_.model()));
  if (adapter.config.r != spec_.lora_r || adapter.pairs.size() != plan_.adapters.matrices.size()) {
    return Error(Reason::kSpecInvalid,
                 absl::StrCat("the adapter to start from has r ", adapter.config.r,
                              " or other modules than the job"));
  }
  for (const AdapterPair& pair : adapter.pairs) {
    const spec::AdapterMatrix* matrix =
        plan_.adapters.Find(static_cast<int32_t>(pair.layer), pair.module);
    if (matrix == nullptr)
      return Error(Reason::kSpecInvalid, "the adapter to start from has other modules");
    std::copy(pair.a.begin(), pair.a.end(), master + matrix->a);
    std::copy(pair.b.begin(), pair.b.end(), master + matrix->b);
  }
  return absl::OkStatus();
}

Job::HostState::HostState(const Job& job) : job_(job) {
  CHECK(job.table_->real == kernels::DType::kF32);
  const spec::PersistentLayout& at = job.plan_.persistent;
  const int64_t count = job.plan_.adapters.elements;
  const bool small = job.spec_.optimizer == spec::OptimizerKind::kAdamW8bit;
  arrays_.elements = count;
  int64_t bytes = 0;
  const auto add = [&](const char* what, int64_t offset, int64_t size, bool floats) {
    arrays_.parts.push_back({what, nullptr, size, floats});
    offsets_.push_back(offset);
    bytes += size;
  };
  add("adapters", at.master, 4 * count, true);
  const bool paged = job.plan_.paged;  // the moments are host memory already
  const auto moments = [&](const char* what, int64_t offset, int64_t pinned, int64_t size, bool floats) {
    if (!paged) return add(what, offset, size, floats);
    arrays_.parts.push_back({what, job.executor_->pinned() + pinned, size, floats});
    offsets_.push_back(-1);
  };
  const spec::PinnedLayout& paged_at = job.plan_.pinned;
  moments("first moments", at.moment1, paged_at.moment1, small ? count : 4 * count, !small);
  moments("second moments", at.moment2, paged_at.moment2, small ? count : 4 * count, !small);
  if (small) {
    const int64_t scales = count / spec::kMomentBlock * 4;
    moments("first moments' scales", at.absmax1, paged_at.absmax1, scales, true);
    moments("second moments' scales", at.absmax2, paged_at.absmax2, scales, true);
  }
  std::byte* const region = job.persistent_.data();
  kernels::Backend& backend = job.device_.backend();
  if (!backend.is_host()) copy_.resize(static_cast<size_t>(bytes));
  int64_t next = 0;
  for (size_t i = 0; i < offsets_.size(); ++i) {
    CheckpointArrays::Part& part = arrays_.parts[i];
    if (part.data != nullptr) continue;
    if (backend.is_host()) {
      part.data = region + offsets_[i];
      continue;
    }
    part.data = copy_.data() + next;
    next += part.bytes;
    backend.CopyOut(kernels::Lane::kCompute, part.data, region + offsets_[i], part.bytes);
  }
  backend.Synchronize();
}

void Job::HostState::Write() const {
  if (copy_.empty()) return;
  std::byte* const region = job_.persistent_.data();
  for (size_t i = 0; i < offsets_.size(); ++i) {
    const CheckpointArrays::Part& part = arrays_.parts[i];
    if (offsets_[i] < 0) continue;
    job_.device_.backend().CopyIn(kernels::Lane::kCompute, region + offsets_[i], part.data,
                                  part.bytes);
  }
}

absl::Status Job::Resume(const CheckpointArrays& arrays) {
  ASSIGN_OR_RETURN(LoadedCheckpoint loaded, LoadCheckpoint(input_.resume, arrays));
  const CheckpointHead& head = loaded.head;
  const auto differs = [&](const char* what) {
    return Error(Reason::kCheckpointInvalid,
                 absl::StrCat("checkpoint ", input_.resume, " belongs to another ", what));
  };
  // Every attempt but the first has gone on from a checkpoint of the one before, so these are alike in all.
  const auto all_differ = [&](const char* what) { return differs(what).With(kAllCheckpoints, "true"); };
  if (head.spec_digest != spec_digest_) return all_differ("training spec");
  if (head.base_digest != device_.base().digest()) return all_differ("base model");
  if (head.data_digest != data_digest_) return all_differ("data set");
  if (head.step > total_steps()) return differs("number of steps");
  if (head.numerics_id != numerics_id_ && !spec_.allow_numerics_change) {
    return Error(Reason::kNumericsChanged,
                 absl::StrCat("checkpoint ", input_.resume, " was made under numerics ",
                              head.numerics_id, ", the job runs under ", numerics_id_,
                              "; set training.allow_numerics_change to go on with other rounding"));
  }
  step_ = head.step;
  updates_ = head.updates;
  skipped_in_a_row_ = head.skipped_in_a_row;
  last_loss_ = head.loss;
  if (table_->act == kernels::DType::kF16 && head.loss_scale.scale >= 1) {
    executor_->set_loss_scale(head.loss_scale);
  }
  last_saved_step_ = head.step;
  history_ = std::move(loaded.history);
  return absl::OkStatus();
}

}  // namespace nibble::engine

#include "server/core/types.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/digest.h"
#include "base/human_bytes.h"
#include "engine/spec/compile_plan.h"

namespace nibble::core {
namespace {

template <typename E>
struct Name {
  E value;
  std::string_view name;
};

constexpr Name<JobState> kJobStates[] = {
    {JobState::kQueued, "QUEUED"},       {JobState::kStarting, "STARTING"},
    {JobState::kRunning, "RUNNING"},     {JobState::kPausing, "PAUSING"},
    {JobState::kPaused, "PAUSED"},       {JobState::kCancelling, "CANCELLING"},
    {JobState::kSucceeded, "SUCCEEDED"}, {JobState::kFailed, "FAILED"},
    {JobState::kCancelled, "CANCELLED"},
};
constexpr Name<AttemptState> kAttemptStates[] = {
    {AttemptState::kActive, "ACTIVE"},       {AttemptState::kDone, "DONE"},
    {AttemptState::kFailed, "FAILED"},       {AttemptState::kLost, "LOST"},
    {AttemptState::kCancelled, "CANCELLED"}, {AttemptState::kReleased, "RELEASED"},
};
constexpr Name<Phase> kPhases[] = {
    {Phase::kFetching, "FETCHING"},     {Phase::kLoadingBase, "LOADING_BASE"},
    {Phase::kTokenizing, "TOKENIZING"}, {Phase::kTraining, "TRAINING"},
    {Phase::kEvaluating, "EVALUATING"}, {Phase::kCheckpointing, "CHECKPOINTING"},
    {Phase::kUploading, "UPLOADING"},   {Phase::kPausedDisk, "PAUSED_DISK"},
    {Phase::kReleased, "RELEASED"},
};

template <typename E, size_t N>
std::string_view ToName(const Name<E> (&table)[N], E value) {
  for (const auto& row : table) {
    if (row.value == value) return row.name;
  }
  return "UNSPECIFIED";
}

template <typename E, size_t N>
E FromName(const Name<E> (&table)[N], std::string_view name) {
  for (const auto& row : table) {
    if (row.name == name) return row.value;
  }
  return E::kUnspecified;
}

std::string Targets(const spec::TrainSpec& spec) {
  std::string text;
  for (const spec::Module module : spec.target_modules) {
    absl::StrAppend(&text, static_cast<int>(module), ".");
  }
  return text;
}

}  // namespace

std::string_view JobStateName(JobState state) { return ToName(kJobStates, state); }
JobState JobStateFromName(std::string_view name) { return FromName(kJobStates, name); }
std::string_view AttemptStateName(AttemptState state) { return ToName(kAttemptStates, state); }
AttemptState AttemptStateFromName(std::string_view name) { return FromName(kAttemptStates, name); }
std::string_view JobKindName(JobKind kind) { return kind == JobKind::kCheck ? "CHECK" : "TRAIN"; }
std::string_view PhaseName(Phase phase) { return ToName(kPhases, phase); }

int64_t SpeedOf(const spec::DeviceProfile& profile) {
  constexpr int64_t kMost = 1'000'000'000'000;
  constexpr int64_t kMillion = 1'000'000, kStep = 1'189'207, kHalfStep = 1'090'508;  // 2^(1/4), 2^(1/8)
  const int64_t mflops = std::min(profile.linear_mflop_per_s, kMost);
  if (mflops <= 0) return 0;
  int64_t step = 1'000;
  while (step * kHalfStep / kMillion < mflops) step = step * kStep / kMillion;
  return step;
}

std::string ProfileKey(const spec::DeviceProfile& profile) {
  return absl::StrCat(profile.backend, "/", profile.body, "/", profile.build, "/t", profile.threads,
                      "/a", profile.act_bytes, "/f", profile.fixed_bytes, profile.converts_head ? "/h" : "");
}

std::string NumericsClass(const spec::DeviceProfile& profile) {
  return absl::StrCat(profile.backend, "/", profile.body, "/", profile.build);
}

std::string CheckKey(const Dataset& dataset, const Dataset* eval_dataset, const Model& model,
                     const spec::TrainSpec& spec) {
  // Doubles in full precision, so that equal keys mean equal numbers.
  const std::string text = absl::StrFormat(
      "%s|%s|%s|%s|%s|%d|%d|%d|%d|%.17g|%d|%d|%.17g|%d|%u", dataset.sha256,
      eval_dataset ? eval_dataset->sha256 : "", model.tokenizer_digest, spec.format,
      spec.chat_template, spec.train_on_inputs, spec.sequence_len, spec.sample_packing,
      static_cast<int>(spec.excess_length), spec.val_set_size, spec.micro_batch_size,
      spec.gradient_accumulation_steps, spec.num_epochs, spec.max_steps, spec.seed);
  return Sha256Hex(text);
}

std::string PlanKey(const Model& model, const spec::TrainSpec& spec) {
  return absl::StrFormat("%s|%s|r%d|%s|d%.17g|%d|s%d|p%d|m%d|a%d|g%d|%.17g|%d|%d|c%.17g|b%d|n%d|h%d|k%d",
                         model.digest, model.id, spec.lora_r, Targets(spec), spec.lora_dropout,
                         static_cast<int>(spec.quant) * 2 + spec.double_quant, spec.sequence_len,
                         spec.sample_packing, spec.micro_batch_size,
                         spec.gradient_accumulation_steps,
                         (static_cast<int>(spec.recompute) * 16 + static_cast<int>(spec.optimizer)) * 4 +
                             spec.paged_optimizer * 2 + spec.offload_activations,
                         spec.val_set_size, spec.train_on_inputs,
                         static_cast<int>(spec.excess_length), spec.max_grad_norm,
                         static_cast<int>(spec.base_cache) * 3 + static_cast<int>(spec.graphs),
                         spec.data_rows >> 14, spec::HistoryBytes(spec) >> 20, spec.keep_blocks);
}

std::string GroupKey(const Model& model, const spec::TrainSpec& spec) {
  return absl::StrCat(model.digest, "/", static_cast<int>(spec.quant), "/",
                      spec.double_quant ? 1 : 0);
}

std::string HumanBytes(int64_t bytes) { return nibble::HumanBytes(bytes); }

}  // namespace nibble::core

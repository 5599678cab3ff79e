#include "server/core/plan.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace nibble::core {
namespace {

// Plans are some hundred bytes each; beyond this many specs the memory starts anew.
constexpr size_t kMaxRememberedPlans = 10'000;

PlanBytes Summary(const spec::MemoryPlan& plan, const spec::DeviceProfile& profile) {
  PlanBytes bytes;
  bytes.base_bytes = plan.base_bytes;
  bytes.persistent_bytes = plan.persistent_bytes;
  bytes.step_bytes = plan.step_bytes;
  bytes.fixed_bytes = plan.fixed_bytes;
  bytes.host_bytes = plan.host_bytes;
  bytes.lower_bound_bytes = plan.lower_bound_bytes;
  bytes.peak_phase = plan.peak_phase;
  bytes.category_bytes = plan.category_bytes;
  bytes.profile = ProfileKey(profile);
  return bytes;
}

// A spec with one thing changed.
struct Candidate {
  std::string field;
  std::string value;
  std::string description;
  spec::TrainSpec spec;
};

void AddBatches(const spec::TrainSpec& spec, std::vector<Candidate>& out) {
  for (int32_t size = spec.micro_batch_size / 2; size >= 1; size /= 2) {
    Candidate c{"training.micro_batch_size", absl::StrCat(size), "", spec};
    c.spec.micro_batch_size = size;
    // The same number of sequences per optimizer step.
    const int32_t sequences = spec.micro_batch_size * spec.gradient_accumulation_steps;
    c.spec.gradient_accumulation_steps = (sequences + size - 1) / size;
    c.description = absl::StrCat("micro_batch_size ", size, " with gradient_accumulation_steps ",
                                 c.spec.gradient_accumulation_steps, " (the same batch, slower)");
    out.push_back(std::move(c));
  }
}

void AddLengths(const spec::TrainSpec& spec, std::vector<Candidate>& out) {
  for (int32_t length = spec.sequence_len / 2; length >= 128; length /= 2) {
    Candidate c{"data.sequence_len", absl::StrCat(length), "", spec};
    c.spec.sequence_len = length;
    c.description = absl::StrCat("sequence_len ", length, " (longer rows are dropped or cut)");
    out.push_back(std::move(c));
  }
}

void AddRanks(const spec::TrainSpec& spec, std::vector<Candidate>& out) {
  for (int32_t r = spec.lora_r / 2; r >= 4; r /= 2) {
    Candidate c{"lora.r", absl::StrCat(r), absl::StrCat("lora.r ", r, " (a smaller adapter)"),
                spec};
    c.spec.lora_r = r;
    out.push_back(std::move(c));
  }
}

}  // namespace

absl::StatusOr<PlanBytes> Planner::Compile(const Model& model, const spec::TrainSpec& spec,
                                           const spec::DeviceProfile& profile) {
  ASSIGN_OR_RETURN(const spec::MemoryPlan plan, functions_.plan(model.config, spec, profile));
  return Summary(plan, profile);
}

const absl::StatusOr<PlanBytes>& Planner::PlanOf(const Job& job, const Model& model,
                                                 const spec::DeviceProfile& profile) {
  if (plans_.size() > kMaxRememberedPlans) plans_.clear();
  auto& by_profile = plans_[job.plan_key];
  const std::string key = ProfileKey(profile);
  auto it = by_profile.find(key);
  if (it == by_profile.end()) it = by_profile.emplace(key, Compile(model, job.spec, profile)).first;
  return it->second;
}

absl::StatusOr<PlanBytes> Planner::Plan(const Model& model, const spec::TrainSpec& spec,
                                        const spec::DeviceProfile& profile) {
  Job job;
  job.spec = spec;
  job.plan_key = PlanKey(model, spec);
  return PlanOf(job, model, profile);
}

absl::StatusOr<spec::Recompute> Planner::ChooseRecompute(
    const Model& model, const spec::TrainSpec& spec,
    const std::vector<spec::DeviceProfile>& devices) {
  if (spec.recompute != spec::Recompute::kAuto) return spec.recompute;
  // Each answer compiles several plans, and the loop waits for it.
  std::string key = PlanKey(model, spec);
  for (const spec::DeviceProfile& device : devices)
    absl::StrAppend(&key, "|", ProfileKey(device), "/", device.capacity_bytes);
  const auto known = recomputes_.find(key);
  if (known != recomputes_.end()) return known->second;
  ASSIGN_OR_RETURN(const spec::Recompute chosen,
                   functions_.choose_recompute(model.config, spec, devices));
  if (recomputes_.size() > kMaxRememberedPlans) recomputes_.clear();
  recomputes_.emplace(std::move(key), chosen);
  return chosen;
}

std::vector<Suggestion> Planner::Suggest(const Model& model, const spec::TrainSpec& spec,
                                         const spec::DeviceProfile& profile,
                                         int64_t capacity_bytes) {
  std::vector<std::vector<Candidate>> ladders(
      4);  // of each, the smallest change that fits is offered
  AddBatches(spec, ladders[0]);
  if (spec.recompute != spec::Recompute::kFull) {
    Candidate c{"training.recompute", "full", "recompute full (recomputes blocks, slower)", spec};
    c.spec.recompute = spec::Recompute::kFull;
    ladders[1].push_back(std::move(c));
  }
  AddLengths(spec, ladders[2]);
  AddRanks(spec, ladders[3]);
  std::vector<Suggestion> suggestions;
  const absl::StatusOr<PlanBytes> now = Plan(model, spec, profile);
  if (!now.ok() || now->TotalBytes() <= capacity_bytes) return suggestions;
  for (std::vector<Candidate>& ladder : ladders) {
    for (Candidate& c : ladder) {
      const absl::StatusOr<PlanBytes> plan = Plan(model, c.spec, profile);
      if (!plan.ok() || plan->TotalBytes() > capacity_bytes) continue;
      suggestions.push_back({std::move(c.field), std::move(c.value), plan->TotalBytes(),
                             absl::StrCat(c.description, ": ", HumanBytes(plan->TotalBytes())),
                             std::move(c.spec)});
      break;
    }
  }
  if (!suggestions.empty()) return suggestions;
  // No single change is enough: the smallest batch with recomputation, at a shorter length.
  spec::TrainSpec both = spec;
  both.recompute = spec::Recompute::kFull;
  both.gradient_accumulation_steps *= both.micro_batch_size;
  both.micro_batch_size = 1;
  std::vector<Candidate> lengths{{"training.micro_batch_size", "1",
                                  "micro_batch_size 1 with recompute full", both}};
  AddLengths(both, lengths);
  for (Candidate& c : lengths) {
    const absl::StatusOr<PlanBytes> plan = Plan(model, c.spec, profile);
    if (!plan.ok() || plan->TotalBytes() > capacity_bytes) continue;
    if (c.field == "data.sequence_len") {
      c.description = absl::StrCat(
          "micro_batch_size 1, recompute full and sequence_len ", c.value);
    }
    suggestions.push_back({std::move(c.field), std::move(c.value), plan->TotalBytes(),
                           absl::StrCat(c.description, ": ", HumanBytes(plan->TotalBytes())),
                           std::move(c.spec)});
    break;
  }
  return suggestions;
}

}  // namespace nibble::core

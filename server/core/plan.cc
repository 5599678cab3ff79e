#include "server/core/plan.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "server/core/schedule_load.h"

namespace nibble::core {
namespace {

// Plans are some hundred bytes each; beyond this many specs the memory starts anew.
constexpr size_t kMaxRememberedPlans = 10'000;
constexpr size_t kMaxRememberedSuggestions = 1'000;

PlanBytes Summary(const spec::MemoryPlan& plan, const spec::DeviceProfile& profile) {
  PlanBytes bytes;
  bytes.base_bytes = plan.base_bytes;
  bytes.persistent_bytes = plan.persistent_bytes;
  bytes.step_bytes = plan.step_bytes;
  bytes.fixed_bytes = plan.fixed_bytes;
  bytes.host_bytes = plan.host_bytes;
  bytes.pinned_bytes = plan.pinned_bytes;
  bytes.host_apart = plan.device;
  bytes.lower_bound_bytes = plan.lower_bound_bytes;
  bytes.peak_phase = plan.peak_phase;
  bytes.category_bytes = plan.category_bytes;
  bytes.profile = ProfileKey(profile);
  bytes.choices = plan.choices;
  return bytes;
}

// To its five highest bits: by at most a sixteenth.
int64_t RoundedDown(int64_t bytes) {
  int shift = 0;
  while ((bytes >> shift) >= 32) ++shift;
  return bytes >> shift << shift;
}

bool RecomputesLess(const spec::Recomputation& a, const spec::Recomputation& b) {
  return a.policy != b.policy ? a.policy < b.policy : a.keep_blocks > b.keep_blocks;
}

constexpr char kNotPlannedUrl[] = "nibble/not-planned";

}  // namespace

absl::Status NotPlanned() {
  absl::Status status = absl::AbortedError("not planned yet");
  status.SetPayload(kNotPlannedUrl, absl::Cord());
  return status;
}

bool IsNotPlanned(const absl::Status& status) {
  return status.GetPayload(kNotPlannedUrl).has_value();
}

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
  if (it == by_profile.end() && frozen_) {
    static const auto* none = new absl::StatusOr<PlanBytes>(NotPlanned());
    return *none;
  }
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

absl::StatusOr<spec::BaseCache> Planner::ChooseBaseCache(
    const Model& model, const spec::TrainSpec& given,
    const std::vector<spec::DeviceProfile>& devices) {
  if (given.base_cache != spec::BaseCache::kAuto) return given.base_cache;
  if (given.paged_optimizer || given.offload_activations) return spec::BaseCache::kOff;
  spec::TrainSpec without = given, with = given;
  without.base_cache = spec::BaseCache::kOff;
  with.base_cache = spec::BaseCache::kOn;
  bool anywhere = false;
  for (const spec::DeviceProfile& device : devices) {
    if (spec::BaseCacheBytes(model.config, given.quant, device) == 0) continue;
    const absl::StatusOr<PlanBytes> least = Plan(model, without, device);
    if (IsNotPlanned(least.status())) return least.status();
    if (!least.ok() || least->TotalBytes() > device.capacity_bytes) continue;  // never runs there
    ASSIGN_OR_RETURN(const PlanBytes most, Plan(model, with, device));
    if (!spec::LeavesRoom(most.TotalBytes(), device.capacity_bytes)) return spec::BaseCache::kOff;
    anywhere = true;
  }
  return anywhere ? spec::BaseCache::kOn : spec::BaseCache::kOff;
}

absl::StatusOr<spec::Recomputation> Planner::ChooseRecompute(
    const Model& model, const spec::TrainSpec& spec,
    const std::vector<spec::DeviceProfile>& devices) {
  if (spec.recompute != spec::Recompute::kAuto) {
    return spec::Recomputation{spec.recompute, spec.keep_blocks};
  }
  // Each answer compiles several plans, and the loop waits for it.
  std::string key = PlanKey(model, spec);
  for (const spec::DeviceProfile& device : devices)
    absl::StrAppend(&key, "|", ProfileKey(device), "/", device.capacity_bytes, "/",
                    device.pinned_capacity_bytes, "/", device.host_capacity_bytes);
  const auto known = recomputes_.find(key);
  if (known != recomputes_.end()) return known->second;
  if (frozen_) return NotPlanned();
  ASSIGN_OR_RETURN(const spec::Recomputation chosen,
                   functions_.choose_recompute(model.config, spec, devices));
  if (recomputes_.size() > kMaxRememberedPlans) recomputes_.clear();
  recomputes_.emplace(std::move(key), chosen);
  return chosen;
}

PlanBytes Planner::PlanAlone(const Job& job, const Model& model, const spec::DeviceProfile& profile,
                             const PlanBytes& usual) {
  if (!job.recompute_left || job.spec.recompute == spec::Recompute::kNone) return usual;
  const spec::Recomputation now{job.spec.recompute, job.spec.keep_blocks};
  spec::TrainSpec spec = job.spec;
  spec::Recomputation{}.SetIn(spec);
  // Devices that differ by little share the answer, which takes several plans.
  spec::DeviceProfile device = profile;
  for (int64_t* bytes : {&device.capacity_bytes, &device.pinned_capacity_bytes, &device.host_capacity_bytes})
    *bytes = RoundedDown(*bytes);
  const absl::StatusOr<spec::Recomputation> chosen = ChooseRecompute(model, spec, {device});
  if (!chosen.ok() || !RecomputesLess(*chosen, now)) return usual;
  chosen->SetIn(spec);
  const absl::StatusOr<PlanBytes> plan = Plan(model, spec, profile);
  return plan.ok() && Need(*plan).FitsAlone(Capacity(profile)) ? *plan : usual;
}

absl::StatusOr<std::vector<Suggestion>> Planner::Suggestions(const Job& job, const Model& model,
                                                             const spec::DeviceProfile& profile,
                                                             int64_t capacity_bytes) {
  const std::string key =
      absl::StrCat(job.plan_key, "|", ProfileKey(profile), "/", capacity_bytes);
  const auto known = suggestions_.find(key);
  if (known != suggestions_.end()) return known->second;
  if (frozen_) return NotPlanned();
  std::vector<Suggestion> found = Suggest(model, job.spec, profile, capacity_bytes);
  if (suggestions_.size() > kMaxRememberedSuggestions) suggestions_.clear();
  suggestions_[key] = found;
  return found;
}

void Planner::Adopt(const PlannedAhead& ahead) {
  recomputes_.insert(ahead.recomputes.begin(), ahead.recomputes.end());
  for (const auto& [key, plans] : ahead.plans) plans_[key].insert(plans.begin(), plans.end());
  suggestions_.insert(ahead.suggestions.begin(), ahead.suggestions.end());
}

// What Decide would ask for, in the same order; where it goes wrong, Decide finds out again.
PlannedAhead PlanAhead(const SpecFunctions& functions, const Model& model,
                       const spec::TrainSpec& given, int64_t data_rows,
                       const std::vector<spec::DeviceProfile>& devices) {
  Planner planner(functions);
  PlannedAhead ahead;
  Job job;
  auto spec = planner.Resolve(given, model.config);
  if (!spec.ok()) return ahead;
  job.spec = *std::move(spec);
  job.spec.data_rows = data_rows;
  job.recompute_left = job.spec.recompute == spec::Recompute::kAuto;
  const auto recompute = planner.ChooseRecompute(model, job.spec, devices);
  if (!recompute.ok()) return ahead;
  recompute->SetIn(job.spec);
  const auto base_cache = planner.ChooseBaseCache(model, job.spec, devices);
  if (!base_cache.ok()) return ahead;
  job.spec.base_cache = *base_cache;
  job.plan_key = PlanKey(model, job.spec);
  int64_t least_bytes = std::numeric_limits<int64_t>::max();  // missing
  for (const spec::DeviceProfile& device : devices) {
    const auto& plan = planner.PlanOf(job, model, device);
    if (!plan.ok()) continue;
    least_bytes = std::min(least_bytes, plan->TotalBytes() - device.capacity_bytes);
    (void)planner.PlanAlone(job, model, device, *plan);
  }
  ahead.plans = planner.plans_;  // without those of the search below
  for (const spec::DeviceProfile& device : devices) {
    const auto& plan = planner.PlanOf(job, model, device);
    if (!plan.ok() || least_bytes <= 0 ||
        plan->TotalBytes() - device.capacity_bytes != least_bytes)
      continue;
    (void)planner.Suggestions(job, model, device, device.capacity_bytes);
  }
  ahead.recomputes = std::move(planner.recomputes_);
  ahead.suggestions = std::move(planner.suggestions_);
  return ahead;
}

}  // namespace nibble::core

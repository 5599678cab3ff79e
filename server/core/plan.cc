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
  bytes.pinned_bytes = plan.pinned_bytes;
  bytes.host_apart = plan.device;
  bytes.lower_bound_bytes = plan.lower_bound_bytes;
  bytes.peak_phase = plan.peak_phase;
  bytes.category_bytes = plan.category_bytes;
  bytes.profile = ProfileKey(profile);
  return bytes;
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
    ASSIGN_OR_RETURN(const PlanBytes least, Plan(model, without, device));
    if (least.TotalBytes() > device.capacity_bytes) continue;  // never runs there
    ASSIGN_OR_RETURN(const PlanBytes most, Plan(model, with, device));
    if (!spec::LeavesRoom(most.TotalBytes(), device.capacity_bytes)) return spec::BaseCache::kOff;
    anywhere = true;
  }
  return anywhere ? spec::BaseCache::kOn : spec::BaseCache::kOff;
}

absl::StatusOr<spec::Recompute> Planner::ChooseRecompute(
    const Model& model, const spec::TrainSpec& spec,
    const std::vector<spec::DeviceProfile>& devices) {
  if (spec.recompute != spec::Recompute::kAuto) return spec.recompute;
  // Each answer compiles several plans, and the loop waits for it.
  std::string key = PlanKey(model, spec);
  for (const spec::DeviceProfile& device : devices)
    absl::StrAppend(&key, "|", ProfileKey(device), "/", device.capacity_bytes, "/",
                    device.pinned_capacity_bytes, "/", device.host_capacity_bytes);
  const auto known = recomputes_.find(key);
  if (known != recomputes_.end()) return known->second;
  ASSIGN_OR_RETURN(const spec::Recompute chosen,
                   functions_.choose_recompute(model.config, spec, devices));
  if (recomputes_.size() > kMaxRememberedPlans) recomputes_.clear();
  recomputes_.emplace(std::move(key), chosen);
  return chosen;
}

}  // namespace nibble::core

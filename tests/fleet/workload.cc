#include "tests/fleet/workload.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>

#include "base/status.h"

namespace nibble::fleet {
namespace {

// What a process on an accelerator takes besides the plan's regions: context and libraries.
constexpr int64_t kFixedBytes = 590'000'000;

double Normal(Random& rng) {
  const double radius = std::sqrt(-2 * std::log(1 - rng.Unit()));
  return radius * std::cos(2 * std::numbers::pi * rng.Unit());
}

double DrawMinutes(const std::vector<DurationLaw>& laws, Random& rng) {
  double u = rng.Unit();
  const DurationLaw* law = &laws.back();
  for (const DurationLaw& l : laws) {
    if (u < l.share) {
      law = &l;
      break;
    }
    u -= l.share;
  }
  return std::pow(10.0, law->log10_low + (law->log10_high - law->log10_low) * rng.Unit());
}

FleetJob DrawJob(const Scenario& s, const std::vector<double>& weights, double duration_s,
                 double busy_share, Random& rng) {
  FleetJob job;
  job.recipe = DrawWeighted(weights, rng);
  const Recipe& recipe = s.recipes[static_cast<size_t>(job.recipe)];
  job.steps = std::max<int64_t>(1, std::llround(duration_s / recipe.step_s));
  job.run_steps = job.steps;
  if (rng.Chance(s.early_end_share)) job.run_steps = rng.Between(1, job.steps);
  // The shortest jobs are shorter than a nominal step: one step that takes as long.
  const double nominal_us = std::min(recipe.step_s, duration_s) * 1e6;
  job.step_us = nominal_us * std::exp(s.step_time_noise * Normal(rng));
  job.nominal_us = static_cast<int64_t>(static_cast<double>(job.steps) * nominal_us);
  const double share = busy_share > 0 ? busy_share : recipe.busy_share;
  job.busy_share = std::clamp(share * s.busy_share_scale, 0.01, 1.0);
  job.tenant = static_cast<int32_t>(rng.Below(s.tenants.size()));
  return job;
}

void FillFleet(const Scenario& s, Workload& w) {
  for (const DeviceKind& kind : s.fleet) {
    for (int64_t i = 0; i < kind.count; ++i) {
      w.capacity_bytes.push_back(kind.capacity_bytes);
      w.speed.push_back(kind.speed);
    }
  }
}

// None where all are alike: then nobody says how fast a device is.
void DropEqualSpeeds(Workload& w) {
  const auto alike = [&](double speed) { return speed == w.speed.front(); };
  if (std::all_of(w.speed.begin(), w.speed.end(), alike)) w.speed.clear();
}

void FillRandom(const Scenario& s, Workload& w, Random& rng) {
  const RandomFleet& r = s.random_fleet;
  constexpr int64_t kSizes[] = {24'000'000'000, 48'000'000'000, 80'000'000'000};
  const int64_t devices = rng.Between(r.devices_low, r.devices_high);
  for (int64_t i = 0; i < devices; ++i) w.capacity_bytes.push_back(kSizes[rng.Below(3)]);
  const int64_t largest = *std::max_element(w.capacity_bytes.begin(), w.capacity_bytes.end());
  const std::vector<double> weights = RecipeWeights(s, w.plans, largest);
  const int64_t jobs = rng.Between(r.jobs_low, r.jobs_high);
  const double load = r.load_low + (r.load_high - r.load_low) * rng.Unit();
  double work_s = 0;
  for (int64_t i = 0; i < jobs; ++i) {
    w.jobs.push_back(DrawJob(s, weights, DrawMinutes(s.durations, rng) * 60, 0, rng));
    work_s += w.jobs.back().OwnUs() * 1e-6;
  }
  // All work, offered at `load` times what whole devices do.
  const double span_s = work_s / (load * static_cast<double>(devices));
  for (FleetJob& job : w.jobs) job.arrive_us = static_cast<int64_t>(rng.Unit() * span_s * 1e6);
}

void FillTrace(const Scenario& s, const std::vector<TraceJob>& trace,
               const std::vector<double>& weights, Workload& w, Random& rng) {
  const size_t first = std::min(trace.size(), static_cast<size_t>(s.trace.skip));
  const size_t last = std::min(trace.size(), first + static_cast<size_t>(s.jobs));
  double work_s = 0;
  for (size_t i = first; i < last; ++i) work_s += trace[i].duration_s;
  if (first == last) return;
  const double begin_s = trace[first].arrive_s;
  const double span_s = std::max(1.0, trace[last - 1].arrive_s - begin_s);
  const double wanted_s = work_s / (s.trace.load * static_cast<double>(w.capacity_bytes.size()));
  std::map<std::string, int32_t> tenants;
  for (size_t i = first; i < last; ++i) {
    FleetJob job = DrawJob(s, weights, trace[i].duration_s, trace[i].busy_share, rng);
    job.arrive_us = static_cast<int64_t>((trace[i].arrive_s - begin_s) * wanted_s / span_s * 1e6);
    if (!trace[i].tenant.empty()) {
      const auto known = tenants.emplace(trace[i].tenant, static_cast<int32_t>(tenants.size()));
      job.tenant = known.first->second % static_cast<int32_t>(s.tenants.size());
    }
    w.jobs.push_back(job);
  }
}

}  // namespace

Random RandomOf(uint64_t seed) { return Random(Random(seed).Next()); }

int32_t DrawWeighted(const std::vector<double>& weights, Random& rng) {
  double total = 0;
  for (const double w : weights) total += w;
  double u = rng.Unit() * total;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (u < weights[i]) return static_cast<int32_t>(i);
    u -= weights[i];
  }
  return static_cast<int32_t>(weights.size()) - 1;
}

std::vector<double> RecipeWeights(const Scenario& s, const std::vector<core::PlanBytes>& plans,
                                  int64_t largest_bytes) {
  std::vector<double> weights;
  for (size_t i = 0; i < plans.size(); ++i) {
    weights.push_back(plans[i].TotalBytes() <= largest_bytes ? s.recipes[i].weight : 0);
  }
  return weights;
}

spec::DeviceProfile SimProfile(int64_t capacity_bytes) {
  spec::DeviceProfile profile;
  profile.backend = "cuda";
  profile.body = "simulated";
  profile.build = "simulated";
  profile.fixed_bytes = kFixedBytes;
  profile.capacity_bytes = capacity_bytes;
  return profile;
}

absl::StatusOr<std::vector<core::PlanBytes>> PlanRecipes(const Scenario& scenario) {
  core::Planner planner(core::RealSpecFunctions());
  std::vector<core::PlanBytes> plans;
  for (const Recipe& recipe : scenario.recipes) {
    if (recipe.stated_bytes > 0) {
      core::PlanBytes plan;
      plan.persistent_bytes = plan.lower_bound_bytes = recipe.stated_bytes;
      plans.push_back(plan);
      continue;
    }
    core::Model model;
    model.id = recipe.name;
    model.digest = recipe.name;
    model.config = recipe.model;
    ASSIGN_OR_RETURN(const core::PlanBytes plan, planner.Plan(model, recipe.train, SimProfile(0)));
    plans.push_back(plan);
  }
  return plans;
}

Workload MakeWorkload(const Scenario& s, const std::vector<core::PlanBytes>& plans,
                      const std::vector<TraceJob>& trace, uint64_t seed) {
  Random rng = RandomOf(seed);
  Workload w;
  w.plans = plans;
  if (s.random_fleet.devices_high > 0) {
    FillRandom(s, w, rng);
  } else {
    FillFleet(s, w);
    DropEqualSpeeds(w);
    const int64_t largest = *std::max_element(w.capacity_bytes.begin(), w.capacity_bytes.end());
    const std::vector<double> weights = RecipeWeights(s, plans, largest);
    if (!s.trace.kind.empty()) {
      FillTrace(s, trace, weights, w, rng);
    } else {
      double at_us = 0;
      for (int64_t i = 0; i < s.jobs; ++i) {
        FleetJob job = DrawJob(s, weights, DrawMinutes(s.durations, rng) * 60, 0, rng);
        if (s.arrivals_per_minute > 0)
          at_us -= std::log(1 - rng.Unit()) / s.arrivals_per_minute * 60e6;
        job.arrive_us = static_cast<int64_t>(at_us);
        w.jobs.push_back(job);
      }
    }
  }
  std::stable_sort(w.jobs.begin(), w.jobs.end(),
                   [](const FleetJob& a, const FleetJob& b) { return a.arrive_us < b.arrive_us; });
  return w;
}

}  // namespace nibble::fleet

#include "tests/fleet/fill.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/random.h"
#include "base/status.h"
#include "tests/fleet/report.h"

namespace nibble::fleet {
namespace {

constexpr int64_t kGapUs = kSecondUs;          // between two arrivals
constexpr int64_t kForeverSteps = 10'000'000;  // of 10 s: three years

FillLevel LevelOf(const Floor& floor, int64_t arrived, double placed_bytes, int64_t placed) {
  double capacity = 0, reserved = 0;
  for (int32_t d = 0; d < floor.devices(); ++d) {
    const Floor::Device& device = floor.device(d);
    capacity += static_cast<double>(device.capacity_bytes);
    reserved += static_cast<double>(std::min(device.capacity_bytes, device.reserved_bytes));
  }
  return {1 - reserved / capacity, placed_bytes / capacity,
          static_cast<double>(placed) / static_cast<double>(arrived)};
}

}  // namespace

const std::vector<std::string>& FillPolicyNames() {
  static const auto* names = new std::vector<std::string>{
      "nibble", "nibble-apart", "fragmentation", "tightest", "reserve-20", "fifo-backfill"};
  return *names;
}

Scenario WithStatedRequests(const Scenario& scenario, const std::vector<TraceJob>& trace) {
  std::map<int64_t, int64_t> counts;  // by thousandths of a device
  for (const TraceJob& job : trace) ++counts[std::llround(1000 * job.busy_share)];
  int64_t largest_bytes = 0;
  for (const DeviceKind& kind : scenario.fleet)
    largest_bytes = std::max(largest_bytes, kind.capacity_bytes);
  Scenario stated = scenario;
  stated.recipes.clear();
  for (const auto& [milli, count] : counts) {
    Recipe recipe = scenario.recipes.front();
    recipe.name = absl::StrCat("m", milli);
    recipe.weight = static_cast<double>(count);
    recipe.stated_bytes = largest_bytes / 1000 * milli;
    recipe.model.vocab_size = 1000 + milli;  // so that no two are one to the planner
    stated.recipes.push_back(std::move(recipe));
  }
  return stated;
}

Workload MakeFillWorkload(const Scenario& scenario, const std::vector<core::PlanBytes>& plans,
                          uint64_t seed) {
  Random rng = RandomOf(seed);
  Workload w;
  w.plans = plans;
  int64_t capacity = 0;
  for (const DeviceKind& kind : scenario.fleet) {
    for (int64_t i = 0; i < kind.count; ++i) w.capacity_bytes.push_back(kind.capacity_bytes);
    capacity += kind.count * kind.capacity_bytes;
  }
  const int64_t largest = *std::max_element(w.capacity_bytes.begin(), w.capacity_bytes.end());
  const std::vector<double> weights = RecipeWeights(scenario, plans, largest);
  int64_t asked = 0;
  const auto wanted = static_cast<int64_t>(*std::rbegin(kFillLevels) * static_cast<double>(capacity));
  for (int64_t i = 0; asked < wanted; ++i) {
    FleetJob job;
    job.arrive_us = i * kGapUs;
    job.recipe = DrawWeighted(weights, rng);
    job.tenant = static_cast<int32_t>(rng.Below(scenario.tenants.size()));
    job.steps = job.run_steps = kForeverSteps;
    job.step_us = 10e6;
    job.nominal_us = kForeverSteps * 10 * kSecondUs;
    job.busy_share = 0.001;  // memory is what runs out
    asked += plans[static_cast<size_t>(job.recipe)].TotalBytes();
    w.jobs.push_back(job);
  }
  return w;
}

FillResult RunFill(const Scenario& scenario, const Workload& workload, std::string_view name) {
  Floor floor(&scenario, &workload, ReservingOf(name));
  const std::unique_ptr<Policy> policy = MakePolicy(name, &floor);
  double capacity = 0;
  for (const int64_t bytes : workload.capacity_bytes) capacity += static_cast<double>(bytes);
  const auto bytes_of = [&](int32_t id) {
    return static_cast<double>(workload.plans[static_cast<size_t>(floor.job(id).recipe)].TotalBytes());
  };
  FillResult result;
  double asked = 0;
  for (int32_t id = 0; id < static_cast<int32_t>(workload.jobs.size()); ++id) {
    const int64_t arrive_us = floor.job(id).arrive_us;
    for (; policy->NextUs() < arrive_us; policy->Act())
      floor.AdvanceTo(std::max(floor.now_us(), policy->NextUs()));
    floor.AdvanceTo(arrive_us);
    floor.Arrive(id);
    policy->Arrived(id);
    do {
      policy->Act();
    } while (policy->NextUs() <= arrive_us);
    asked += bytes_of(id);
    while (result.levels.size() < std::size(kFillLevels) &&
           asked >= kFillLevels[result.levels.size()] * capacity) {
      double placed_bytes = 0;
      for (int32_t i = 0; i <= id; ++i) placed_bytes += floor.run(i).Runs() ? bytes_of(i) : 0;
      const auto waiting = static_cast<int64_t>(floor.waiting().size());
      result.levels.push_back(LevelOf(floor, id + 1, placed_bytes, id + 1 - waiting));
    }
  }
  CHECK(floor.totals().preemptions == 0);
  result.over_capacity = floor.totals().over_capacity;
  return result;
}

FillSummary SummarizeFill(std::string_view policy, const std::vector<FillResult>& runs) {
  FillSummary s{std::string(policy), std::vector<FillLevel>(std::size(kFillLevels))};
  const double n = static_cast<double>(runs.size());
  for (const FillResult& run : runs) {
    for (size_t i = 0; i < s.levels.size(); ++i) {
      s.levels[i].unallocated += run.levels[i].unallocated / n;
      s.levels[i].placed += run.levels[i].placed / n;
      s.levels[i].placed_jobs += run.levels[i].placed_jobs / n;
    }
  }
  return s;
}

std::string FillText(const Scenario& scenario, int64_t runs, const std::vector<FillSummary>& summaries,
                     bool markdown) {
  std::vector<Cells> rows{{"policy"}};
  for (const double level : kFillLevels)
    rows[0].push_back(absl::StrFormat("unallocated at %.0f %%", 100 * level));
  rows[0].push_back("placed");
  rows[0].push_back("jobs placed");
  for (const FillSummary& s : summaries) {
    Cells row{s.policy};
    for (const FillLevel& level : s.levels)
      row.push_back(absl::StrFormat("%.2f %%", 100 * level.unallocated));
    row.push_back(absl::StrFormat("%.1f %%", 100 * s.levels.back().placed));
    row.push_back(absl::StrFormat("%.1f %%", 100 * s.levels.back().placed_jobs));
    rows.push_back(row);
  }
  if (!markdown) return absl::StrCat(scenario.name, ", ", runs, " runs\n", RowsText(rows));
  return absl::StrCat("### ", scenario.name, "\n\n", scenario.about, "\n\n", RowsMarkdown(rows));
}

std::string FillSvg(const Scenario& scenario, int64_t runs, const std::vector<FillSummary>& summaries) {
  constexpr double kLeft = 60, kTop = 60, kW = 560, kH = 260;
  double most = 0.01;
  for (const FillSummary& s : summaries) {
    for (const FillLevel& level : s.levels) most = std::max(most, level.unallocated);
  }
  most = std::ceil(most * 10) / 10;
  const double first = kFillLevels[0], last = *std::rbegin(kFillLevels);
  const auto x_of = [&](double level) { return kLeft + kW * (level - first) / (last - first); };
  const auto y_of = [&](double share) { return kTop + kH * (1 - share / most); };
  std::string svg = SvgHead(800, 380, absl::StrFormat("%s (%d runs): bytes not given out, %% of the fleet",
                                                      scenario.name, runs));
  for (const double level : kFillLevels) {
    absl::StrAppend(&svg, SvgLine(x_of(level), kTop, x_of(level), kTop + kH),
                    SvgLabel(x_of(level), kTop + kH + 18, absl::StrFormat("%.0f", 100 * level), "middle"));
  }
  absl::StrAppend(&svg, SvgLabel(kLeft + kW / 2, kTop + kH + 40, "requests so far, % of the fleet's bytes",
                                 "middle"));
  for (int i = 0; i <= 4; ++i) {
    const double share = most * i / 4;
    absl::StrAppend(&svg, SvgLine(kLeft, y_of(share), kLeft + kW, y_of(share)),
                    SvgLabel(kLeft - 6, y_of(share) + 4, absl::StrFormat("%.1f", 100 * share), "end"));
  }
  for (size_t i = 0; i < summaries.size(); ++i) {
    std::vector<std::pair<double, double>> points;
    for (size_t k = 0; k < summaries[i].levels.size(); ++k)
      points.emplace_back(x_of(kFillLevels[k]), y_of(summaries[i].levels[k].unallocated));
    const double y = kTop + 20 + 22 * static_cast<double>(i);
    absl::StrAppend(&svg, SvgCurve(points, i, i == 0 ? 3 : 2),
                    SvgCurve({{640, y - 4}, {664, y - 4}}, i, 3),
                    SvgLabel(670, y, summaries[i].policy, "start"));
  }
  return svg + "</svg>\n";
}

}  // namespace nibble::fleet

// nibble-sim fleet --scenario=FILE [--policy=NAME|all] [--seeds=A-B] [--markdown=FILE] [--svg=FILE]
//                  [--set=OPTION=N] [--per-seed] [--bound] [--rho]
//
// Exit codes: 0 fine, 1 usage or input, 2 a device held more than it has, 3 with --bound: a job
// started later than its bound.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string_view>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/status.h"
#include "tests/fleet/fill.h"
#include "tests/fleet/run.h"

namespace nibble::fleet {
namespace {

struct Flags {
  std::string scenario;
  std::string policy = "all";
  int64_t first_seed = 0;  // 0 = the scenario's
  int64_t last_seed = 0;
  std::string markdown;
  std::string svg;
  std::map<std::string, int64_t> set;
  bool per_seed = false;
  bool bound = false;
  bool rho = false;  // also each project alone on its share
};

constexpr const char* kUsage =
    "usage: nibble-sim fleet --scenario=FILE [--policy=NAME|all] [--seeds=A-B] [--markdown=FILE]\n"
    "                        [--svg=FILE] [--set=OPTION=N] [--per-seed] [--bound] [--rho]\n"
    "policies: nibble, clairvoyant, clairvoyant-fair, fragmentation, reserve-20, fifo-backfill, fifo;\n"
    "          where a fleet is filled also nibble-apart and tightest\n";

bool Parse(int argc, char** argv, Flags& flags) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    const size_t equals = argument.find('=');
    const std::string_view name = argument.substr(0, equals);
    std::string value;
    if (equals != std::string_view::npos) {
      value = std::string(argument.substr(equals + 1));
    } else if (name == "--scenario" || name == "--policy" || name == "--seeds" || name == "--set" ||
               name == "--markdown" || name == "--svg") {
      if (++i >= argc) return false;
      value = argv[i];
    }
    if (name == "--scenario") {
      flags.scenario = value;
    } else if (name == "--policy") {
      flags.policy = value;
    } else if (name == "--markdown") {
      flags.markdown = value;
    } else if (name == "--svg") {
      flags.svg = value;
    } else if (name == "--per-seed") {
      flags.per_seed = true;
    } else if (name == "--bound") {
      flags.bound = true;
    } else if (name == "--rho") {
      flags.rho = true;
    } else if (name == "--set") {
      const std::vector<std::string> pair = absl::StrSplit(value, absl::MaxSplits('=', 1));
      if (pair.size() != 2 || !IsCoreOption(pair[0]) ||
          !absl::SimpleAtoi(pair[1], &flags.set[pair[0]])) {
        return false;
      }
    } else if (name == "--seeds") {
      const std::vector<std::string> ends = absl::StrSplit(value, '-');
      if (!absl::SimpleAtoi(ends.front(), &flags.first_seed) ||
          !absl::SimpleAtoi(ends.back(), &flags.last_seed) || flags.first_seed < 1 ||
          flags.last_seed < flags.first_seed) {
        return false;
      }
    } else {
      return false;
    }
  }
  const std::vector<std::string>& fill = FillPolicyNames();
  return !flags.scenario.empty() && (flags.policy == "all" || IsPolicy(flags.policy) ||
                                     std::find(fill.begin(), fill.end(), flags.policy) != fill.end());
}

int Refuse(const absl::Status& status) {
  std::fprintf(stderr, "nibble-sim fleet: %s\n", std::string(status.message()).c_str());
  return 1;
}

absl::StatusOr<std::vector<TraceJob>> ReadTrace(const TraceSource& source) {
  if (source.kind.empty()) return std::vector<TraceJob>{};
  const char* root = std::getenv("NIBBLE_TEST_DATA");
  if (root == nullptr) {
    return absl::NotFoundError(absl::StrCat(
        "the trace ", source.file, " is looked for under NIBBLE_TEST_DATA, which is not set"));
  }
  ASSIGN_OR_RETURN(const std::string csv, ReadFile(absl::StrCat(root, "/", source.file)));
  if (source.kind == "philly") return ParsePhilly(csv);
  if (source.kind == "alibaba-2023") return ParseAlibaba2023(csv);
  return absl::InvalidArgumentError(
      absl::StrCat("trace kind '", source.kind, "' is neither philly nor alibaba-2023"));
}

absl::Status Write(const std::string& path, const std::string& text) {
  return path.empty() ? absl::OkStatus() : WriteFileAtomic(path, text);
}

void PrintRun(const RunResult& r) {
  double mean_h = 0;
  for (const double h : r.completion_h) mean_h += h / static_cast<double>(r.completion_h.size());
  std::printf(
      "%-14s seed %llu: mean %.2f h, p99 slowdown %.2f, worst wait %.2f of its bound, %.1f s\n",
      r.policy.c_str(), static_cast<unsigned long long>(r.seed), mean_h, Quantile(r.slowdown, 0.99),
      r.worst_wait, r.wall_s);
  std::fflush(stdout);
}

int FillMain(const Scenario& scenario, const std::vector<TraceJob>& trace, const Flags& flags) {
  const Scenario asked = scenario.fill.thousandths ? WithStatedRequests(scenario, trace) : scenario;
  const absl::StatusOr<std::vector<core::PlanBytes>> plans = PlanRecipes(asked);
  if (!plans.ok()) return Refuse(plans.status());
  const int64_t first = flags.first_seed > 0 ? flags.first_seed : scenario.first_seed;
  const int64_t last = flags.first_seed > 0 ? flags.last_seed : scenario.last_seed;
  std::vector<FillSummary> summaries;
  int code = 0;
  for (const std::string& policy : FillPolicyNames()) {
    if (flags.policy != "all" && flags.policy != policy) continue;
    std::vector<FillResult> runs;
    for (int64_t seed = first; seed <= last; ++seed) {
      runs.push_back(RunFill(asked, MakeFillWorkload(asked, *plans, static_cast<uint64_t>(seed)), policy));
      if (runs.back().over_capacity > 0) code = 2;
    }
    summaries.push_back(SummarizeFill(policy, runs));
  }
  const int64_t runs = last - first + 1;
  std::fputs(FillText(asked, runs, summaries, /*markdown=*/false).c_str(), stdout);
  absl::Status s = Write(flags.markdown, FillText(asked, runs, summaries, /*markdown=*/true));
  if (s.ok()) s = Write(flags.svg, FillSvg(asked, runs, summaries));
  return s.ok() ? code : Refuse(s);
}

}  // namespace

int FleetMain(int argc, char** argv) {
  Flags flags;
  if (!Parse(argc, argv, flags)) {
    std::fputs(kUsage, stderr);
    return 1;
  }
  absl::StatusOr<Scenario> scenario = LoadScenario(flags.scenario);
  if (!scenario.ok()) return Refuse(scenario.status());
  for (const auto& [name, value] : flags.set) scenario->core[name] = value;
  const absl::StatusOr<std::vector<TraceJob>> trace = ReadTrace(scenario->trace);
  if (!trace.ok()) return Refuse(trace.status());
  if (scenario->fill.wanted) return FillMain(*scenario, *trace, flags);
  const absl::StatusOr<std::vector<core::PlanBytes>> plans = PlanRecipes(*scenario);
  if (!plans.ok()) return Refuse(plans.status());
  const int64_t first = flags.first_seed > 0 ? flags.first_seed : scenario->first_seed;
  const int64_t last = flags.first_seed > 0 ? flags.last_seed : scenario->last_seed;
  std::vector<Summary> summaries;
  int code = 0;
  for (const std::string& policy : PolicyNames()) {
    if (flags.policy != "all" && flags.policy != policy) continue;
    std::vector<RunResult> runs;
    for (int64_t seed = first; seed <= last; ++seed) {
      const Workload workload =
          MakeWorkload(*scenario, *plans, *trace, static_cast<uint64_t>(seed));
      runs.push_back(RunPolicy(*scenario, workload, policy, static_cast<uint64_t>(seed)));
      if (flags.rho) {
        const absl::Status status = AddFairness(*scenario, workload, runs.back());
        if (!status.ok()) return Refuse(status);
      }
      if (flags.per_seed) PrintRun(runs.back());
      if (flags.bound && runs.back().bound_broken > 0) {
        std::printf(
            "seed %lld: %lld jobs of %s started after their bound; repeat with --seeds=%lld-%lld\n",
            static_cast<long long>(seed), static_cast<long long>(runs.back().bound_broken),
            policy.c_str(), static_cast<long long>(seed), static_cast<long long>(seed));
        code = 3;
      }
    }
    summaries.push_back(Summarize(runs));
    if (summaries.back().over_capacity > 0) code = 2;
  }
  std::fputs(TableText(*scenario, summaries).c_str(), stdout);
  if (const absl::Status s = Write(flags.markdown, TableMarkdown(*scenario, summaries)); !s.ok())
    return Refuse(s);
  if (const absl::Status s =
          Write(flags.svg, flags.svg.empty() ? "" : PlotSvg(*scenario, summaries));
      !s.ok())
    return Refuse(s);
  return code;
}

}  // namespace nibble::fleet

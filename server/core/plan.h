// Plans: compiled once per (model, spec, device profile) and remembered; and what would make a job
// fit.
//
// Used from one thread at a time (the loop's, or one that has its own Planner).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/statusor.h"
#include "server/core/types.h"

namespace nibble::core {

using PlanFn = std::function<absl::StatusOr<spec::MemoryPlan>(
    const spec::ModelConfig&, const spec::TrainSpec&, const spec::DeviceProfile&)>;
using ResolveFn =
    std::function<absl::StatusOr<spec::TrainSpec>(spec::TrainSpec, const spec::ModelConfig&)>;

// The pure functions of engine/spec the core calls; the simulator gives cheap ones.
struct SpecFunctions {
  PlanFn plan;
  ResolveFn resolve;
  std::function<absl::StatusOr<spec::Recomputation>(const spec::ModelConfig&, const spec::TrainSpec&,
                                                const std::vector<spec::DeviceProfile>&)>
      choose_recompute = [](const spec::ModelConfig&, const spec::TrainSpec& spec,
                            const std::vector<spec::DeviceProfile>&) {
        return spec::Recomputation{spec.recompute, spec.keep_blocks};
      };
};
// spec::PlanTotals, ResolveTrainSpec and ChooseRecompute.
SpecFunctions RealSpecFunctions();

struct SpecChange {
  std::string field;  // path in JobSpec, e.g. "training.micro_batch_size"
  std::string value;  // list items parted by commas
};
// Changes to the spec, made together, and what the job would need then.
struct Suggestion {
  std::vector<SpecChange> changes;  // never empty
  int64_t total_bytes = 0;
  int64_t saved_bytes = 0;  // of the total
  std::string description;
  std::string cost;
  spec::TrainSpec spec;  // with the changes made
};

// What CreateJob needs to know of one spec, compiled on another thread than the core's.
struct PlannedAhead {
  std::map<std::string, spec::Recomputation> recomputes;
  std::map<std::string, std::map<std::string, absl::StatusOr<PlanBytes>>> plans;  // by plan, profile
  std::map<std::string, std::vector<Suggestion>> suggestions;
};
// `data_rows`: of the job's data, on which the host's part of a plan depends.
PlannedAhead PlanAhead(const SpecFunctions& functions, const Model& model,
                       const spec::TrainSpec& given, int64_t data_rows,
                       const std::vector<spec::DeviceProfile>& devices);
// The answer to a command that may not plan and would have to.
absl::Status NotPlanned();
bool IsNotPlanned(const absl::Status& status);

class Planner {
 public:
  explicit Planner(SpecFunctions functions) : functions_(std::move(functions)) {}

  absl::StatusOr<PlanBytes> Plan(const Model& model, const spec::TrainSpec& spec,
                                 const spec::DeviceProfile& profile);
  // The same for a job whose plan_key is known; the usual case, and cheap.
  const absl::StatusOr<PlanBytes>& PlanOf(const Job& job, const Model& model,
                                          const spec::DeviceProfile& profile);
  absl::StatusOr<spec::TrainSpec> Resolve(spec::TrainSpec spec,
                                          const spec::ModelConfig& model) const {
    return functions_.resolve(std::move(spec), model);
  }
  // Whether GPUs keep the decoded base: where every known one that can run the job has room for it (see
  // spec::LeavesRoom). spec.recompute is resolved.
  absl::StatusOr<spec::BaseCache> ChooseBaseCache(const Model& model, const spec::TrainSpec& spec,
                                                  const std::vector<spec::DeviceProfile>& devices);
  // The fastest recompute policy that costs the job no place; see spec::ChooseRecompute.
  absl::StatusOr<spec::Recomputation> ChooseRecompute(const Model& model, const spec::TrainSpec& spec,
                                                  const std::vector<spec::DeviceProfile>& devices);
  // The plan of a job that will have the device to itself. `usual` is what it needs wherever it fits; where
  // recomputation was left to the server and this device has room, one that recomputes less.
  PlanBytes PlanAlone(const Job& job, const Model& model, const spec::DeviceProfile& profile,
                      const PlanBytes& usual);
  // Changes that bring the job's total on `profile` to capacity_bytes or below, and what the host gives
  // beside it within the profile's bounds; cheapest for the
  // user first (plan_suggest.cc has the order); of each kind the mildest that is enough, or, when no
  // single kind is, one suggestion that joins several. Each candidate is planned again. Empty when
  // the job fits already or nothing helps.
  std::vector<Suggestion> Suggest(const Model& model, const spec::TrainSpec& spec,
                                  const spec::DeviceProfile& profile, int64_t capacity_bytes);
  // The same, remembered; fails with NotPlanned while nothing may be compiled.
  absl::StatusOr<std::vector<Suggestion>> Suggestions(const Job& job, const Model& model,
                                                      const spec::DeviceProfile& profile,
                                                      int64_t capacity_bytes);
  void Adopt(const PlannedAhead& ahead);

  // While one lives, what is not remembered fails with NotPlanned instead of being compiled.
  class RememberedOnly {
   public:
    RememberedOnly(Planner& planner, bool only) : planner_(planner) { planner_.frozen_ = only; }
    ~RememberedOnly() { planner_.frozen_ = false; }
    RememberedOnly(const RememberedOnly&) = delete;
    RememberedOnly& operator=(const RememberedOnly&) = delete;

   private:
    Planner& planner_;
  };

 private:
  friend PlannedAhead PlanAhead(const SpecFunctions&, const Model&, const spec::TrainSpec&, int64_t,
                                const std::vector<spec::DeviceProfile>&);
  absl::StatusOr<PlanBytes> Compile(const Model& model, const spec::TrainSpec& spec,
                                    const spec::DeviceProfile& profile);

  SpecFunctions functions_;
  std::map<std::string, spec::Recomputation> recomputes_;  // by plan and devices
  std::map<std::string, std::map<std::string, absl::StatusOr<PlanBytes>>>
      plans_;  // by plan, profile
  std::map<std::string, std::vector<Suggestion>> suggestions_;  // by plan, profile, capacity
  bool frozen_ = false;
};

}  // namespace nibble::core

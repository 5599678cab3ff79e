// Answers "where would this job fit" away from the control loop.
//
// The loop's planner belongs to the loop; searching for the largest batch and sequence compiles dozens of
// plans, so it happens here, over an excerpt of the state, with a planner of its own. Thread-safe; may
// take a while: call it on the I/O pool.
#pragma once

#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/core/job_explanation.h"
#include "server/core/known_cards.h"
#include "server/core/plan_fit.h"
#include "server/core/plan_methods.h"

namespace nibble::server {

class PlanDesk {
 public:
  PlanDesk(core::CoreOptions options, core::SpecFunctions functions)
      : functions_(functions), core_{std::move(options), core::Planner(std::move(functions))} {}

  struct Question {
    core::Model model;
    core::FitQuestion fit;  // what is left to the server is chosen here, as CreateJob would
    bool methods = false;
    bool layout = false;
    std::string shown;  // worker or card whose profile methods and layout are for; "" = choose
  };
  // One plan in full.
  struct Layout {
    std::string worker_id;
    std::string device_id;
    spec::MemoryPlan plan;
    core::PlanBytes bytes;
  };
  struct Answer {
    spec::TrainSpec device_spec;  // of a job created now: chosen over the registered devices
    core::FitReport devices;
    core::FitReport cards;  // worker_id names the card
    std::vector<spec::TrainSpec> card_specs;  // chosen for each card alone
    spec::TrainSpec shown_spec;  // of the device that is shown
    std::vector<core::MethodMemory> methods;
    std::string methods_at;
    std::optional<Layout> layout;
  };
  // CANCELLED soon after `fit.unwanted` says so.
  absl::StatusOr<Answer> Plan(const core::State& excerpt, const Question& question);
  // For a CreateJob that may not plan on the loop's thread; several at one time.
  core::PlannedAhead PlanAhead(const core::Model& model, const spec::TrainSpec& given, int64_t data_rows,
                               const std::vector<spec::DeviceProfile>& devices) const {
    return core::PlanAhead(functions_, model, given, data_rows, devices);
  }
  // Changes with which a job that waits would start at once: core::WhatWouldStart.
  std::vector<core::Counterfactual> WhatWouldStart(const core::State& excerpt, const core::Job& job,
                                                   const core::Model& model,
                                                   const std::vector<core::DeviceExplanation>& devices,
                                                   size_t limit);

 private:
  absl::Status PlanCards(const Question& question, Answer& answer);

  const core::SpecFunctions functions_;
  std::mutex mutex_;
  core::Core core_;
};

}  // namespace nibble::server

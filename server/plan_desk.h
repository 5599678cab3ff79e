// Answers "where would this job fit" away from the control loop.
//
// The loop's planner belongs to the loop; searching for the largest batch and sequence compiles dozens of
// plans, so it happens here, over an excerpt of the state, with a planner of its own. Thread-safe; may
// take a while: call it on the I/O pool.
#pragma once

#include <mutex>

#include "absl/status/statusor.h"
#include "server/core/views.h"

namespace nibble::server {

// What placement of one more job depends on: workers, the attempts that hold bytes on them, their jobs
// and models.
core::State PlanningExcerpt(const core::State& state);

class PlanDesk {
 public:
  PlanDesk(core::CoreOptions options, core::SpecFunctions functions)
      : core_{std::move(options), core::Planner(std::move(functions))} {}

  struct Answer {
    core::FitReport devices;
    std::vector<core::DeviceFit> cards;  // worker_id names the card
    std::vector<core::Suggestion> card_suggestions;  // for when no worker is registered
  };
  // `spec` must be resolved.
  absl::StatusOr<Answer> Plan(const core::State& excerpt, const core::Model& model,
                              const spec::TrainSpec& spec);

 private:
  std::mutex mutex_;
  core::Core core_;
};

}  // namespace nibble::server

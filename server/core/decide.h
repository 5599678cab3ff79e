// (State, Command) -> what happens. Pure but for the planner's memory.
//
// Decide checks and answers; it changes nothing. An error means nothing happened. The caller
// applies the events in order before it decides the next command. Fences, states and transitions:
// docs/lifecycle.md.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/core/commands.h"
#include "server/core/events.h"
#include "server/core/options.h"
#include "server/core/plan.h"
#include "server/core/state.h"

namespace nibble::core {

struct Core {
  CoreOptions options;
  Planner planner;
};

struct Decision {
  std::vector<Event> events;  // empty: it is already so
  std::string id;             // of the resource meant; a repeated create names the first job
};

// Rows of the data a job was asked for with; what is not there has none.
int64_t DataRows(const State& state, const CreateJob& c);

absl::StatusOr<Decision> Decide(const State& state, const Command& command, Core& core);

}  // namespace nibble::core

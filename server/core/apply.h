// (State, Event) -> State. Total: an event that Decide made can always be applied.
#pragma once

#include <vector>

#include "server/core/event_record.h"
#include "server/core/events.h"
#include "server/core/state.h"

namespace nibble::core {

// Marks the rows it changes in state->touched, and appends what is to be kept to *records (which
// may be nullptr).
void Apply(State* state, const Event& event, std::vector<EventRecord>* records);

// Type, message and fields of an event, without number and sequence.
EventRecord Describe(const Event& event);

}  // namespace nibble::core

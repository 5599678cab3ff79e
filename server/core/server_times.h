// What a start and a sleep of the server do to everything that is held to a time. Used by Apply alone.
#pragma once

#include "server/core/events.h"
#include "server/core/state.h"

namespace nibble::core {

// Every lease and deadline, and what a process knows only for itself.
void BeginAnew(State* state, const ServerStarted& e, const Now& now);
// As if the time had not passed, for whatever would be held against somebody who could not be heard.
void PutOff(State* state, const ServerSlept& e, const Now& now);

}  // namespace nibble::core

// Keeps State.board in step with the rows: called by Apply, once per change, and by BuildIndexes.
//
// Also what is predicted and learned: how long a job's step takes, and how much of a device's time
// it keeps busy, by plan, measured on attempts that run. Predictions order the queue and tell
// people when; nothing is refused or admitted by them but the cap on load.
#pragma once

#include <cstdint>
#include <string>

#include "server/core/state.h"

namespace nibble::core {

// The board anew from the rows. Usage of projects is forgotten.
void RebuildBoard(State* state, int64_t now_us);

// The job has entered or left the queue, or something about it has changed.
void SyncQueued(State* state, const Job& job);
void SyncWorker(State* state, const Worker& worker);
void SyncHold(State* state, const Job& job, const Attempt& attempt, int64_t now_us);
// Its steps left, step time or load are known better.
void SyncEstimate(State* state, const Job& job, int64_t now_us);
// Steps were reported: measures the attempt. Before the head is changed.
void Learn(State* state, Job& job, Attempt& attempt, const Progress& head, int64_t now_us);

// Alone on a device, by what is known now.
struct Estimate {
  int64_t left_us = 0;
  int64_t total_us = 0;
  int32_t load_milli = 1'000;
  bool measured = false;  // the step time was; else it is a guess
};
// On a device of that speed, as measured on such ones where there are measurements, else by the speeds.
Estimate Predict(const State& state, const Job& job, int64_t mflops);
// On the mean device of the fleet: what orders the queue.
Estimate Predict(const State& state, const Job& job);
// Whether the time at which that attempt's bytes will be free may be told: its steps are counted, and their
// time was measured, on it or on jobs of its plan; or it is letting go. The rest is a guess that orders
// queues.
bool EndIsKnown(const State& state, const HoldKey& key);

}  // namespace nibble::core

// The series that are read when somebody scrapes: of jobs, queue and workers off the control loop's state, of
// the server off its files and parts.
//
// Values in, families out; the state's are for the loop's thread. For .cc files only (meter_families.h).
#pragma once

#include <cstdint>

#include "server/control_loop.h"
#include "server/core/state.h"
#include "server/meter.h"
#include "server/meter_families.h"

namespace nibble::server {

// There is one queue; the label is there for the day there are more.
inline constexpr char kMeterQueue[] = "default";

inline double Seconds(int64_t us) { return static_cast<double>(us) / 1e6; }

// `last_progress_unix_us`: 0 = none was heard of.
void AddJob(Families& families, const core::Job& job, const ControlLoop::Outcome& outcome,
            int64_t last_progress_unix_us);
void AddQueue(Families& families, const ControlLoop::Outcome& outcome);
void AddWorkers(Families& families, const ControlLoop::Outcome& outcome);
// Reads files and volumes, so it may block.
void AddServer(Families& families, const Meter::Sources& sources);

}  // namespace nibble::server

// The head of a job's metrics, which its row has only since the last change of the job, as told by its steps.
// Pure but for what it reads of the metrics.
#pragma once

#include <vector>

#include "server/core/state.h"
#include "server/store/store.h"

namespace nibble::server {

// The head after these steps, going on from the job's. A step that does not follow the job's last one was
// counted before. Non-finite values are left out: the last finite ones stay visible.
core::Progress HeadAfter(const core::Progress& before, const std::vector<store::StepMetric>& metrics);

// After a restart: the heads of jobs that have a device go on from their rows to the last step that was
// stored, since nobody tells a step twice. What cannot be read stays as its row has it, and the log says so.
void CatchUp(store::MetricStore& metrics, core::State& state);

}  // namespace nibble::server

// What both metric stores do to rows: merge a repeat, thin a series.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "server/store/store.h"

namespace nibble::store {

// A repeat of (job, epoch, step): only an evaluation it brings is new, or the step's own figures
// when what is there came from an evaluation alone.
void Merge(const StepMetric& repeat, StepMetric& row);

// "12 0 3 4 5 6"; all zero is the empty text, and what cannot be read is zeros.
std::string PhaseTimesToText(const spec::StepPhaseTimes& times);
spec::StepPhaseTimes PhaseTimesFromText(std::string_view text);
// Adds a row that comes in order of (step, epoch). Of a step the highest epoch's row stands, but one that
// came from an evaluation alone (an attempt that resumed right there) only brings its evaluation.
void AddInOrder(StepMetric metric, std::vector<StepMetric>& rows);
// At most about max_points: the first, the last and every evaluation stay, the others evenly. 0 =
// all.
std::vector<StepMetric> Thin(std::vector<StepMetric> metrics, int64_t max_points);

}  // namespace nibble::store

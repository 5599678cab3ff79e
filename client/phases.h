// Where the time of a job's steps went, as text.
#pragma once

#include <string>

#include "client/draw.h"
#include "nibble/v1/job.pb.h"

namespace nibble::client {

// A table with bars over the steps that say their phases, and one line of what is left; empty when none
// does.
std::string PhaseView(const v1::QueryMetricsResponse& metrics, const Style& style);

}  // namespace nibble::client

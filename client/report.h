// Long texts about one thing: a job, a plan, a data report. Pure.
#pragma once

#include <string>

#include "client/draw.h"
#include "nibble/v1/job.pb.h"

namespace nibble::client {

// Everything about a job but its events.
std::string JobText(const v1::Job& job, const Style& style);
// Why the job is where it is, one reason a line.
std::string WhyText(const v1::Job& job, const Style& style);
// Bytes by category, devices where it fits or why not, what would make it fit.
std::string PlanText(const v1::PlanJobResponse& plan, const Style& style);
std::string MemoryText(const v1::MemoryPlan& plan);
// The report of nibble-engine validate, flattened into "key value" lines.
std::string DataReportText(const std::string& json, const Style& style);

}  // namespace nibble::client

// Long texts about one thing: a job, a data report. Pure. Those about memory are in plan_report.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "client/draw.h"
#include "nibble/v1/job.pb.h"

namespace nibble::client {

// Why a job is in its state, with the reason's name when it failed; "" when there is nothing to say.
std::string ReasonText(const v1::Job& job);
// Everything about a job but its events. `planned_for`: the device of its plan, where that is known.
std::string JobText(const v1::Job& job, const Style& style, const std::string& planned_for = "");
// Every setting of a spec that decides a result.
std::string SpecText(const v1::JobSpec& spec);
// What is to be said of a job's warm-up when more than half of its steps are of it, as of a job of one step,
// which changes nothing; "" otherwise. `spec`: the effective one.
std::string WarmUpText(const v1::JobSpec& spec, int64_t steps);
// What whoever follows a job should know of its data and its steps: rows that are left out, warnings; a line
// each.
std::vector<std::string> DataWarnings(const v1::Job& job);
// The report of nibble-engine validate, flattened into "key value" lines; with what it means for a job of
// that spec, where there is one.
std::string DataReportText(const std::string& json, const Style& style, const v1::JobSpec* spec = nullptr);
// The commands that use a downloaded adapter, one a line. `directory` holds it, `name` is its short
// name, `adapter_config` the text of its adapter_config.json (its rank; anything else counts as a
// small one).
std::string AdapterUses(const std::string& directory, const std::string& name,
                        const std::string& adapter_config);

}  // namespace nibble::client

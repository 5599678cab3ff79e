// Whether rows can be read as a recipe says. Pure.
#pragma once

#include "absl/status/status.h"
#include "server/core/types.h"

namespace nibble::core {

// Of the format that `spec` names, against what was found of the rows when they came: an engine would refuse
// them when the job's turn comes, perhaps hours later. Either data set may be nullptr. Those of before
// anybody looked at this are not refused.
absl::Status CheckDataFormat(const spec::TrainSpec& spec, const Dataset* dataset,
                             const Dataset* eval_dataset);

}  // namespace nibble::core

// JobSpec (what users write) to and from TrainSpec (what the cores and the engine work with).
//
// Unset fields keep TrainSpec's defaults; nothing is dropped in silence: what cannot be expressed is an
// error with its path. Bounds are ResolveTrainSpec's business. Pure.
#pragma once

#include "absl/status/statusor.h"
#include "engine/spec/train_spec.h"
#include "nibble/v1/job.pb.h"

namespace nibble::server {

absl::StatusOr<spec::TrainSpec> ToTrainSpec(const v1::JobSpec& in);
// Everything but the names of base model and data sets, every field set.
v1::JobSpec ToJobSpec(const spec::TrainSpec& in);

}  // namespace nibble::server

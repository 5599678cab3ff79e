// Where the buffers of a plan stand in its two regions. Of compile_plan.cc alone; pure.
#pragma once

#include <cstdint>

#include "engine/spec/compile_plan.h"
#include "engine/spec/counting_executor.h"

namespace nibble::spec {

// The persistent region: one buffer behind the other. The plan's choices and adapters must be there already.
void PlacePersistent(const ModelConfig& model, const TrainSpec& spec, const DeviceProfile& profile,
                     int64_t red_zone, CompiledPlan& plan);

// What the driver of a device takes for recordings of micro-batches, where the plan pads and they can be
// made. `counted` has the operations of a micro-batch and no others yet.
void PlaceRecordings(const CountingExecutor& counted, const ModelConfig& model, const TrainSpec& spec,
                     const DeviceProfile& profile, CompiledPlan& plan);

// What `counted` has, by its time in the step: in the step region or, with `may_own` and where that is
// little, the tensors behind what is persistent. Returns the bytes above the largest set that is alive at
// once.
int64_t PlaceStep(const CountingExecutor& counted, const ModelConfig& model, const DeviceProfile& profile,
                  bool may_own, const CompileOptions& options, CompiledPlan& plan);

}  // namespace nibble::spec

// One turn for several jobs: each does one optimizer step, in lockstep, so that frozen weights are decoded
// once for all of them (lockstep.h). For short micro-batches, of which decoding is a large part.
//
// It needs no more memory than turns do. The jobs' tensors are in their persistent regions (kFusedTokens in
// spec/compile_plan.h), operations use the step region in turn, and a product of several jobs has to fit
// there with its workspace: FusedJobs takes as many as do. Results are those of turns, bit for bit; an
// error, such as a row of data that cannot be read, is that of its job alone. A turn that is stopped
// (Job::set_stop) is stopped for all. One thread; the jobs share a device.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/device.h"
#include "engine/job.h"

namespace nibble::engine {

// Which of these jobs, the first of which has the turn, can be in it together: the first and as many of the
// others, in order, as fit. Only the first when there is no such company.
std::vector<Job*> FusedJobs(const Device& device, std::span<Job* const> jobs);

struct FusedStep {
  absl::StatusOr<JobEvent> event;  // empty where the step was stopped
  int64_t time_us = 0;  // its share of the turn
};

// A step of each; CanFuse must be true of all. In the jobs' order.
std::vector<FusedStep> AdvanceTogether(Device& device, std::span<Job* const> jobs);

}  // namespace nibble::engine

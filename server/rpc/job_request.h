// A request about a job, checked and turned into what the core takes. Pure but for fresh ids.
#pragma once

#include "absl/status/statusor.h"
#include "nibble/v1/job.pb.h"
#include "server/core/commands.h"

namespace nibble::server {

struct JobParts {
  spec::TrainSpec spec;
  std::string model_id;
  std::string dataset_id;
  std::string eval_dataset_id;
};
absl::StatusOr<JobParts> ReadJobSpec(const v1::JobSpec& spec);
// The same error with paths as the request has them: what is wrong in the spec is found by code that knows
// JobSpec alone ("lora.r"), and users see "spec.lora.r".
absl::Status UnderSpec(const absl::Status& status);
absl::StatusOr<core::CreateJob> ReadCreateJob(const v1::CreateJobRequest& request,
                                              const std::string& tenant);
absl::StatusOr<core::UpdateJob> ReadUpdateJob(const v1::UpdateJobRequest& request);

}  // namespace nibble::server

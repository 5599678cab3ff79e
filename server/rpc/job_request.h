// A request about a job, checked and turned into what the core takes. Pure but for fresh ids.
#pragma once

#include "absl/status/statusor.h"
#include "nibble/v1/job.pb.h"
#include "server/core/messages.h"

namespace nibble::server {

struct JobParts {
  spec::TrainSpec spec;
  std::string model_id;
  std::string dataset_id;
  std::string eval_dataset_id;
};
absl::StatusOr<JobParts> ReadJobSpec(const v1::JobSpec& spec);
absl::StatusOr<core::CreateJob> ReadCreateJob(const v1::CreateJobRequest& request,
                                              const std::string& tenant);
absl::StatusOr<core::UpdateJob> ReadUpdateJob(const v1::UpdateJobRequest& request);

}  // namespace nibble::server

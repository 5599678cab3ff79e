#include "server/rpc/job_request.h"

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/id.h"
#include "base/status.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "server/rpc/convert_spec.h"

namespace nibble::server {
namespace {

// Maps have no order of their own; equal requests must have equal digests.
std::string Deterministic(const google::protobuf::Message& message) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    message.SerializeToCodedStream(&coded);
  }
  return bytes;
}

absl::Status Missing(const char* field, const char* collection) {
  return Error::Field(Reason::kSpecInvalid, field,
                      absl::StrCat("is missing; name one as ", collection, "/<id>"));
}

bool IsOfSpec(const std::string& field) {
  for (const char* part : {"lora.", "quantization.", "data.", "optimizer.", "training."}) {
    if (field.starts_with(part)) return true;
  }
  return false;
}

}  // namespace

absl::Status UnderSpec(const absl::Status& status) {
  const Reason reason = StatusReason(status);
  if (status.ok() || reason == Reason::kUnspecified) return status;
  std::string message(status.message());
  if (IsOfSpec(message)) message.insert(0, "spec.");
  Error error(reason, std::move(message));
  for (const auto& [key, value] : StatusMetadata(status)) error.With(key, value);
  for (const FieldViolation& v : StatusViolations(status)) {
    error.Violation(IsOfSpec(v.field) ? "spec." + v.field : v.field, v.description);
  }
  return error.ToStatus();
}

absl::StatusOr<JobParts> ReadJobSpec(const v1::JobSpec& spec) {
  if (spec.base_model().empty()) return Missing("spec.base_model", "models");
  if (spec.dataset().empty()) return Missing("spec.dataset", "datasets");
  JobParts parts;
  ASSIGN_OR_RETURN(parts.model_id, ParseName(spec.base_model(), "models", "spec.base_model"));
  ASSIGN_OR_RETURN(parts.dataset_id, ParseName(spec.dataset(), "datasets", "spec.dataset"));
  if (!spec.eval_dataset().empty()) {
    ASSIGN_OR_RETURN(parts.eval_dataset_id,
                     ParseName(spec.eval_dataset(), "datasets", "spec.eval_dataset"));
  }
  auto train = ToTrainSpec(spec);
  if (!train.ok()) return UnderSpec(train.status());
  parts.spec = *std::move(train);
  return parts;
}

absl::StatusOr<core::CreateJob> ReadCreateJob(const v1::CreateJobRequest& request,
                                              const std::string& tenant) {
  ASSIGN_OR_RETURN(JobParts parts, ReadJobSpec(request.spec()));
  core::CreateJob command;
  command.job_id_given = !request.job_id().empty();
  if (command.job_id_given && !IsValidId(request.job_id())) {
    return Error::Field(Reason::kNameInvalid, "job_id",
                        "must be 1 to 63 lower-case letters, digits and inner '-'")
        .ToStatus();
  }
  command.job_id = command.job_id_given ? request.job_id() : NewId("job");
  command.uid = NewUuid();
  command.tenant = tenant;
  command.request_id = request.request_id();
  v1::CreateJobRequest body = request;
  body.clear_request_id();
  command.body_sha256 = Sha256Hex(Deterministic(body));
  command.display_name = request.display_name();
  command.labels.insert(request.labels().begin(), request.labels().end());
  command.priority = request.priority();
  command.user_spec = request.spec().SerializeAsString();
  command.spec = std::move(parts.spec);
  command.model_id = std::move(parts.model_id);
  command.dataset_id = std::move(parts.dataset_id);
  command.eval_dataset_id = std::move(parts.eval_dataset_id);
  return command;
}

absl::StatusOr<core::UpdateJob> ReadUpdateJob(const v1::UpdateJobRequest& request) {
  core::UpdateJob command;
  ASSIGN_OR_RETURN(command.job_id, ParseName(request.job().name(), "jobs", "job.name"));
  command.etag = request.job().etag();
  if (request.update_mask().paths().empty()) {
    return Error::Field(Reason::kSpecInvalid, "update_mask",
                        "is empty; name display_name, labels, priority or "
                        "spec.training.allow_numerics_change")
        .ToStatus();
  }
  for (const std::string& path : request.update_mask().paths()) {
    if (path == "display_name") {
      command.display_name = request.job().display_name();
    } else if (path == "labels") {
      command.labels.emplace(request.job().labels().begin(), request.job().labels().end());
    } else if (path == "priority") {
      command.priority = request.job().priority();
    } else if (path == "spec.training.allow_numerics_change") {
      // What has moved already has other rounding in it.
      if (!request.job().spec().training().allow_numerics_change()) {
        return Error::Field(Reason::kSpecInvalid, "job.spec.training.allow_numerics_change",
                            "can only be set to true: it is not taken back")
            .ToStatus();
      }
      command.allow_numerics_change = true;
    } else {
      return Error::Field(Reason::kSpecInvalid, "update_mask",
                          absl::StrCat("names ", path.substr(0, 64),
                                       "; only display_name, labels, priority and "
                                       "spec.training.allow_numerics_change can be changed"))
          .ToStatus();
    }
  }
  return command;
}

}  // namespace nibble::server

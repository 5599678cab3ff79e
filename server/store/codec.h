// Rows as JSON text and back: what the `body` columns hold. Volatile fields are left out; unknown
// keys are ignored and missing ones keep their defaults, so that an older row can be read.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "server/core/types.h"

namespace nibble::store {

// What changes, and what it was created with; without attempts and user_spec, which have rows and a
// column of their own.
std::string EncodeJob(const core::Job& job);
std::string EncodeCreated(const core::Job& job);
absl::StatusOr<core::Job> DecodeJob(std::string_view created, std::string_view text);
std::string EncodeAttempt(const core::Attempt& attempt);
absl::StatusOr<core::Attempt> DecodeAttempt(std::string_view text);
std::string EncodeWorker(const core::Worker& worker);
absl::StatusOr<core::Worker> DecodeWorker(std::string_view text);
std::string EncodeDataset(const core::Dataset& dataset);
absl::StatusOr<core::Dataset> DecodeDataset(std::string_view text);
std::string EncodeModel(const core::Model& model);
absl::StatusOr<core::Model> DecodeModel(std::string_view text);
std::string EncodeAdapter(const core::Adapter& adapter);
absl::StatusOr<core::Adapter> DecodeAdapter(std::string_view text);
std::string EncodeFields(const std::map<std::string, std::string>& fields);
absl::StatusOr<std::map<std::string, std::string>> DecodeFields(std::string_view text);

}  // namespace nibble::store

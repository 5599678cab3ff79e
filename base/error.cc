#include "base/error.h"

#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/view.h"

namespace nibble {
namespace {

struct Row {
  Reason reason;
  std::string_view name;
  absl::StatusCode code;
};

using absl::StatusCode;
constexpr Row kRows[] = {
    {Reason::kSpecInvalid, "SPEC_INVALID", StatusCode::kInvalidArgument},
    {Reason::kUnknownField, "UNKNOWN_FIELD", StatusCode::kInvalidArgument},
    {Reason::kUnsupportedOption, "UNSUPPORTED_OPTION", StatusCode::kInvalidArgument},
    {Reason::kDatasetSchemaMismatch, "DATASET_SCHEMA_MISMATCH", StatusCode::kInvalidArgument},
    {Reason::kDatasetEmpty, "DATASET_EMPTY", StatusCode::kInvalidArgument},
    {Reason::kChatTemplateInvalid, "CHAT_TEMPLATE_INVALID", StatusCode::kInvalidArgument},
    {Reason::kNameInvalid, "NAME_INVALID", StatusCode::kInvalidArgument},
    {Reason::kRequestTooLarge, "REQUEST_TOO_LARGE", StatusCode::kInvalidArgument},
    {Reason::kPageTokenInvalid, "PAGE_TOKEN_INVALID", StatusCode::kInvalidArgument},
    {Reason::kJobNotFound, "JOB_NOT_FOUND", StatusCode::kNotFound},
    {Reason::kBaseModelNotFound, "BASE_MODEL_NOT_FOUND", StatusCode::kNotFound},
    {Reason::kDatasetNotFound, "DATASET_NOT_FOUND", StatusCode::kNotFound},
    {Reason::kAdapterNotFound, "ADAPTER_NOT_FOUND", StatusCode::kNotFound},
    {Reason::kWorkerNotFound, "WORKER_NOT_FOUND", StatusCode::kNotFound},
    {Reason::kUploadNotFound, "UPLOAD_NOT_FOUND", StatusCode::kNotFound},
    {Reason::kBlobNotFound, "BLOB_NOT_FOUND", StatusCode::kNotFound},
    {Reason::kTokenInvalid, "TOKEN_INVALID", StatusCode::kUnauthenticated},
    {Reason::kRoleNotAllowed, "ROLE_NOT_ALLOWED", StatusCode::kPermissionDenied},
    {Reason::kJobExists, "JOB_EXISTS", StatusCode::kAlreadyExists},
    {Reason::kDatasetExists, "DATASET_EXISTS", StatusCode::kAlreadyExists},
    {Reason::kModelExists, "MODEL_EXISTS", StatusCode::kAlreadyExists},
    {Reason::kRequestIdReused, "REQUEST_ID_REUSED", StatusCode::kAlreadyExists},
    {Reason::kJobNotCancellable, "JOB_NOT_CANCELLABLE", StatusCode::kFailedPrecondition},
    {Reason::kJobNotPausable, "JOB_NOT_PAUSABLE", StatusCode::kFailedPrecondition},
    {Reason::kJobNotResumable, "JOB_NOT_RESUMABLE", StatusCode::kFailedPrecondition},
    {Reason::kJobNotTerminal, "JOB_NOT_TERMINAL", StatusCode::kFailedPrecondition},
    {Reason::kArtifactNotReady, "ARTIFACT_NOT_READY", StatusCode::kFailedPrecondition},
    {Reason::kUnsupportedArchitecture, "UNSUPPORTED_ARCHITECTURE", StatusCode::kFailedPrecondition},
    {Reason::kTokenizerUnsupported, "TOKENIZER_UNSUPPORTED", StatusCode::kFailedPrecondition},
    {Reason::kModelFileInvalid, "MODEL_FILE_INVALID", StatusCode::kFailedPrecondition},
    {Reason::kNoSupervisedTokens, "NO_SUPERVISED_TOKENS", StatusCode::kFailedPrecondition},
    {Reason::kExceedsDeviceMemory, "EXCEEDS_DEVICE_MEMORY", StatusCode::kFailedPrecondition},
    {Reason::kStaleAttempt, "STALE_ATTEMPT", StatusCode::kFailedPrecondition},
    {Reason::kResourceInUse, "RESOURCE_IN_USE", StatusCode::kFailedPrecondition},
    {Reason::kPathNotAllowed, "PATH_NOT_ALLOWED", StatusCode::kFailedPrecondition},
    {Reason::kQueueFull, "QUEUE_FULL", StatusCode::kResourceExhausted},
    {Reason::kQuotaExceeded, "QUOTA_EXCEEDED", StatusCode::kResourceExhausted},
    {Reason::kStorageFull, "STORAGE_FULL", StatusCode::kResourceExhausted},
    {Reason::kEtagMismatch, "ETAG_MISMATCH", StatusCode::kAborted},
    {Reason::kOffsetMismatch, "OFFSET_MISMATCH", StatusCode::kOutOfRange},
    {Reason::kSequenceExpired, "SEQUENCE_EXPIRED", StatusCode::kOutOfRange},
    {Reason::kDigestMismatch, "DIGEST_MISMATCH", StatusCode::kDataLoss},
    {Reason::kShuttingDown, "SHUTTING_DOWN", StatusCode::kUnavailable},
    {Reason::kStoreUnavailable, "STORE_UNAVAILABLE", StatusCode::kUnavailable},
    {Reason::kLossNotFinite, "LOSS_NOT_FINITE", StatusCode::kFailedPrecondition},
    {Reason::kDeviceFault, "DEVICE_FAULT", StatusCode::kInternal},
    {Reason::kPlanExceeded, "PLAN_EXCEEDED", StatusCode::kInternal},
    {Reason::kWorkerLost, "WORKER_LOST", StatusCode::kUnavailable},
    {Reason::kPoison, "POISON", StatusCode::kFailedPrecondition},
    {Reason::kEngineFailed, "ENGINE_FAILED", StatusCode::kInternal},
    {Reason::kOutOfMemory, "OUT_OF_MEMORY", StatusCode::kResourceExhausted},
    {Reason::kNumericsChanged, "NUMERICS_CHANGED", StatusCode::kFailedPrecondition},
    {Reason::kCheckpointInvalid, "CHECKPOINT_INVALID", StatusCode::kDataLoss},
    {Reason::kInternal, "INTERNAL", StatusCode::kInternal},
};

constexpr std::string_view kReasonUrl = "nibble/reason";
constexpr std::string_view kMetadataUrl = "nibble/metadata";
constexpr std::string_view kViolationsUrl = "nibble/violations";
// Unit and record separators: payloads hold text of ours and of users, which JSON and protobuf both
// forbid to hold these control characters unescaped.
constexpr char kUnit = '\x1f';
constexpr char kRecord = '\x1e';

const Row* Find(Reason reason) {
  for (const Row& row : kRows) {
    if (row.reason == reason) return &row;
  }
  return nullptr;
}

void Append(std::string& out, std::string_view a, std::string_view b) {
  if (!out.empty()) out += kRecord;
  out.append(a);
  out += kUnit;
  out.append(b);
}

std::vector<std::pair<std::string, std::string>> ReadPairs(const absl::Status& status,
                                                           std::string_view url) {
  std::vector<std::pair<std::string, std::string>> pairs;
  const auto payload = status.GetPayload(View(url));
  if (!payload || payload->empty()) return pairs;
  const std::string text(*payload);
  for (absl::string_view record : absl::StrSplit(text, kRecord)) {
    pairs.push_back(absl::StrSplit(record, absl::MaxSplits(kUnit, 1)));
  }
  return pairs;
}

}  // namespace

std::string_view ReasonName(Reason reason) {
  const Row* row = Find(reason);
  return row ? row->name : "UNSPECIFIED";
}

Reason ReasonFromName(std::string_view name) {
  for (const Row& row : kRows) {
    if (row.name == name) return row.reason;
  }
  return Reason::kUnspecified;
}

absl::StatusCode ReasonCode(Reason reason) {
  const Row* row = Find(reason);
  return row ? row->code : StatusCode::kUnknown;
}

const std::vector<Reason>& AllReasons() {
  static const auto* all = [] {
    auto* reasons = new std::vector<Reason>;
    for (const Row& row : kRows) reasons->push_back(row.reason);
    return reasons;
  }();
  return *all;
}

Error::Error(Reason reason, std::string message) : reason_(reason), message_(std::move(message)) {}

Error Error::Field(Reason reason, std::string field, std::string description) {
  Error error(reason, absl::StrCat(field, " ", description));
  error.Violation(std::move(field), std::move(description));
  return error;
}

Error& Error::With(std::string key, std::string value) {
  metadata_[std::move(key)] = std::move(value);
  return *this;
}

Error& Error::Violation(std::string field, std::string description) {
  violations_.push_back({std::move(field), std::move(description)});
  return *this;
}

absl::Status Error::ToStatus() const {
  absl::Status status(ReasonCode(reason_), message_);
  status.SetPayload(View(kReasonUrl), absl::Cord(View(ReasonName(reason_))));
  std::string pairs;
  for (const auto& [key, value] : metadata_) Append(pairs, key, value);
  if (!pairs.empty()) status.SetPayload(View(kMetadataUrl), absl::Cord(pairs));
  pairs.clear();
  for (const FieldViolation& v : violations_) Append(pairs, v.field, v.description);
  if (!pairs.empty()) status.SetPayload(View(kViolationsUrl), absl::Cord(pairs));
  return status;
}

Reason StatusReason(const absl::Status& status) {
  const auto payload = status.GetPayload(View(kReasonUrl));
  return payload ? ReasonFromName(std::string(*payload)) : Reason::kUnspecified;
}

std::map<std::string, std::string> StatusMetadata(const absl::Status& status) {
  std::map<std::string, std::string> metadata;
  for (auto& [key, value] : ReadPairs(status, kMetadataUrl)) metadata[key] = value;
  return metadata;
}

std::vector<FieldViolation> StatusViolations(const absl::Status& status) {
  std::vector<FieldViolation> violations;
  for (auto& [field, text] : ReadPairs(status, kViolationsUrl)) violations.push_back({field, text});
  return violations;
}

}  // namespace nibble

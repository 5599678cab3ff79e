// The one list of reasons.
//
// A reason is the stable name of what went wrong: it is the `reason` of google.rpc.ErrorInfo in RPC
// errors, the reason of a failed job, the `reason` label of metrics, and the heading in
// docs/troubleshooting.md. Values are append-only and never renamed. Thread-safe: everything here is pure.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace nibble {

enum class Reason {
  kUnspecified = 0,
  // The request is wrong whatever the state: INVALID_ARGUMENT.
  kSpecInvalid, kUnknownField, kUnsupportedOption, kDatasetSchemaMismatch, kDatasetEmpty,
  kChatTemplateInvalid, kNameInvalid, kRequestTooLarge, kPageTokenInvalid,
  // Something named does not exist: NOT_FOUND.
  kJobNotFound, kBaseModelNotFound, kDatasetNotFound, kAdapterNotFound, kWorkerNotFound,
  kUploadNotFound, kBlobNotFound,
  // Who asks may not: PERMISSION_DENIED, UNAUTHENTICATED.
  kTokenInvalid, kRoleNotAllowed,
  // Taken: ALREADY_EXISTS.
  kJobExists, kDatasetExists, kModelExists, kRequestIdReused,
  // Not in this state: FAILED_PRECONDITION.
  kJobNotCancellable, kJobNotPausable, kJobNotResumable, kJobNotTerminal, kArtifactNotReady,
  kUnsupportedArchitecture, kTokenizerUnsupported, kModelFileInvalid, kNoSupervisedTokens,
  kExceedsDeviceMemory, kStaleAttempt, kResourceInUse, kPathNotAllowed,
  // A limit: RESOURCE_EXHAUSTED.
  kQueueFull, kQuotaExceeded, kStorageFull,
  // Concurrent change: ABORTED; a cursor out of retention or offset: OUT_OF_RANGE; bytes: DATA_LOSS.
  kEtagMismatch, kOffsetMismatch, kSequenceExpired, kDigestMismatch,
  // Try again: UNAVAILABLE.
  kShuttingDown, kStoreUnavailable,
  // Why a running job failed.
  kLossNotFinite, kDeviceFault, kPlanExceeded, kWorkerLost, kPoison, kEngineFailed, kOutOfMemory,
  kNumericsChanged, kCheckpointInvalid, kInternal,
};

// UPPER_SNAKE, e.g. "SPEC_INVALID".
std::string_view ReasonName(Reason reason);
// kUnspecified for a name we do not know.
Reason ReasonFromName(std::string_view name);
// The canonical code that goes with the reason.
absl::StatusCode ReasonCode(Reason reason);
// All reasons but kUnspecified, in order; for docs and metrics.
const std::vector<Reason>& AllReasons();

struct FieldViolation {
  std::string field;        // path, e.g. "spec.lora.r" or "rows[12].messages[0].role"
  std::string description;  // the value, the bound, what to do
};

// An error as callers see it. `message` is for people; the variable parts are in `metadata` too.
class Error {
 public:
  Error(Reason reason, std::string message);
  // For one bad field: the message becomes "<field> <description>".
  static Error Field(Reason reason, std::string field, std::string description);
  Error& With(std::string key, std::string value);
  Error& Violation(std::string field, std::string description);
  // Kept as payloads of the status, so that it survives RETURN_IF_ERROR up to the RPC layer.
  absl::Status ToStatus() const;
  operator absl::Status() const { return ToStatus(); }  // NOLINT: `return Error(...)` is the use

 private:
  Reason reason_;
  std::string message_;
  std::map<std::string, std::string> metadata_;
  std::vector<FieldViolation> violations_;
};

// The parts, read back from a status; kUnspecified, empty, when it carries none.
Reason StatusReason(const absl::Status& status);
std::map<std::string, std::string> StatusMetadata(const absl::Status& status);
std::vector<FieldViolation> StatusViolations(const absl::Status& status);

}  // namespace nibble

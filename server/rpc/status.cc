#include "server/rpc/status.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/human_bytes.h"
#include "google/rpc/error_details.pb.h"

namespace nibble::server {
namespace {

// Errors of libraries and of the file system know no reason, and what they know by code (a file that may not
// be read) is not about who calls.
Reason ReasonOf(const absl::Status& status) {
  const Reason reason = StatusReason(status);
  if (reason != Reason::kUnspecified) return reason;
  return absl::IsUnavailable(status) ? Reason::kStoreUnavailable : Reason::kInternal;
}

// An error travels in HTTP/2 trailers, which peers bound at 8 KiB, message and details together and
// the details in base64: what is longer would reach nobody.
constexpr size_t kMaxMessageBytes = 800;
constexpr size_t kMaxFieldBytes = 240;
constexpr size_t kMaxViolationsBytes = 1800;
constexpr size_t kMaxMetadataBytes = 600;

std::string Shortened(std::string_view text, size_t limit) {
  if (text.size() <= limit) return std::string(text);
  size_t end = limit - 3;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80)
    --end;  // whole characters
  return std::string(text.substr(0, end)) + "...";
}

// " (4.10 GiB free)", where that is known.
std::string FreeText(const absl::Status& status) {
  int64_t free_bytes = 0;
  if (!absl::SimpleAtoi(StatusMetadata(status)["free_bytes"], &free_bytes)) return "";
  return absl::StrCat(" (", HumanBytes(free_bytes), " free)");
}

// What names our files is for the log (Done and StoreHealth see to that), not for callers.
std::string MessageFor(const absl::Status& status, Reason reason) {
  const std::string_view message(status.message().data(), status.message().size());
  if (reason == Reason::kStoreUnavailable)
    return "the server cannot read or write its database now; its log says why; try again";
  if (reason == Reason::kStorageFull && message.find('/') != std::string_view::npos)
    return absl::StrCat("the server's disk is full", FreeText(status), "; make room there and try again");
  if (StatusReason(status) == Reason::kUnspecified) return "internal error; the server's log has the details";
  return Shortened(message, kMaxMessageBytes);
}

}  // namespace

google::rpc::Status ToRpcStatus(const absl::Status& status) {
  google::rpc::Status out;
  if (status.ok()) return out;
  const Reason reason = ReasonOf(status);
  // The reason decides the code, so that one reason never comes with two.
  out.set_code(static_cast<int32_t>(ReasonCode(reason)));
  out.set_message(MessageFor(status, reason));
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(ReasonName(reason)));
  info.set_domain(kErrorDomain);
  for (const auto& [key, value] : StatusMetadata(status)) {
    if (info.ByteSizeLong() > kMaxMetadataBytes) break;
    (*info.mutable_metadata())[Shortened(key, kMaxFieldBytes)] = Shortened(value, kMaxFieldBytes);
  }
  out.add_details()->PackFrom(info);
  const auto violations = StatusViolations(status);
  if (!violations.empty()) {
    google::rpc::BadRequest bad;
    for (const FieldViolation& violation : violations) {
      if (bad.ByteSizeLong() > kMaxViolationsBytes) break;
      auto* field = bad.add_field_violations();
      field->set_field(Shortened(violation.field, kMaxFieldBytes));
      field->set_description(Shortened(violation.description, kMaxFieldBytes));
    }
    out.add_details()->PackFrom(bad);
  }
  const bool retry = reason == Reason::kShuttingDown || reason == Reason::kStoreUnavailable ||
                     reason == Reason::kQueueFull || reason == Reason::kStorageFull;
  if (retry) {
    google::rpc::RetryInfo info_retry;
    info_retry.mutable_retry_delay()->set_seconds(reason == Reason::kStorageFull ? 30 : 2);
    out.add_details()->PackFrom(info_retry);
  }
  return out;
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const google::rpc::Status rich = ToRpcStatus(status);
  return grpc::Status(static_cast<grpc::StatusCode>(rich.code()), rich.message(),
                      rich.SerializeAsString());
}

google::rpc::Status JobError(std::string_view reason, std::string_view message) {
  google::rpc::Status out;
  const Reason known = ReasonFromName(reason);
  out.set_code(
      static_cast<int32_t>(ReasonCode(known == Reason::kUnspecified ? Reason::kInternal : known)));
  out.set_message(Shortened(message, kMaxMessageBytes));
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain(kErrorDomain);
  out.add_details()->PackFrom(info);
  return out;
}

}  // namespace nibble::server

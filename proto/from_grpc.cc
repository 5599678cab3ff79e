#include "proto/from_grpc.h"

#include <grpcpp/support/status.h>

#include <string>

#include "base/error.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace nibble {

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  const std::string message =
      status.error_message().empty() ? "the server gave no message" : status.error_message();
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return absl::Status(code, message);
  google::rpc::ErrorInfo info;
  google::rpc::BadRequest bad;
  for (const auto& detail : details.details()) {
    if (detail.Is<google::rpc::ErrorInfo>()) detail.UnpackTo(&info);
    if (detail.Is<google::rpc::BadRequest>()) detail.UnpackTo(&bad);
  }
  Error error(ReasonFromName(info.reason()), message);
  for (const auto& [key, value] : info.metadata()) error.With(key, value);
  for (const auto& v : bad.field_violations()) error.Violation(v.field(), v.description());
  const absl::Status built = error.ToStatus();
  // The server's code stands, also for a reason newer than this client.
  absl::Status result(code, message);
  built.ForEachPayload(
      [&](absl::string_view url, const absl::Cord& payload) { result.SetPayload(url, payload); });
  return result;
}

}  // namespace nibble

// An RPC's outcome as an absl::Status, with reason, metadata and violations as nibble::Error keeps
// them.
//
// What grpc-status-details-bin carries (google.rpc.Status with ErrorInfo and BadRequest) becomes
// the payloads base/error.h reads; details of kinds we do not know are left out. Thread-safe.
#pragma once

#include "absl/status/status.h"

namespace grpc {
class Status;
}

namespace nibble {

absl::Status FromGrpc(const grpc::Status& status);

}  // namespace nibble

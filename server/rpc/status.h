// absl::Status to what goes over the wire.
//
// Every error that leaves the server carries google.rpc.Status in its details (the
// grpc-status-details-bin trailer) with an ErrorInfo: a reason of base/error.h, the domain "nibble", the
// metadata; and a BadRequest when fields are to blame. Pure.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/support/status.h"

namespace nibble::server {

inline constexpr char kErrorDomain[] = "nibble";

// A status without a reason gets the one that goes with its code; INTERNAL if there is none.
google::rpc::Status ToRpcStatus(const absl::Status& status);
grpc::Status ToGrpcStatus(const absl::Status& status);
// Of a failed job: `reason` is a name of base/error.h.
google::rpc::Status JobError(std::string_view reason, std::string_view message);

}  // namespace nibble::server

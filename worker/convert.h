// Between worker.proto and the agent's values. Pure.
#pragma once

#include "absl/status/statusor.h"
#include "nibble/worker/v1/worker.pb.h"
#include "worker/core/messages.h"
#include "worker/server_link.h"

namespace nibble::worker {

v1::RegisterRequest ToProto(const WorkerIdentity& identity, const DoRegister& action);
v1::SynchronizeRequest ToProto(const WorkerIdentity& identity, const DoSynchronize& action);
v1::ReportProgressRequest ToProto(const WorkerIdentity& identity, const DoReport& action);
v1::Fence FenceOf(const WorkerIdentity& identity, const AttemptKey& key, const std::string& token);

RegisterReply FromProto(const v1::RegisterResponse& response);
// An assignment that cannot be read is left out of the answer: the others still run, and the server
// hears of it by its absence from the next listing.
SynchronizeReply FromProto(int64_t id, const v1::SynchronizeResponse& response);
absl::StatusOr<Assignment> FromProto(const v1::Assignment& assignment);

}  // namespace nibble::worker

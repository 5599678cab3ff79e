// What workers say and are told, between the wire and the core. Pure.
#pragma once

#include "absl/status/statusor.h"
#include "nibble/worker/v1/worker.pb.h"
#include "server/core/views.h"
#include "server/store/store.h"

namespace nibble::server {

absl::StatusOr<core::RegisterWorker> ReadRegister(const worker::v1::RegisterRequest& in);
core::Synchronize ReadSynchronize(const worker::v1::SynchronizeRequest& in);
core::Fence ReadFence(const worker::v1::Fence& in);
std::vector<store::StepMetric> ReadMetrics(const worker::v1::ReportProgressRequest& in);
// The report of the request as a command; nullopt when it has none.
std::optional<core::CommandBody> ReadReport(const worker::v1::ReportProgressRequest& in);

void ToProto(const core::Assignment& assignment, bool shares_file_system, worker::v1::Assignment* out);
// True when the fence names the job's current attempt and carries its token.
bool FenceHolds(const core::State& state, const core::CoreOptions& options, const core::Fence& fence);

}  // namespace nibble::server

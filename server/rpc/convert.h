// The core's nouns as the public API shows them. Pure; nothing here fails.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "google/protobuf/timestamp.pb.h"
#include "nibble/v1/adapter.pb.h"
#include "nibble/v1/dataset.pb.h"
#include "nibble/v1/fleet.pb.h"
#include "nibble/v1/job.pb.h"
#include "nibble/v1/model.pb.h"
#include "server/core/plan_fit.h"
#include "server/core/plan_methods.h"
#include "server/core/views.h"
#include "server/store/store.h"

namespace nibble::server {

// What is needed to show jobs besides their rows; one for all of an answer. `scope`: Caller::Scope.
struct JobView {
  const core::State& state;
  core::Now now;
  core::QueueLook look;

  JobView(const core::State& s, core::Core& c, core::Now n, std::string scope)
      : state(s), now(n), look(s, c, n.monotonic_us, std::move(scope)) {}
};

void ToTimestamp(int64_t unix_us, google::protobuf::Timestamp* out);
// "jobs/abc"; empty for an empty id.
std::string ResourceName(std::string_view collection, std::string_view id);

void ToProto(JobView& view, const core::Job& job, v1::Job* out);
void ToProto(const core::PlanBytes& plan, v1::MemoryPlan* out);
void ToProto(const core::EventRecord& event, v1::JobEvent* out);
void ToProto(const store::StepMetric& metric, v1::MetricPoint* out);
void ToProto(const core::Checkpoint& checkpoint, v1::Checkpoint* out);
void ToProto(const core::Dataset& dataset, v1::Dataset* out);
void ToProto(const core::Model& model, v1::Model* out);
void ToProto(const core::Adapter& adapter, v1::Adapter* out);
// Names only the jobs that a caller of `scope` sees.
void ToProto(const core::State& state, const core::Worker& worker, const core::CoreOptions& options,
             int64_t now_us, const std::string& scope, v1::Worker* out);
void ToProto(const core::Suggestion& suggestion, v1::Suggestion* out);
void ToProto(const core::DeviceFit& fit, const core::Now& now, v1::DeviceFit* out);
void ToProto(const core::MethodMemory& method, v1::MethodMemory* out);
// Buffers and phases.
void ToProto(const spec::MemoryPlan& plan, v1::MemoryLayout* out);

}  // namespace nibble::server

// What can have happened: an Event, what Decide makes and Apply takes.
//
// Events are facts: appended, never changed. Their types are in databases and with users: none is ever
// renamed. A few are volatile: applied, but neither stored nor watched (their loss at a restart heals by
// itself).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "server/core/options.h"
#include "server/core/types.h"
#include "server/core/worker_listing.h"

namespace nibble::core {

// How an event is kept. kJob: in the job's numbered sequence. kFleet: recorded without a job.
// kVolatile: not at all.
enum class Keep { kJob, kFleet, kVolatile };

#define NIBBLE_EVENT(type, keep)                  \
  static constexpr std::string_view kType = type; \
  static constexpr Keep kKeep = Keep::keep

struct ServerStarted {
  NIBBLE_EVENT("server.started", kFleet);
  std::string timeline;
  int64_t generation = 0;
  int64_t cancel_deadline_us = 0;  // deadlines begin anew
  int64_t pin_until_us = 0;
  SchedulePolicy policy;
};
struct JobQueued {
  NIBBLE_EVENT("job.queued", kJob);
  std::string job_id;
  Job job;
};
struct JobUpdated {
  NIBBLE_EVENT("job.updated", kJob);
  std::string job_id;
  std::string display_name;
  std::map<std::string, std::string> labels;
  int32_t priority = 0;
  bool allow_numerics_change = false;
};
struct JobCancelling {
  NIBBLE_EVENT("job.cancelling", kJob);
  std::string job_id;
  int64_t deadline_us = 0;
};
struct JobCancelled {
  NIBBLE_EVENT("job.cancelled", kJob);
  std::string job_id;
};
struct JobPausing {
  NIBBLE_EVENT("job.pausing", kJob);
  std::string job_id;
};
struct JobPaused {
  NIBBLE_EVENT("job.paused", kJob);
  std::string job_id;
};
// From PAUSED: QUEUED. From PAUSING: QUEUED once released.
struct JobResumed {
  NIBBLE_EVENT("job.resumed", kJob);
  std::string job_id;
};
struct JobRequeued {
  NIBBLE_EVENT("job.requeued", kJob);
  std::string job_id;
  std::string why;
  int64_t not_before_us = 0;
  int64_t backoff_us = 0;
};
struct JobSucceeded {
  NIBBLE_EVENT("job.succeeded", kJob);
  std::string job_id;
  Adapter adapter;  // id "" for CHECK jobs
  std::string stop_reason;
  int64_t step = 0;
};
struct JobFailed {
  NIBBLE_EVENT("job.failed", kJob);
  std::string job_id;
  std::string reason;
  std::string message;
};
struct JobDeleted {
  NIBBLE_EVENT("job.deleted", kFleet);
  std::string job_id;
};

struct AttemptAssigned {
  NIBBLE_EVENT("attempt.assigned", kJob);
  std::string job_id;
  int64_t epoch = 0;
  std::string worker_id;
  std::string incarnation;
  std::string device_id;
  PlanBytes plan;
  std::string group;
  bool run_alone = false;
  int64_t resume_epoch = 0;
  int64_t resume_step = 0;
  int64_t continues_epoch = 0;  // T9
  std::string why;
};
struct AttemptPlanned {
  NIBBLE_EVENT("attempt.planned", kJob);
  std::string job_id;
  int64_t epoch = 0;
  int64_t planned_steps = 0;
  std::string report_json;
  std::string numerics_id;
  std::string numerics_class;
};
struct AttemptStarted {
  NIBBLE_EVENT("attempt.started", kJob);
  std::string job_id;
  int64_t epoch = 0;
};
struct AttemptEnded {
  NIBBLE_EVENT("attempt.ended", kJob);
  std::string job_id;
  int64_t epoch = 0;
  AttemptState state = AttemptState::kUnspecified;
  std::string reason;
  std::string message;
  bool spends_retry = false;
  bool own_fault = false;   // the engine died in this job's turn
  bool poisons = false;     // ended within the window of its start
  bool runs_alone = false;  // from now on
};
struct AttemptReleaseRequested {
  NIBBLE_EVENT("attempt.release_requested", kJob);
  std::string job_id;
  int64_t epoch = 0;
  std::string why;
};
// The worker no longer lists it: its bytes are free.
struct AttemptFreed {
  NIBBLE_EVENT("attempt.freed", kFleet);
  std::string job_id;
  int64_t epoch = 0;
};
struct CheckpointSaved {
  NIBBLE_EVENT("checkpoint.saved", kJob);
  std::string job_id;
  Checkpoint checkpoint;
};
struct CheckpointDropped {
  NIBBLE_EVENT("checkpoint.dropped", kJob);
  std::string job_id;
  int64_t epoch = 0;
  int64_t step = 0;
  std::string why;
};
struct ProgressUpdated {
  NIBBLE_EVENT("progress.updated", kVolatile);
  std::string job_id;
  int64_t epoch = 0;
  Progress head;
};
struct LeaseRenewed {
  NIBBLE_EVENT("lease.renewed", kVolatile);
  std::string worker_id;
  int64_t known_revision = 0;
  std::vector<ListedAttempt> attempts;
  std::vector<DeviceUse> devices;
  bool draining = false;
};
struct WorkerRegistered {
  NIBBLE_EVENT("worker.registered", kFleet);
  Worker worker;
};
struct WorkerLost {
  NIBBLE_EVENT("worker.lost", kFleet);
  std::string worker_id;
};
struct WorkerReturned {
  NIBBLE_EVENT("worker.returned", kFleet);
  std::string worker_id;
};
struct WorkerDraining {
  NIBBLE_EVENT("worker.draining", kFleet);
  std::string worker_id;
};
struct WorkerUndrained {
  NIBBLE_EVENT("worker.undrained", kFleet);
  std::string worker_id;
};
struct DatasetCreated {
  NIBBLE_EVENT("dataset.created", kFleet);
  Dataset dataset;
};
struct DatasetDeleted {
  NIBBLE_EVENT("dataset.deleted", kFleet);
  std::string dataset_id;
};
struct ModelRegistered {
  NIBBLE_EVENT("model.registered", kFleet);
  Model model;
};
struct ModelDeleted {
  NIBBLE_EVENT("model.deleted", kFleet);
  std::string model_id;
};
struct AdapterDeleted {
  NIBBLE_EVENT("adapter.deleted", kFleet);
  std::string adapter_id;
};
struct BlobRecorded {
  NIBBLE_EVENT("blob.recorded", kFleet);
  std::string sha256;
  int64_t size_bytes = 0;
  int64_t pin_until_us = 0;
};
struct BlobForgotten {
  NIBBLE_EVENT("blob.forgotten", kFleet);
  std::string sha256;
};
// A project has sent the bytes of this digest, whoever sent them first.
struct BlobShown {
  NIBBLE_EVENT("blob.shown", kFleet);
  std::string sha256;
  std::string project;
};
// The data of this job has been read by a CHECK.
struct JobChecked {
  NIBBLE_EVENT("job.checked", kJob);
  std::string job_id;
  std::string report_json;
  int64_t planned_steps = 0;
};
struct RequestExpired {
  NIBBLE_EVENT("request.expired", kFleet);
  std::string tenant;
  std::string request_id;
};
struct BlobPinned {
  NIBBLE_EVENT("blob.pinned", kVolatile);
  std::string sha256;
  int64_t pin_until_us = 0;
};
// A worker has seen a later generation than ours: the database was rolled back. Placement stops.
struct RollbackSuspected {
  NIBBLE_EVENT("rollback.suspected", kVolatile);
  std::string worker_id;
};

// Its worker cannot open it any more: it takes no work.
struct DeviceWithdrawn {
  NIBBLE_EVENT("device.withdrawn", kFleet);
  std::string worker_id;
  std::string device_id;
  std::string fault;
};
struct DeviceRestored {
  NIBBLE_EVENT("device.restored", kFleet);
  std::string worker_id;
  std::string device_id;
};
struct WorkerDeleted {
  NIBBLE_EVENT("worker.deleted", kFleet);
  std::string worker_id;
};
// Its disk is full, and it takes no new work; or there is room again.
struct WorkerDiskFull {
  NIBBLE_EVENT("worker.disk_full", kFleet);
  std::string worker_id;
  std::string why;
};
struct WorkerHasRoom {
  NIBBLE_EVENT("worker.has_room", kFleet);
  std::string worker_id;
};
// The server itself did not run for so long: leases and deadlines are that much longer.
struct ServerSlept {
  NIBBLE_EVENT("server.slept", kFleet);
  int64_t slept_us = 0;
};

#undef NIBBLE_EVENT

using EventBody =
    std::variant<ServerStarted, JobQueued, JobUpdated, JobCancelling, JobCancelled, JobPausing,
                 JobPaused, JobResumed, JobRequeued, JobSucceeded, JobFailed, JobDeleted,
                 AttemptAssigned, AttemptPlanned, AttemptStarted, AttemptEnded,
                 AttemptReleaseRequested, AttemptFreed, CheckpointSaved, CheckpointDropped,
                 ProgressUpdated, LeaseRenewed, WorkerRegistered, WorkerLost, WorkerReturned,
                 WorkerDraining, WorkerUndrained, DatasetCreated, DatasetDeleted, ModelRegistered,
                 ModelDeleted, AdapterDeleted, BlobRecorded, BlobForgotten, JobChecked,
                 RequestExpired, BlobPinned, RollbackSuspected, DeviceWithdrawn, DeviceRestored,
                 BlobShown, WorkerDeleted, WorkerDiskFull, WorkerHasRoom, ServerSlept>;
struct Event {
  Now now;
  EventBody body;
};

}  // namespace nibble::core

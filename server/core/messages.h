// What can be asked (Command) and what can have happened (Event).
//
// Commands are made at the edge: they carry ids, digests and `now`; the core invents nothing.
// Events are facts: append-only, numbered, never renumbered. A few are volatile: applied, but
// neither stored nor watched (their loss at a restart heals by itself).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "server/core/options.h"
#include "server/core/types.h"

namespace nibble::core {

struct PlannedAhead;  // plan.h

// ---- Commands
// -------------------------------------------------------------------------------------

// Once, first, at every start. Raises the generation; all deadlines begin anew.
struct ServerStart {
  std::string timeline;       // fresh UUID; used only when the state has none yet
  bool new_timeline = false;  // after a restore: adopt `timeline` and lose all attempts
};

struct CreateJob {
  std::string job_id;         // chosen by the user or fresh
  bool job_id_given = false;  // by the user: a clash is JOB_EXISTS
  std::string uid;
  std::string tenant;
  std::string request_id;   // "" = none
  std::string body_sha256;  // of the request without request_id
  std::string display_name;
  std::map<std::string, std::string> labels;
  int32_t priority = 0;
  std::string user_spec;  // opaque
  spec::TrainSpec spec;   // as given; Decide resolves it
  std::string model_id;
  std::string dataset_id;
  std::string eval_dataset_id;
  // Plans take milliseconds each: a caller that must not hold up the loop sets plan_elsewhere, is answered
  // NotPlanned (plan.h) when one is missing, and asks again with what it has planned.
  bool plan_elsewhere = false;
  std::shared_ptr<const PlannedAhead> ahead;
};
struct UpdateJob {
  std::string job_id;
  std::optional<std::string> display_name;
  std::optional<std::map<std::string, std::string>> labels;
  std::optional<int32_t> priority;
  bool allow_numerics_change = false;  // from now on; never taken back
  std::string etag;  // "" = don't care; else Etag(job)
};
struct CancelJob {
  std::string job_id;
};
struct PauseJob {
  std::string job_id;
};
struct ResumeJob {
  std::string job_id;
};
struct DeleteJob {
  std::string job_id;
};

struct CreateDataset {
  Dataset dataset;
};  // its blob must have been recorded, unless it has a path
struct DeleteDataset {
  std::string dataset_id;
};
// Starts a CHECK unless its result is known; the decision's id is the check job's.
struct ValidateDataset {
  std::string dataset_id;
  std::string eval_dataset_id;
  std::string model_id;
  spec::TrainSpec spec;
};
struct RegisterModel {
  Model model;
};
struct DeleteModel {
  std::string model_id;
};
struct DeleteAdapter {
  std::string adapter_id;
};

// A blob is durable: hashed, fsynced, renamed to its digest. Idempotent; renews the pin. `project` is who has
// sent it; "" = nobody who is confined to a project.
struct RecordBlob {
  std::string sha256;
  int64_t size_bytes = 0;
  std::string project;
};
// The collector's: forgets those that are unreferenced and unpinned now; unlink after the reply,
// and only what the BlobForgotten events name.
struct ForgetBlobs {
  std::vector<std::string> sha256s;
};

struct RegisterWorker {
  std::string worker_id;
  std::string incarnation;
  std::string version;
  std::vector<Device> devices;
  bool shares_file_system = false;
  int64_t generation_seen = 0;
  std::string timeline_seen;
};
struct ListedAttempt {
  std::string job_id;
  int64_t epoch = 0;
  std::string device_id;
  Phase phase = Phase::kUnspecified;
  int64_t step = 0;
  int64_t used_bytes = 0;
  bool intact = false;  // what it trained is in memory there, and could go on
  std::string trouble;  // what does not go through and keeps it, in words; "" = nothing
  bool operator==(const ListedAttempt&) const = default;
};
struct DeviceUse {
  std::string device_id;
  int64_t used_bytes = 0;
  std::set<std::string> resident_bases;
  std::string fault;  // "" = it is well
  bool operator==(const DeviceUse&) const = default;
};
// Renews the lease. NOT_FOUND (WORKER_NOT_FOUND) = register again; STALE_ATTEMPT = another process
// has registered under this worker id: stop everything and exit.
struct Synchronize {
  std::string worker_id;
  std::string incarnation;
  int64_t generation_seen = 0;
  int64_t known_revision = 0;
  std::vector<ListedAttempt> attempts;
  std::vector<DeviceUse> devices;
  bool draining = false;
  std::string no_room;  // its disk is full; "" = there is room
};

struct ReportPlan {
  Fence fence;
  int64_t planned_steps = 0;
  std::string report_json;
  std::string numerics_id;
};
struct ReportProgress {
  Fence fence;
  Progress head;
};  // planned_steps of the head is ignored
struct ReportCheckpoint {
  Fence fence;
  int64_t step = 0;
  std::vector<FileRef> files;
  std::string manifest_sha256;
  double loss = 0;
};
struct ReportFinished {
  Fence fence;
  int64_t step = 0;
  std::vector<FileRef> files;
  std::string stop_reason;
};
struct ReportFailed {
  Fence fence;
  std::string reason;
  std::string message;
  bool infrastructure = false;
  bool neighbour_fault = false;
};
struct ReportCheck {
  Fence fence;
  std::string report_json;
  int64_t planned_steps = 0;
};
struct ReportReleased {
  Fence fence;
  int64_t step = 0;
};

struct DrainWorker {
  std::string worker_id;
};
struct UndrainWorker {
  std::string worker_id;
};
// One that is lost for good.
struct DeleteWorker {
  std::string worker_id;
};

// Sent by the loop, before all else of a turn that begins so long after the one before.
struct Awake {
  int64_t slept_us = 0;
};
// Leases, forced cancels, expiries. Sent by the loop's own timer.
struct Tick {};
// One pass of the scheduler; sent by the loop after each batch.
struct Place {};

using CommandBody =
    std::variant<ServerStart, CreateJob, UpdateJob, CancelJob, PauseJob, ResumeJob, DeleteJob,
                 CreateDataset, DeleteDataset, ValidateDataset, RegisterModel, DeleteModel,
                 DeleteAdapter, RecordBlob, ForgetBlobs, RegisterWorker, Synchronize, ReportPlan,
                 ReportProgress, ReportCheckpoint, ReportFinished, ReportFailed, ReportCheck,
                 ReportReleased, DrainWorker, UndrainWorker, DeleteWorker, Awake, Tick, Place>;
struct Command {
  Now now;
  CommandBody body;
  std::string scope;  // the project it may see and touch; "" = all
};
std::string_view CommandName(const CommandBody& body);  // "CreateJob"

// ---- Events
// ---------------------------------------------------------------------------------------

// How an event is kept. kJob: in the job's numbered sequence. kFleet: recorded without a job.
// kVolatile: not at all.
enum class Keep { kJob, kFleet, kVolatile };

#define NIBBLE_EVENT(number, type, keep)          \
  static constexpr int kNumber = number;          \
  static constexpr std::string_view kType = type; \
  static constexpr Keep kKeep = Keep::keep

struct ServerStarted {
  NIBBLE_EVENT(1, "server.started", kFleet);
  std::string timeline;
  int64_t generation = 0;
  int64_t cancel_deadline_us = 0;  // deadlines begin anew
  int64_t pin_until_us = 0;
  SchedulePolicy policy;
};
struct JobQueued {
  NIBBLE_EVENT(2, "job.queued", kJob);
  std::string job_id;
  Job job;
};
struct JobUpdated {
  NIBBLE_EVENT(3, "job.updated", kJob);
  std::string job_id;
  std::string display_name;
  std::map<std::string, std::string> labels;
  int32_t priority = 0;
  bool allow_numerics_change = false;
};
struct JobCancelling {
  NIBBLE_EVENT(4, "job.cancelling", kJob);
  std::string job_id;
  int64_t deadline_us = 0;
};
struct JobCancelled {
  NIBBLE_EVENT(5, "job.cancelled", kJob);
  std::string job_id;
};
struct JobPausing {
  NIBBLE_EVENT(6, "job.pausing", kJob);
  std::string job_id;
};
struct JobPaused {
  NIBBLE_EVENT(7, "job.paused", kJob);
  std::string job_id;
};
// From PAUSED: QUEUED. From PAUSING: QUEUED once released.
struct JobResumed {
  NIBBLE_EVENT(8, "job.resumed", kJob);
  std::string job_id;
};
struct JobRequeued {
  NIBBLE_EVENT(9, "job.requeued", kJob);
  std::string job_id;
  std::string why;
  int64_t not_before_us = 0;
  int64_t backoff_us = 0;
};
struct JobSucceeded {
  NIBBLE_EVENT(10, "job.succeeded", kJob);
  std::string job_id;
  Adapter adapter;  // id "" for CHECK jobs
  std::string stop_reason;
  int64_t step = 0;
};
struct JobFailed {
  NIBBLE_EVENT(11, "job.failed", kJob);
  std::string job_id;
  std::string reason;
  std::string message;
};
struct JobDeleted {
  NIBBLE_EVENT(12, "job.deleted", kFleet);
  std::string job_id;
};

struct AttemptAssigned {
  NIBBLE_EVENT(13, "attempt.assigned", kJob);
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
  NIBBLE_EVENT(14, "attempt.planned", kJob);
  std::string job_id;
  int64_t epoch = 0;
  int64_t planned_steps = 0;
  std::string report_json;
  std::string numerics_id;
  std::string numerics_class;
};
struct AttemptStarted {
  NIBBLE_EVENT(15, "attempt.started", kJob);
  std::string job_id;
  int64_t epoch = 0;
};
struct AttemptEnded {
  NIBBLE_EVENT(16, "attempt.ended", kJob);
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
  NIBBLE_EVENT(17, "attempt.release_requested", kJob);
  std::string job_id;
  int64_t epoch = 0;
  std::string why;
};
// The worker no longer lists it: its bytes are free.
struct AttemptFreed {
  NIBBLE_EVENT(18, "attempt.freed", kFleet);
  std::string job_id;
  int64_t epoch = 0;
};
struct CheckpointSaved {
  NIBBLE_EVENT(19, "checkpoint.saved", kJob);
  std::string job_id;
  Checkpoint checkpoint;
};
struct CheckpointDropped {
  NIBBLE_EVENT(20, "checkpoint.dropped", kJob);
  std::string job_id;
  int64_t epoch = 0;
  int64_t step = 0;
  std::string why;
};
struct ProgressUpdated {
  NIBBLE_EVENT(21, "progress.updated", kVolatile);
  std::string job_id;
  int64_t epoch = 0;
  Progress head;
};
struct LeaseRenewed {
  NIBBLE_EVENT(22, "lease.renewed", kVolatile);
  std::string worker_id;
  int64_t known_revision = 0;
  std::vector<ListedAttempt> attempts;
  std::vector<DeviceUse> devices;
  bool draining = false;
};
struct WorkerRegistered {
  NIBBLE_EVENT(23, "worker.registered", kFleet);
  Worker worker;
};
struct WorkerLost {
  NIBBLE_EVENT(24, "worker.lost", kFleet);
  std::string worker_id;
};
struct WorkerReturned {
  NIBBLE_EVENT(25, "worker.returned", kFleet);
  std::string worker_id;
};
struct WorkerDraining {
  NIBBLE_EVENT(26, "worker.draining", kFleet);
  std::string worker_id;
};
struct WorkerUndrained {
  NIBBLE_EVENT(27, "worker.undrained", kFleet);
  std::string worker_id;
};
struct DatasetCreated {
  NIBBLE_EVENT(28, "dataset.created", kFleet);
  Dataset dataset;
};
struct DatasetDeleted {
  NIBBLE_EVENT(29, "dataset.deleted", kFleet);
  std::string dataset_id;
};
struct ModelRegistered {
  NIBBLE_EVENT(30, "model.registered", kFleet);
  Model model;
};
struct ModelDeleted {
  NIBBLE_EVENT(31, "model.deleted", kFleet);
  std::string model_id;
};
struct AdapterDeleted {
  NIBBLE_EVENT(32, "adapter.deleted", kFleet);
  std::string adapter_id;
};
struct BlobRecorded {
  NIBBLE_EVENT(33, "blob.recorded", kFleet);
  std::string sha256;
  int64_t size_bytes = 0;
  int64_t pin_until_us = 0;
};
struct BlobForgotten {
  NIBBLE_EVENT(34, "blob.forgotten", kFleet);
  std::string sha256;
};
// The data of this job has been read by a CHECK.
struct JobChecked {
  NIBBLE_EVENT(35, "job.checked", kJob);
  std::string job_id;
  std::string report_json;
  int64_t planned_steps = 0;
};
struct RequestExpired {
  NIBBLE_EVENT(36, "request.expired", kFleet);
  std::string tenant;
  std::string request_id;
};
struct BlobPinned {
  NIBBLE_EVENT(37, "blob.pinned", kVolatile);
  std::string sha256;
  int64_t pin_until_us = 0;
};
// A worker has seen a later generation than ours: the database was rolled back. Placement stops.
struct RollbackSuspected {
  NIBBLE_EVENT(38, "rollback.suspected", kVolatile);
  std::string worker_id;
};

// Its worker cannot open it any more: it takes no work.
struct DeviceWithdrawn {
  NIBBLE_EVENT(39, "device.withdrawn", kFleet);
  std::string worker_id;
  std::string device_id;
  std::string fault;
};
struct DeviceRestored {
  NIBBLE_EVENT(40, "device.restored", kFleet);
  std::string worker_id;
  std::string device_id;
};
struct WorkerDeleted {
  NIBBLE_EVENT(42, "worker.deleted", kFleet);
  std::string worker_id;
};
// Its disk is full, and it takes no new work; or there is room again.
struct WorkerDiskFull {
  NIBBLE_EVENT(43, "worker.disk_full", kFleet);
  std::string worker_id;
  std::string why;
};
struct WorkerHasRoom {
  NIBBLE_EVENT(44, "worker.has_room", kFleet);
  std::string worker_id;
};
// The server itself did not run for so long: leases and deadlines are that much longer.
struct ServerSlept {
  NIBBLE_EVENT(45, "server.slept", kFleet);
  int64_t slept_us = 0;
};
// A project has sent the bytes of this digest, whoever sent them first.
struct BlobShown {
  NIBBLE_EVENT(41, "blob.shown", kFleet);
  std::string sha256;
  std::string project;
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

// An event that was kept, as watchers and the audit trail see it.
struct EventRecord {
  int64_t number = 0;    // dense over all, from 1
  std::string job_id;    // "" for fleet events
  int64_t sequence = 0;  // dense per job, from 1; 0 for fleet events
  int64_t unix_us = 0;
  std::string type;                         // "job.queued"
  std::string message;                      // for people
  JobState state = JobState::kUnspecified;  // the job's, after the event
  std::map<std::string, std::string> fields;
  bool operator==(const EventRecord&) const = default;
};

}  // namespace nibble::core

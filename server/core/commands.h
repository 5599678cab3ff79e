// What can be asked of the core: a Command, what Decide takes.
//
// Commands are made at the edge: they carry ids, digests and `now`; the core invents nothing.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "server/core/types.h"
#include "server/core/worker_listing.h"

namespace nibble::core {

struct PlannedAhead;  // plan.h

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
  bool all_checkpoints = false;  // of a CHECKPOINT_INVALID: no other of the job would do
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

}  // namespace nibble::core

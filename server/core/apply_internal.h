// What the parts of Apply share. Included by apply*.cc only.
#pragma once

#include <cstdint>
#include <string>

#include "server/core/apply.h"
#include "server/core/server_times.h"

namespace nibble::core {

// One event being applied. Rows are changed through its accessors, which mark them as touched.
class Applier {
 public:
  Applier(State* state, const Now& now) : state_(*state), now_(now) {}

  // The job whose event it was.
  Job& Changed(const std::string& id) { return last_ != nullptr ? *last_ : JobOf(id); }

  void operator()(const ServerStarted& e) { BeginAnew(&state_, e, now_); }
  void operator()(const ServerSlept& e) { PutOff(&state_, e, now_); }
  void operator()(const RollbackSuspected&) { state_.rollback_suspected = true; }

  // apply_jobs.cc
  void operator()(const JobQueued& e);
  void operator()(const JobUpdated& e);
  void operator()(const JobCancelling& e);
  void operator()(const JobCancelled& e);
  void operator()(const JobPausing& e);
  void operator()(const JobPaused& e);
  void operator()(const JobResumed& e);
  void operator()(const JobRequeued& e);
  void operator()(const JobSucceeded& e);
  void operator()(const JobFailed& e);
  void operator()(const JobChecked& e);
  void operator()(const JobDeleted& e);

  // apply_attempts.cc
  void operator()(const AttemptAssigned& e);
  void operator()(const AttemptPlanned& e);
  void operator()(const AttemptStarted& e);
  void operator()(const AttemptEnded& e);
  void operator()(const AttemptReleaseRequested& e);
  void operator()(const AttemptFreed& e);
  void operator()(const CheckpointSaved& e);
  void operator()(const CheckpointDropped& e);
  void operator()(const ProgressUpdated& e);

  // apply_fleet.cc
  void operator()(const WorkerRegistered& e);
  void operator()(const WorkerLost& e);
  void operator()(const WorkerReturned& e);
  void operator()(const WorkerDraining& e);
  void operator()(const WorkerUndrained& e);
  void operator()(const WorkerDiskFull& e);
  void operator()(const WorkerHasRoom& e);
  void operator()(const WorkerDeleted& e);
  void operator()(const LeaseRenewed& e);
  void operator()(const DeviceWithdrawn& e);
  void operator()(const DeviceRestored& e);

  // apply_things.cc
  void operator()(const DatasetCreated& e);
  void operator()(const DatasetDeleted& e);
  void operator()(const ModelRegistered& e);
  void operator()(const ModelDeleted& e);
  void operator()(const AdapterDeleted& e);
  void operator()(const BlobRecorded& e);
  void operator()(const BlobShown& e);
  void operator()(const BlobPinned& e);
  void operator()(const BlobForgotten& e);
  void operator()(const RequestExpired& e);

 private:
  Job& JobOf(const std::string& id);
  Attempt& AttemptOf(const std::string& job_id, int64_t epoch);
  Worker& WorkerOf(const std::string& id);
  void DesiredChanged(const std::string& worker_id);

  // apply_jobs.cc
  void SyncUnread(const Job& job);
  void Enter(Job& job, JobState to);
  void End(Job& job, JobState to);

  // apply_fleet.cc
  template <typename T>
  Worker& SetWorker(const std::string& id, T Worker::*field, const T& value);
  void SetLost(const std::string& id, int64_t us);
  void SetFault(const std::string& worker_id, const std::string& device_id, const std::string& fault);

  State& state_;
  const Now& now_;
  Job* last_ = nullptr;  // that was asked for
};

}  // namespace nibble::core

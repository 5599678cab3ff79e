// What the parts of Decide share. Included by decide*.cc only.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "server/core/decide.h"

namespace nibble::core {

// Everything one decision looks at, and the events it makes.
struct Turn {
  const State& state;
  const Now& now;
  Core& core;
  std::vector<Event> events;
  const std::string& scope;  // of the command

  // What belongs to another project does not exist for the caller.
  bool Sees(const std::string& tenant) const { return scope.empty() || scope == tenant; }
  void Emit(EventBody body) { events.push_back({now, std::move(body)}); }
  const CoreOptions& options() const { return core.options; }
};

// How an attempt ended, and what that costs its job.
struct Ending {
  AttemptState state = AttemptState::kLost;
  std::string reason;
  std::string message;
  // What happens to the job unless it is being paused or cancelled.
  enum class Then { kRequeue, kRetry, kFail } then = Then::kRequeue;
  bool own_fault = false;
  bool may_poison = false;  // counts against the job when it is young
  int64_t backoff_us = 0;   // of kRequeue
};
// The attempt's end and all that follows from it for the job: requeued, paused, cancelled or
// failed.
void EndAttempt(Turn& turn, const Job& job, const Attempt& attempt, Ending ending);

// Each returns the id of the resource it is about; see commands.h for what they mean.
using Answer = absl::StatusOr<std::string>;
Answer DecideJob(Turn& turn, const CreateJob& c);
Answer DecideJob(Turn& turn, const UpdateJob& c);
Answer DecideJob(Turn& turn, const CancelJob& c);
Answer DecideJob(Turn& turn, const PauseJob& c);
Answer DecideJob(Turn& turn, const ResumeJob& c);
Answer DecideJob(Turn& turn, const DeleteJob& c);
Answer DecideJob(Turn& turn, const ValidateDataset& c);
// What a user may write on a job, when it is made and later.
absl::Status CheckText(const std::string& display_name, int32_t priority);
absl::Status CheckLabels(const std::map<std::string, std::string>& labels);
// Queues a CHECK for the data of `job`.
void QueueCheck(Turn& turn, const Job& job);

Answer DecideReport(Turn& turn, const ReportPlan& c);
Answer DecideReport(Turn& turn, const ReportProgress& c);
Answer DecideReport(Turn& turn, const ReportCheckpoint& c);
Answer DecideReport(Turn& turn, const ReportFinished& c);
Answer DecideReport(Turn& turn, const ReportFailed& c);
Answer DecideReport(Turn& turn, const ReportCheck& c);
Answer DecideReport(Turn& turn, const ReportReleased& c);

// The attempts whose bytes a worker holds, ended ones too.
std::vector<const Attempt*> HeldBy(const State& state, const std::string& worker_id);
// Those of them that are active end as LOST.
void LoseAttempts(Turn& turn, const std::string& worker_id, const std::string& why);
// For a process whose worker id another one has taken since.
absl::Status Superseded(const std::string& worker_id, const std::string& incarnation);
Answer DecideFleet(Turn& turn, const RegisterWorker& c);
Answer DecideFleet(Turn& turn, const Synchronize& c);
Answer DecideFleet(Turn& turn, const DrainWorker& c);
Answer DecideFleet(Turn& turn, const UndrainWorker& c);
Answer DecideFleet(Turn& turn, const DeleteWorker& c);
Answer DecideFleet(Turn& turn, const Awake& c);
Answer DecideFleet(Turn& turn, const Tick& c);
Answer DecideFleet(Turn& turn, const Place& c);
Answer DecideFleet(Turn& turn, const ServerStart& c);

Answer DecideThing(Turn& turn, const CreateDataset& c);
Answer DecideThing(Turn& turn, const DeleteDataset& c);
Answer DecideThing(Turn& turn, const RegisterModel& c);
Answer DecideThing(Turn& turn, const DeleteModel& c);
Answer DecideThing(Turn& turn, const DeleteAdapter& c);
Answer DecideThing(Turn& turn, const RecordBlob& c);
Answer DecideThing(Turn& turn, const ForgetBlobs& c);

// Every file's blob is recorded with its size; BLOB_NOT_FOUND names the first that is not.
absl::Status CheckBlobs(const State& state, const std::vector<FileRef>& files,
                        std::string_view what);

}  // namespace nibble::core

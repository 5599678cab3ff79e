// What workers say about their attempts: T3 to T6, T12. Every report is fenced.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/outside_text.h"
#include "base/status.h"
#include "server/core/decide_internal.h"
#include "server/core/limits.h"

namespace nibble::core {
namespace {

struct Fenced {
  const Job* job = nullptr;
  const Attempt* attempt = nullptr;
};

absl::Status Stale(const Fence& fence, std::string_view why) {
  return Error(Reason::kStaleAttempt,
               absl::StrCat("attempt ", fence.job_id, "/", fence.epoch, " of ", fence.worker_id,
                            " may not write: ", std::string(why)))
      .With("job", fence.job_id)
      .With("epoch", absl::StrCat(fence.epoch));
}

// The attempt the fence names, whatever its state, if the writer is who it was given to.
absl::StatusOr<Fenced> Identify(const Turn& turn, const Fence& fence) {
  const Job* job = turn.state.FindJob(fence.job_id);
  if (job == nullptr) return Stale(fence, "the job does not exist");
  const auto it = job->attempts.find(fence.epoch);
  if (it == job->attempts.end()) return Stale(fence, "there was no such attempt");
  const Attempt& attempt = it->second;
  if (attempt.worker_id != fence.worker_id || attempt.incarnation != fence.incarnation) {
    return Stale(fence, "it was given to another process");
  }
  if (fence.token != AttemptToken(turn.options(), turn.state, job->id, fence.epoch, fence.worker_id,
                                  fence.incarnation)) {
    return Stale(fence, "its token is not valid");
  }
  return Fenced{job, &attempt};
}

absl::Status CheckCurrent(const Fence& fence, const Fenced& fenced) {
  if (fenced.attempt->state != AttemptState::kActive) {
    return Stale(fence,
                 absl::StrCat("it is ", std::string(AttemptStateName(fenced.attempt->state)),
                              fenced.attempt->reason.empty() ? "" : ", ", fenced.attempt->reason));
  }
  if (fenced.job->epoch != fence.epoch) return Stale(fence, "a later attempt has begun");
  return absl::OkStatus();
}

absl::StatusOr<Fenced> CheckFence(const Turn& turn, const Fence& fence) {
  ASSIGN_OR_RETURN(const Fenced fenced, Identify(turn, fence));
  RETURN_IF_ERROR(CheckCurrent(fence, fenced));
  return fenced;
}

absl::Status CheckKind(const Job& job, JobKind kind) {
  if (job.kind == kind) return absl::OkStatus();
  return Error(Reason::kSpecInvalid,
               absl::StrCat("jobs/", job.id, " is of kind ", std::string(JobKindName(job.kind)),
                            ", which does not report that"));
}

absl::Status CheckManifest(const State& state, const std::vector<FileRef>& files,
                           std::string_view what) {
  if (files.empty() || files.size() > kMaxFilesPerManifest) {
    return Error::Field(
        Reason::kSpecInvalid, std::string(what),
        absl::StrCat("has ", files.size(), " files; 1 to ", kMaxFilesPerManifest, " are allowed"));
  }
  return CheckBlobs(state, files, what);
}

const Worker& WorkerOf(const Turn& turn, const Attempt& attempt) {
  return turn.state.workers.at(attempt.worker_id);
}

std::string ClassOf(const Turn& turn, const Attempt& attempt) {
  const Worker& worker = WorkerOf(turn, attempt);
  const auto device = worker.devices.find(attempt.device_id);
  return device == worker.devices.end() ? "" : NumericsClass(device->second.profile);
}

// Keeps the newest; never fewer than two, so that there is one to fall back to.
void DropOldCheckpoints(Turn& turn, const Job& job) {
  const auto keep = static_cast<size_t>(std::max(2, job.spec.save_total_limit));
  const size_t have = job.checkpoints.size() + 1;  // with the one just saved
  for (size_t i = 0; i + keep < have; ++i) {
    turn.Emit(CheckpointDropped{job.id, job.checkpoints[i].epoch, job.checkpoints[i].step,
                                "newer ones are kept"});
  }
}

// The checkpoint that the attempt could not resume from: the one before it, or the beginning, will do. All,
// where the others would be refused like it, each after files were fetched and a retry was spent.
void DropRefused(Turn& turn, const Job& job, const Attempt& attempt, bool all) {
  for (const Checkpoint& k : job.checkpoints) {
    const bool refused = k.epoch == attempt.resume_epoch && k.step == attempt.resume_step;
    if (!refused && !all) continue;
    const char* why = refused ? "it could not be resumed from" : "it is like one that was refused";
    turn.Emit(CheckpointDropped{job.id, k.epoch, k.step, why});
  }
}

// Reasons that lie in the data or the model: every job that waits with the same data would fail
// too.
bool IsAboutData(Reason reason) {
  return reason == Reason::kNoSupervisedTokens || reason == Reason::kDatasetEmpty ||
         reason == Reason::kDatasetSchemaMismatch || reason == Reason::kChatTemplateInvalid ||
         reason == Reason::kTokenizerUnsupported;
}

// Waiting TRAIN jobs with the same data as a CHECK.
std::vector<const Job*> WaitingOn(const State& state, const Job& check) {
  std::vector<const Job*> jobs;
  const auto users = state.check_users.find(check.check_key);
  if (users == state.check_users.end()) return jobs;
  for (const std::string& id : users->second) jobs.push_back(&state.jobs.at(id));
  return jobs;
}

}  // namespace

absl::Status CheckBlobs(const State& state, const std::vector<FileRef>& files,
                        std::string_view what) {
  for (const FileRef& file : files) {
    const auto blob = state.blobs.find(file.sha256);
    if (blob == state.blobs.end() || blob->second.size_bytes != file.size_bytes) {
      return Error(Reason::kBlobNotFound,
                   absl::StrCat(std::string(what), ": the bytes of ", file.name, " (", file.sha256,
                                ", ", file.size_bytes, " bytes) are not here; upload them first"))
          .With("sha256", file.sha256);
    }
  }
  return absl::OkStatus();
}

Answer DecideReport(Turn& turn, const ReportPlan& c) {
  ASSIGN_OR_RETURN(const Fenced fenced, CheckFence(turn, c.fence));
  const Job& job = *fenced.job;
  if (c.report_json.size() > kMaxReportBytes) {
    return Error(Reason::kRequestTooLarge,
                 absl::StrCat("a plan report has at most ", kMaxReportBytes, " bytes"))
        .ToStatus();
  }
  const bool moved =
      !job.numerics_id.empty() && !c.numerics_id.empty() && c.numerics_id != job.numerics_id;
  if (moved && !job.spec.allow_numerics_change) {
    return Error(Reason::kNumericsChanged,
                 absl::StrCat("jobs/", job.id, " began with numerics ", job.numerics_id,
                              " and cannot go on with ", c.numerics_id,
                              " unless training.allow_numerics_change is set"))
        .ToStatus();
  }
  const bool known = c.planned_steps == job.progress.planned_steps &&
                     c.report_json == job.report_json && c.numerics_id == job.numerics_id;
  if (!known) {
    turn.Emit(AttemptPlanned{job.id, c.fence.epoch, c.planned_steps, c.report_json, c.numerics_id,
                             ClassOf(turn, *fenced.attempt)});
  }
  return job.id;
}

Answer DecideReport(Turn& turn, const ReportProgress& c) {
  ASSIGN_OR_RETURN(const Fenced fenced, CheckFence(turn, c.fence));
  const Job& job = *fenced.job;
  if (c.head.step <= 0) return job.id;
  if (!fenced.attempt->started) turn.Emit(AttemptStarted{job.id, c.fence.epoch});
  // An older head that came late says nothing new.
  if (c.head.step >= job.progress.step) turn.Emit(ProgressUpdated{job.id, c.fence.epoch, c.head});
  return job.id;
}

Answer DecideReport(Turn& turn, const ReportCheckpoint& c) {
  ASSIGN_OR_RETURN(const Fenced fenced, Identify(turn, c.fence));
  const Job& job = *fenced.job;
  for (const Checkpoint& known : job.checkpoints) {
    if (known.epoch == c.fence.epoch && known.step == c.step &&
        known.manifest_sha256 == c.manifest_sha256) {
      return job.id;  // a repeat
    }
  }
  RETURN_IF_ERROR(CheckCurrent(c.fence, fenced));
  RETURN_IF_ERROR(CheckKind(job, JobKind::kTrain));
  RETURN_IF_ERROR(CheckManifest(turn.state, c.files, "checkpoint"));
  const int64_t last_step = job.checkpoints.empty() ? 0 : job.checkpoints.back().step;
  if (c.step <= last_step) {
    return Error(Reason::kCheckpointInvalid, absl::StrCat("a checkpoint of step ", c.step,
                                                          " comes after that of step ", last_step))
        .ToStatus();
  }
  Checkpoint checkpoint{c.fence.epoch, c.step,          c.files, c.manifest_sha256, 0,
                        c.loss,        turn.now.unix_us};
  for (const FileRef& file : c.files) checkpoint.size_bytes += file.size_bytes;
  turn.Emit(CheckpointSaved{job.id, std::move(checkpoint)});
  DropOldCheckpoints(turn, job);
  return job.id;
}

Answer DecideReport(Turn& turn, const ReportFinished& c) {
  ASSIGN_OR_RETURN(const Fenced fenced, Identify(turn, c.fence));
  const Job& job = *fenced.job;
  const Attempt& attempt = *fenced.attempt;
  RETURN_IF_ERROR(CheckKind(job, JobKind::kTrain));
  if (attempt.state == AttemptState::kDone && job.epoch == c.fence.epoch) {
    const auto adapter = turn.state.adapters.find(job.adapter_id);
    if (adapter == turn.state.adapters.end() || adapter->second.files == c.files)
      return job.id;  // a repeat
  }
  RETURN_IF_ERROR(CheckCurrent(c.fence, fenced));
  RETURN_IF_ERROR(CheckManifest(turn.state, c.files, "result"));
  if (job.state == JobState::kCancelling) {
    EndAttempt(turn, job, attempt,
               {AttemptState::kCancelled, "cancelled", "it finished after the cancel"});
    return job.id;
  }
  Adapter adapter;
  adapter.id = job.id;
  adapter.tenant = job.tenant;
  adapter.job_id = job.id;
  adapter.model_id = job.model_id;
  if (const Model* model = turn.state.ModelOf(job)) adapter.base_digest = model->digest;
  adapter.files = c.files;
  adapter.step = c.step;
  adapter.create_unix_us = turn.now.unix_us;
  turn.Emit(AttemptEnded{job.id, attempt.epoch, AttemptState::kDone, "finished", ""});
  turn.Emit(JobSucceeded{job.id, std::move(adapter), c.stop_reason, c.step});
  return job.id;
}

Answer DecideReport(Turn& turn, const ReportFailed& c) {
  ASSIGN_OR_RETURN(const Fenced fenced, Identify(turn, c.fence));
  const Job& job = *fenced.job;
  const Attempt& attempt = *fenced.attempt;
  if (attempt.state == AttemptState::kFailed) return job.id;  // a repeat
  RETURN_IF_ERROR(CheckCurrent(c.fence, fenced));
  const Reason reason = ReasonFromName(c.reason);
  Ending ending;
  ending.state = AttemptState::kFailed;
  ending.reason =
      std::string(ReasonName(reason == Reason::kUnspecified ? Reason::kInternal : reason));
  // The cut may be inside a character, and a job whose text is no UTF-8 cannot be sent to anybody.
  ending.message = RepairUtf8(std::string_view(c.message).substr(0, kMaxReportBytes));
  if (c.neighbour_fault) {
    ending.then = Ending::Then::kRequeue;
  } else if (c.infrastructure && reason == Reason::kStorageFull) {
    // For a person to mend; a night with a full disk must not use up the retries of all that waits. Its
    // worker gets no new work until it says that there is room; others may take the job soon.
    ending.then = Ending::Then::kRequeue;
    ending.backoff_us = turn.options().backoff_min_us;
    const Worker* worker = turn.state.FindWorker(attempt.worker_id);
    if (worker != nullptr && worker->no_room.empty())
      turn.Emit(WorkerDiskFull{attempt.worker_id, ending.message});
  } else if (c.infrastructure) {
    ending.then = Ending::Then::kRetry;
    ending.own_fault = reason == Reason::kEngineFailed || reason == Reason::kDeviceFault ||
                       reason == Reason::kOutOfMemory;
    ending.may_poison = ending.own_fault;
  } else {
    ending.then = Ending::Then::kFail;
  }
  if (reason == Reason::kCheckpointInvalid && attempt.resume_step > 0) {
    DropRefused(turn, job, attempt, c.all_checkpoints);
    ending.then = Ending::Then::kRetry;
  }
  EndAttempt(turn, job, attempt, ending);
  if (job.kind == JobKind::kCheck && ending.then == Ending::Then::kFail && IsAboutData(reason)) {
    for (const Job* waiting : WaitingOn(turn.state, job)) {
      if (waiting->state != JobState::kQueued && waiting->state != JobState::kPaused) continue;
      turn.Emit(JobFailed{waiting->id, ending.reason, ending.message});
    }
  }
  return job.id;
}

Answer DecideReport(Turn& turn, const ReportCheck& c) {
  ASSIGN_OR_RETURN(const Fenced fenced, Identify(turn, c.fence));
  const Job& job = *fenced.job;
  if (fenced.attempt->state == AttemptState::kDone) return job.id;  // a repeat
  RETURN_IF_ERROR(CheckCurrent(c.fence, fenced));
  RETURN_IF_ERROR(CheckKind(job, JobKind::kCheck));
  if (c.report_json.size() > kMaxReportBytes) {
    return Error(Reason::kRequestTooLarge,
                 absl::StrCat("a check report has at most ", kMaxReportBytes, " bytes"))
        .ToStatus();
  }
  turn.Emit(JobChecked{job.id, c.report_json, c.planned_steps});
  if (job.state == JobState::kCancelling) {
    EndAttempt(turn, job, *fenced.attempt, {AttemptState::kCancelled, "cancelled", ""});
  } else {
    turn.Emit(AttemptEnded{job.id, c.fence.epoch, AttemptState::kDone, "finished", ""});
    turn.Emit(JobSucceeded{job.id, {}, "checked", 0});
  }
  for (const Job* waiting : WaitingOn(turn.state, job)) {
    if (waiting->progress.planned_steps == 0)
      turn.Emit(JobChecked{waiting->id, c.report_json, c.planned_steps});
  }
  return job.id;
}

Answer DecideReport(Turn& turn, const ReportReleased& c) {
  ASSIGN_OR_RETURN(const Fenced fenced, Identify(turn, c.fence));
  const Job& job = *fenced.job;
  const Attempt& attempt = *fenced.attempt;
  if (attempt.state == AttemptState::kReleased) return job.id;  // a repeat
  RETURN_IF_ERROR(CheckCurrent(c.fence, fenced));
  const bool asked = attempt.release_requested || job.state == JobState::kPausing;
  Ending ending;
  ending.state = AttemptState::kReleased;
  ending.reason = job.state == JobState::kPausing ? "paused"
                  : attempt.release_requested     ? attempt.release_reason
                                                  : "released by its worker";
  // Unasked for, so that a worker that cannot keep attempts does not get them again at once.
  ending.backoff_us = asked ? 0 : turn.options().backoff_min_us;
  EndAttempt(turn, job, attempt, ending);
  return job.id;
}

}  // namespace nibble::core

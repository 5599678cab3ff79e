// Commands of users about jobs that are there: T8, T11, T13.
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "server/core/decide_internal.h"
#include "server/core/views.h"

namespace nibble::core {
namespace {

absl::StatusOr<const Job*> FindJob(const Turn& turn, const std::string& id) {
  const Job* job = turn.state.FindJob(id);
  if (job == nullptr || !turn.Sees(job->tenant)) {
    return Error(Reason::kJobNotFound, absl::StrCat("jobs/", id, " does not exist"))
        .With("job", id)
        .ToStatus();
  }
  return job;
}

absl::Status WrongState(Reason reason, const Job& job, std::string_view verb) {
  const std::string state(JobStateName(job.state));
  return Error(reason,
               absl::StrCat("jobs/", job.id, " is ", state, " and cannot be ", std::string(verb)))
      .With("job", job.id)
      .With("state", state);
}

// A name and labels are for finding a job, whatever became of it; the rest says how it is to run.
absl::Status CheckStillCounts(const Job& job, const JobUpdated& updated) {
  if (!IsTerminal(job.state)) return absl::OkStatus();
  const bool priority = updated.priority != job.priority;
  if (!priority && updated.allow_numerics_change == job.spec.allow_numerics_change) return absl::OkStatus();
  const std::string state(JobStateName(job.state));
  const std::string field = priority ? "priority" : "allow_numerics_change";
  return Error(Reason::kJobNotResumable,
               absl::StrCat("jobs/", job.id, " is ", state, " and does not run again: ", field,
                            " says how it runs; of a finished job only name and labels can be changed"))
      .With("job", job.id)
      .With("state", state)
      .With("field", field);
}

}  // namespace

Answer DecideJob(Turn& turn, const UpdateJob& c) {
  ASSIGN_OR_RETURN(const Job* job, FindJob(turn, c.job_id));
  if (!c.etag.empty() && c.etag != Etag(*job)) {
    return Error(Reason::kEtagMismatch,
                 absl::StrCat("jobs/", c.job_id, " has changed: its etag is ", Etag(*job), ", not ",
                              c.etag, "; read it again"))
        .ToStatus();
  }
  JobUpdated updated{job->id, c.display_name.value_or(job->display_name),
                     c.labels.value_or(job->labels), c.priority.value_or(job->priority),
                     job->spec.allow_numerics_change || c.allow_numerics_change};
  RETURN_IF_ERROR(CheckText(updated.display_name, updated.priority));
  RETURN_IF_ERROR(CheckLabels(updated.labels));
  RETURN_IF_ERROR(CheckStillCounts(*job, updated));
  if (updated.display_name != job->display_name || updated.labels != job->labels ||
      updated.priority != job->priority ||
      updated.allow_numerics_change != job->spec.allow_numerics_change) {
    turn.Emit(std::move(updated));
  }
  return c.job_id;
}

Answer DecideJob(Turn& turn, const CancelJob& c) {
  ASSIGN_OR_RETURN(const Job* job, FindJob(turn, c.job_id));
  switch (job->state) {
    case JobState::kCancelled:
    case JobState::kCancelling:
      return c.job_id;
    case JobState::kQueued:
    case JobState::kPaused:
      turn.Emit(JobCancelled{job->id});
      return c.job_id;
    case JobState::kStarting:
    case JobState::kRunning:
    case JobState::kPausing:
      turn.Emit(JobCancelling{job->id, turn.now.monotonic_us + turn.options().cancel_force_us});
      return c.job_id;
    default:
      return WrongState(Reason::kJobNotCancellable, *job, "cancelled");
  }
}

Answer DecideJob(Turn& turn, const PauseJob& c) {
  ASSIGN_OR_RETURN(const Job* job, FindJob(turn, c.job_id));
  switch (job->state) {
    case JobState::kPaused:
      return c.job_id;
    case JobState::kQueued:
      turn.Emit(JobPaused{job->id});
      return c.job_id;
    case JobState::kPausing:
      if (job->resume_requested) turn.Emit(JobPausing{job->id});
      return c.job_id;
    case JobState::kStarting:
    case JobState::kRunning:
      turn.Emit(JobPausing{job->id});
      return c.job_id;
    default:
      return WrongState(Reason::kJobNotPausable, *job, "paused");
  }
}

Answer DecideJob(Turn& turn, const ResumeJob& c) {
  ASSIGN_OR_RETURN(const Job* job, FindJob(turn, c.job_id));
  switch (job->state) {
    case JobState::kQueued:
    case JobState::kStarting:
    case JobState::kRunning:
      return c.job_id;
    case JobState::kPausing:
      if (!job->resume_requested) turn.Emit(JobResumed{job->id});
      return c.job_id;
    case JobState::kPaused:
      turn.Emit(JobResumed{job->id});
      return c.job_id;
    default:
      return WrongState(Reason::kJobNotResumable, *job, "resumed");
  }
}

Answer DecideJob(Turn& turn, const DeleteJob& c) {
  ASSIGN_OR_RETURN(const Job* job, FindJob(turn, c.job_id));
  if (!IsTerminal(job->state)) {
    return Error(Reason::kJobNotTerminal,
                 absl::StrCat("jobs/", job->id, " is ", std::string(JobStateName(job->state)),
                              "; cancel it first"))
        .ToStatus();
  }
  for (const auto& [epoch, attempt] : job->attempts) {
    if (!attempt.holds_bytes) continue;
    return Error(Reason::kResourceInUse,
                 absl::StrCat("jobs/", job->id, " still holds bytes on ", attempt.worker_id,
                              ", which has not let go yet; try again later"))
        .ToStatus();
  }
  turn.Emit(JobDeleted{job->id});
  return c.job_id;
}

}  // namespace nibble::core

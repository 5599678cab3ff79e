#include "server/core/decide.h"

#include <algorithm>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "server/core/decide_internal.h"

namespace nibble::core {
namespace {

template <typename T, typename... Ts>
constexpr bool kIsOneOf = (std::is_same_v<T, Ts> || ...);

int64_t Backoff(const CoreOptions& options, int32_t retries) {
  int64_t backoff_us = options.backoff_min_us;
  for (int32_t i = 0; i < retries && backoff_us < options.backoff_max_us; ++i) backoff_us *= 2;
  return std::min(backoff_us, options.backoff_max_us);
}

bool IsYoung(const Turn& turn, const Attempt& attempt) {
  // start_us is unknown after a restart of the server; then nothing is held against the job.
  return attempt.start_us > 0 &&
         turn.now.monotonic_us - attempt.start_us <= turn.options().poison_window_us;
}

// A retry of the infrastructure's: spend it, or give up.
void Retry(Turn& turn, const Job& job, const AttemptEnded& ended, const std::string& worker_id) {
  std::set<std::string> poisoned = job.poisoned_workers;
  if (ended.poisons) poisoned.insert(worker_id);
  const auto limit = static_cast<size_t>(turn.options().poison_workers);
  if (poisoned.size() >= limit) {
    turn.Emit(JobFailed{job.id, std::string(ReasonName(Reason::kPoison)),
                        absl::StrCat("it took down ", poisoned.size(),
                                     " different workers soon after its start; "
                                     "last: ",
                                     ended.reason, ": ", ended.message)});
    return;
  }
  if (job.infra_retries >= turn.options().max_infra_retries) {
    turn.Emit(JobFailed{job.id, ended.reason,
                        absl::StrCat(ended.message, " (after ", job.infra_retries, " retries)")});
    return;
  }
  const int64_t backoff_us = Backoff(turn.options(), job.infra_retries);
  turn.Emit(JobRequeued{job.id, ended.reason, turn.now.monotonic_us + backoff_us, backoff_us});
}

}  // namespace

void EndAttempt(Turn& turn, const Job& job, const Attempt& attempt, Ending ending) {
  if (job.state == JobState::kCancelling) {
    ending.state = AttemptState::kCancelled;
    turn.Emit(AttemptEnded{job.id, attempt.epoch, ending.state, ending.reason, ending.message});
    turn.Emit(JobCancelled{job.id});
    return;
  }
  AttemptEnded ended{job.id, attempt.epoch, ending.state, ending.reason, ending.message};
  ended.spends_retry = ending.then == Ending::Then::kRetry;
  ended.own_fault = ending.own_fault;
  ended.poisons = ending.may_poison && IsYoung(turn, attempt);
  ended.runs_alone = ending.own_fault && job.faults + 1 >= turn.options().faults_until_alone;
  turn.Emit(ended);
  if (ending.then == Ending::Then::kFail) {
    turn.Emit(JobFailed{job.id, ending.reason, ending.message});
  } else if (job.state == JobState::kPausing && !job.resume_requested) {
    turn.Emit(JobPaused{job.id});
  } else if (ending.then == Ending::Then::kRetry) {
    Retry(turn, job, ended, attempt.worker_id);
  } else {
    turn.Emit(JobRequeued{job.id, ending.reason, turn.now.monotonic_us + ending.backoff_us,
                          ending.backoff_us});
  }
}

absl::StatusOr<Decision> Decide(const State& state, const Command& command, Core& core) {
  Turn turn{state, command.now, core, {}, command.scope};
  Answer id = std::visit(
      [&](const auto& c) -> Answer {
        using C = std::decay_t<decltype(c)>;
        if constexpr (kIsOneOf<C, CreateJob, UpdateJob, CancelJob, PauseJob, ResumeJob, DeleteJob,
                               ValidateDataset>) {
          return DecideJob(turn, c);
        } else if constexpr (kIsOneOf<C, ReportPlan, ReportProgress, ReportCheckpoint,
                                      ReportFinished, ReportFailed, ReportCheck, ReportReleased>) {
          return DecideReport(turn, c);
        } else if constexpr (kIsOneOf<C, RegisterWorker, Synchronize, DrainWorker, UndrainWorker,
                                      DeleteWorker, Awake, Tick, Place, ServerStart>) {
          return DecideFleet(turn, c);
        } else {
          return DecideThing(turn, c);
        }
      },
      command.body);
  if (!id.ok()) return id.status();
  return Decision{std::move(turn.events), *std::move(id)};
}

}  // namespace nibble::core

#include "tests/sim/mutants.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "server/core/schedule.h"
#include "server/core/schedule_sync.h"

namespace nibble::sim {
namespace {

using core::Command;
using core::Core;
using core::Decision;
using core::Event;
using core::State;

struct Row {
  Mutant mutant;
  std::string_view name;
};
constexpr Row kRows[] = {
    {Mutant::kNoFenceFinished, "no-fence-finished"},
    {Mutant::kNoFenceCheckpoint, "no-fence-checkpoint"},
    {Mutant::kNoFenceFailed, "no-fence-failed"},
    {Mutant::kCancelLosesToFinish, "cancel-loses-to-finish"},
    {Mutant::kCancelForgotten, "cancel-forgotten"},
    {Mutant::kRequestIdIgnored, "request-id-ignored"},
    {Mutant::kFreeAtEnd, "free-at-end"},
    {Mutant::kAbsenceWithoutRevision, "absence-without-revision"},
    {Mutant::kSecondAttempt, "second-attempt"},
    {Mutant::kTerminalReopens, "terminal-reopens"},
    {Mutant::kNeverFreed, "never-freed"},
    {Mutant::kCommitForgotten, "commit-forgotten"},
    {Mutant::kOverCommit, "over-commit"},
    {Mutant::kIgnoresHeld, "ignores-held"},
    {Mutant::kTooManyAttempts, "too-many-attempts"},
    {Mutant::kPlacesOnDraining, "places-on-draining"},
    {Mutant::kPlacesOnWithdrawn, "places-on-withdrawn"},
    {Mutant::kPlacesOnFullDisk, "places-on-full-disk"},
    {Mutant::kIgnoresNumerics, "ignores-numerics"},
    {Mutant::kResumesFromStart, "resumes-from-start"},
    {Mutant::kReleaseSpendsRetry, "release-spends-retry"},
    {Mutant::kEpochSkips, "epoch-skips"},
    {Mutant::kSleepCosts, "sleep-costs"},
    {Mutant::kUpdateForgotten, "update-forgotten"},
};

// The fence the job's current attempt would have.
void Forge(const State& state, const Core& core, core::Fence& fence) {
  const core::Job* job = state.FindJob(fence.job_id);
  const core::Attempt* current = job != nullptr ? job->Current() : nullptr;
  if (current == nullptr) return;
  fence.epoch = current->epoch;
  fence.worker_id = current->worker_id;
  fence.incarnation = current->incarnation;
  fence.token = core::AttemptToken(core.options, state, job->id, current->epoch, current->worker_id,
                                   current->incarnation);
}

template <typename C>
absl::StatusOr<Decision> WithoutFence(const State& state, const Command& command, Core& core) {
  Command forged = command;
  if (auto* report = std::get_if<C>(&forged.body)) Forge(state, core, report->fence);
  return core::Decide(state, forged, core);
}

absl::StatusOr<Decision> CancelLoses(const State& state, const Command& command, Core& core) {
  const auto* report = std::get_if<core::ReportFinished>(&command.body);
  if (report == nullptr || state.FindJob(report->fence.job_id) == nullptr)
    return core::Decide(state, command, core);
  State lenient = state;
  core::Job& job = lenient.jobs.at(report->fence.job_id);
  if (job.state == core::JobState::kCancelling) job.state = core::JobState::kRunning;
  return core::Decide(lenient, command, core);
}

absl::StatusOr<Decision> CancelForgotten(const State& state, const Command& command, Core& core) {
  absl::StatusOr<Decision> decision = core::Decide(state, command, core);
  if (decision.ok() && std::holds_alternative<core::CancelJob>(command.body))
    decision->events.clear();
  return decision;
}

absl::StatusOr<Decision> RequestIdIgnored(const State& state, const Command& command, Core& core) {
  Command changed = command;
  if (auto* create = std::get_if<core::CreateJob>(&changed.body)) create->request_id.clear();
  return core::Decide(state, changed, core);
}

absl::StatusOr<Decision> FreeAtEnd(const State& state, const Command& command, Core& core) {
  absl::StatusOr<Decision> decision = core::Decide(state, command, core);
  if (!decision.ok()) return decision;
  std::vector<Event> events;
  for (Event& event : decision->events) {
    if (std::holds_alternative<core::AttemptFreed>(event.body)) continue;
    const auto* ended = std::get_if<core::AttemptEnded>(&event.body);
    const core::AttemptFreed freed =
        ended ? core::AttemptFreed{ended->job_id, ended->epoch} : core::AttemptFreed{};
    const core::Now now = event.now;
    events.push_back(std::move(event));
    if (!freed.job_id.empty()) events.push_back({now, freed});
  }
  decision->events = std::move(events);
  return decision;
}

absl::StatusOr<Decision> AnyRevision(const State& state, const Command& command, Core& core) {
  Command changed = command;
  if (auto* call = std::get_if<core::Synchronize>(&changed.body)) {
    call->known_revision = std::numeric_limits<int64_t>::max();
  }
  return core::Decide(state, changed, core);
}

absl::StatusOr<Decision> SecondAttempt(const State& state, const Command& command, Core& core) {
  absl::StatusOr<Decision> decision = core::Decide(state, command, core);
  if (!decision.ok() || !std::holds_alternative<core::Place>(command.body)) return decision;
  for (const auto& [id, job] : state.jobs) {
    const core::Attempt* current = job.Current();
    if (job.state != core::JobState::kRunning || job.progress.step < 10 || current == nullptr)
      continue;
    core::AttemptAssigned again;
    again.job_id = id;
    again.epoch = job.epoch + 1;
    again.worker_id = current->worker_id;
    again.incarnation = current->incarnation;
    again.device_id = current->device_id;
    decision->events.push_back({command.now, again});
    break;
  }
  return decision;
}

absl::StatusOr<Decision> TerminalReopens(const State& state, const Command& command, Core& core) {
  const auto* pause = std::get_if<core::PauseJob>(&command.body);
  const core::Job* job = pause ? state.FindJob(pause->job_id) : nullptr;
  if (job == nullptr || !core::IsTerminal(job->state)) return core::Decide(state, command, core);
  return Decision{{{command.now, core::JobPaused{job->id}}}, job->id};
}

absl::StatusOr<Decision> NeverFreed(const State& state, const Command& command, Core& core) {
  absl::StatusOr<Decision> decision = core::Decide(state, command, core);
  if (!decision.ok()) return decision;
  std::erase_if(decision->events, [](const Event& event) {
    return std::holds_alternative<core::AttemptFreed>(event.body);
  });
  return decision;
}

// A pass that looks at a state made to look otherwise.
template <typename Change>
absl::StatusOr<Decision> PlaceSeeing(const State& state, const Command& command, Core& core,
                                     const Change& change) {
  if (!std::holds_alternative<core::Place>(command.body)) return core::Decide(state, command, core);
  State seen = state;
  change(seen);
  core::RebuildBoard(&seen, command.now.monotonic_us);
  return core::Decide(seen, command, core);
}

absl::StatusOr<Decision> OverCommit(const State& state, const Command& command, Core& core) {
  // Devices look larger than they are.
  return PlaceSeeing(state, command, core, [](State& seen) {
    for (auto& [id, worker] : seen.workers) {
      for (auto& [device_id, device] : worker.devices)
        device.capacity_bytes += device.capacity_bytes / 2;
    }
  });
}

absl::StatusOr<Decision> IgnoresHeld(const State& state, const Command& command, Core& core) {
  return PlaceSeeing(state, command, core, [](State& seen) {
    for (auto& [id, job] : seen.jobs) {
      for (auto& [epoch, attempt] : job.attempts) attempt.holds_bytes = false;
    }
  });
}

absl::StatusOr<Decision> TooManyAttempts(const State& state, const Command& command, Core& core) {
  const int32_t was = core.options.max_attempts_per_device;
  core.options.max_attempts_per_device = was + 1;
  absl::StatusOr<Decision> decision = core::Decide(state, command, core);
  core.options.max_attempts_per_device = was;
  return decision;
}

absl::StatusOr<Decision> PlacesOnDraining(const State& state, const Command& command, Core& core) {
  return PlaceSeeing(state, command, core, [](State& seen) {
    for (auto& [id, worker] : seen.workers) worker.draining = false;
  });
}

absl::StatusOr<Decision> PlacesOnWithdrawn(const State& state, const Command& command, Core& core) {
  return PlaceSeeing(state, command, core, [](State& seen) {
    for (auto& [id, worker] : seen.workers) {
      for (auto& [device_id, device] : worker.devices) device.fault.clear();
    }
  });
}

absl::StatusOr<Decision> PlacesOnFullDisk(const State& state, const Command& command, Core& core) {
  return PlaceSeeing(state, command, core, [](State& seen) {
    for (auto& [id, worker] : seen.workers) worker.no_room.clear();
  });
}

absl::StatusOr<Decision> IgnoresNumerics(const State& state, const Command& command, Core& core) {
  return PlaceSeeing(state, command, core, [](State& seen) {
    for (auto& [id, job] : seen.jobs) job.numerics_class.clear();
  });
}

// What was decided, with one kind of event changed.
template <typename E, typename Change>
absl::StatusOr<Decision> Changed(const State& state, const Command& command, Core& core,
                                 const Change& change) {
  absl::StatusOr<Decision> decision = core::Decide(state, command, core);
  if (!decision.ok()) return decision;
  for (Event& event : decision->events) {
    if (auto* e = std::get_if<E>(&event.body)) change(*e);
  }
  return decision;
}

absl::StatusOr<Decision> ResumesFromStart(const State& state, const Command& command, Core& core) {
  return Changed<core::AttemptAssigned>(state, command, core, [](core::AttemptAssigned& e) {
    e.resume_epoch = e.resume_step = 0;
  });
}

absl::StatusOr<Decision> ReleaseSpendsRetry(const State& state, const Command& command,
                                            Core& core) {
  return Changed<core::AttemptEnded>(state, command, core, [](core::AttemptEnded& e) {
    if (e.state == core::AttemptState::kReleased) e.spends_retry = true;
  });
}

absl::StatusOr<Decision> EpochSkips(const State& state, const Command& command, Core& core) {
  return Changed<core::AttemptAssigned>(state, command, core, [](core::AttemptAssigned& e) {
    if (e.epoch > 1) ++e.epoch;
  });
}

absl::StatusOr<Decision> SleepCosts(const State& state, const Command& command, Core& core) {
  return Changed<core::ServerSlept>(state, command, core, [](core::ServerSlept& e) { e.slept_us = 0; });
}

absl::StatusOr<Decision> UpdateForgotten(const State& state, const Command& command, Core& core) {
  const auto* update = std::get_if<core::UpdateJob>(&command.body);
  return Changed<core::JobUpdated>(state, command, core, [&](core::JobUpdated& e) {
    e.allow_numerics_change = update->allow_numerics_change;
  });
}

}  // namespace

std::string_view MutantName(Mutant mutant) {
  for (const Row& row : kRows) {
    if (row.mutant == mutant) return row.name;
  }
  return "none";
}

Mutant MutantFromName(std::string_view name) {
  for (const Row& row : kRows) {
    if (row.name == name) return row.mutant;
  }
  return Mutant::kNone;
}

const std::vector<Mutant>& AllMutants() {
  static const auto* all = [] {
    auto* mutants = new std::vector<Mutant>;
    for (const Row& row : kRows) mutants->push_back(row.mutant);
    return mutants;
  }();
  return *all;
}

std::function<absl::StatusOr<Decision>(const State&, const Command&, Core&)> MutantDecide(
    Mutant mutant) {
  switch (mutant) {
    case Mutant::kNone:
      return core::Decide;
    case Mutant::kNoFenceFinished:
      return WithoutFence<core::ReportFinished>;
    case Mutant::kNoFenceCheckpoint:
      return WithoutFence<core::ReportCheckpoint>;
    case Mutant::kNoFenceFailed:
      return WithoutFence<core::ReportFailed>;
    case Mutant::kCancelLosesToFinish:
      return CancelLoses;
    case Mutant::kCancelForgotten:
      return CancelForgotten;
    case Mutant::kRequestIdIgnored:
      return RequestIdIgnored;
    case Mutant::kFreeAtEnd:
      return FreeAtEnd;
    case Mutant::kAbsenceWithoutRevision:
      return AnyRevision;
    case Mutant::kSecondAttempt:
      return SecondAttempt;
    case Mutant::kTerminalReopens:
      return TerminalReopens;
    case Mutant::kNeverFreed:
      return NeverFreed;
    case Mutant::kCommitForgotten:
      return core::Decide;  // the store does it
    case Mutant::kOverCommit:
      return OverCommit;
    case Mutant::kIgnoresHeld:
      return IgnoresHeld;
    case Mutant::kTooManyAttempts:
      return TooManyAttempts;
    case Mutant::kPlacesOnDraining:
      return PlacesOnDraining;
    case Mutant::kPlacesOnWithdrawn:
      return PlacesOnWithdrawn;
    case Mutant::kPlacesOnFullDisk:
      return PlacesOnFullDisk;
    case Mutant::kIgnoresNumerics:
      return IgnoresNumerics;
    case Mutant::kResumesFromStart:
      return ResumesFromStart;
    case Mutant::kReleaseSpendsRetry:
      return ReleaseSpendsRetry;
    case Mutant::kEpochSkips:
      return EpochSkips;
    case Mutant::kSleepCosts:
      return SleepCosts;
    case Mutant::kUpdateForgotten:
      return UpdateForgotten;
  }
  return core::Decide;
}

}  // namespace nibble::sim

// Faults planted on purpose, to see that the simulator finds them. They wrap Decide; the product
// knows nothing of them.
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/core/decide.h"

namespace nibble::sim {

enum class Mutant {
  kNone,
  kNoFenceFinished,  // a result is taken from whoever sends it
  kNoFenceCheckpoint,
  kNoFenceFailed,
  kCancelLosesToFinish,     // CANCELLING does not stop a result
  kCancelForgotten,         // acknowledged, not done
  kRequestIdIgnored,        // a repeated create makes a second job
  kFreeAtEnd,               // bytes are free when the attempt ends, not when the worker lets go
  kAbsenceWithoutRevision,  // a listing that is older than the assignment counts
  kSecondAttempt,           // a RUNNING job is placed again
  kTerminalReopens,         // pausing a finished job works
  kNeverFreed,              // bytes of an attempt that has gone stay counted
  kCommitForgotten,         // answered, but not on disk
  kOverCommit,              // admission counts no step regions
  kIgnoresHeld,             // admission does not see what is there already
  kTooManyAttempts,         // more on a device than it may have
  kPlacesOnDraining,        // a worker that drains is given work
  kPlacesOnWithdrawn,       // a device that does not answer is given work
  kPlacesOnFullDisk,        // a worker without room on its disk is given work
  kIgnoresNumerics,         // a job goes on where it gets other results
  kResumesFromStart,        // the checkpoint is forgotten
  kReleaseSpendsRetry,      // being preempted or drained counts as a failure
  kEpochSkips,              // an epoch is left out
  kSleepCosts,              // a sleep of the server counts against the workers
  kUpdateForgotten,         // a later update takes back what an earlier one allowed
};
std::string_view MutantName(Mutant mutant);
Mutant MutantFromName(std::string_view name);  // kNone when unknown
const std::vector<Mutant>& AllMutants();       // but kNone

std::function<absl::StatusOr<core::Decision>(const core::State&, const core::Command&, core::Core&)>
MutantDecide(Mutant mutant);

}  // namespace nibble::sim

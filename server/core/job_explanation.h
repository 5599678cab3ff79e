// Why a job waits, device by device, and what would let it start: for `nibble why`.
//
// Pure but for the planner's memory. ExplainJob looks at what the pass looks at and is cheap enough for the
// loop's thread; WhatWouldStart compiles plans, so it runs over an excerpt, on another.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "server/core/decide.h"
#include "server/core/plan.h"
#include "server/core/queue_look.h"
#include "server/core/schedule_pass.h"
#include "server/core/state.h"

namespace nibble::core {

struct DeviceExplanation {
  std::string worker_id;
  std::string device_id;
  DeviceVerdict verdict;
  std::string refusal;  // when kNoPlan: why
  std::vector<std::string> held_by;  // "jobs/a", in order
  std::string reserved_for;          // when kReserved: the job's name
  // When the attempts there are expected to have made room; 0 = not known, as when nothing like them was
  // measured yet, or never.
  int64_t start_us = 0;
  std::vector<std::string> until;  // names of the jobs that have to end for that; empty = never
};

struct JobExplanation {
  std::string reason;    // StateReason
  int32_t position = 0;  // QueueLook::PlaceOf
  bool overdue = false;
  bool over_quota = false;
  bool backing_off = false;
  int64_t share_millionths = 0;  // of the fleet, by weight, that its project has had
  std::string before;            // name of the job before it that has a reservation; "" = none
  std::string before_at;         // worker/device
  // Where it could start soonest first, then by what is missing; of a job that waits only.
  std::vector<DeviceExplanation> devices;
};
// Jobs the look does not see are called QueueLook::kHidden; the others "jobs/a". Of the devices behind the
// first `named` no jobs are named (held_by, reserved_for, until): much time would go into that.
JobExplanation ExplainJob(const Job& job, QueueLook& look,
                          size_t named = std::numeric_limits<size_t>::max());

// A change of the spec with which the job would fit into what is free on a device now.
struct Counterfactual {
  Suggestion change;
  std::string worker_id;
  std::string device_id;
};
// The mildest first, each kind of change once; at most `limit`. `devices` are those of an explanation of
// the same state.
std::vector<Counterfactual> WhatWouldStart(const State& state, const Job& job, const Model& model,
                                           const std::vector<DeviceExplanation>& devices, size_t limit,
                                           Core& core);

}  // namespace nibble::core

#include "server/core/job_explanation.h"

#include <algorithm>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/schedule.h"
#include "server/core/schedule_fleet.h"
#include "server/core/schedule_sync.h"
#include "server/core/views.h"

namespace nibble::core {
namespace {

using Kind = DeviceVerdict::Kind;

// Devices of one kind whose free bytes a change is looked for; more would only repeat the first.
constexpr size_t kDevicesPerKind = 1;

std::string NameOf(const Board& board, int32_t device) {
  const Board::Device& d = board.devices()[static_cast<size_t>(device)];
  return absl::StrCat(board.workers()[static_cast<size_t>(d.worker)].id, "/", d.id);
}

// Time alone mends these.
bool WillPass(Kind kind) {
  return kind == Kind::kBytes || kind == Kind::kAttempts || kind == Kind::kLoad ||
         kind == Kind::kReserved;
}

// When the attempts there will have made room, one after another as they are expected to end. Returns how
// many have to end for that; 0 = no end of theirs makes room.
size_t FindStart(const QueueLook& look, const PassFleet& fleet, const Board::Bucket& bucket, const Need& need,
                 DeviceExplanation& out) {
  const std::vector<Board::EndKey>& ends = look.state().board.EndsOf(out.verdict.device);
  std::set<HoldKey> gone;
  for (size_t ended = 0; ended < ends.size(); ++ended) {
    gone.insert(ends[ended].second);
    if (!fleet.FitsWithout(out.verdict.device, gone, bucket, need)) continue;
    const bool known = std::all_of(gone.begin(), gone.end(),
                                   [&](const HoldKey& key) { return EndIsKnown(look.state(), key); });
    if (known) out.start_us = std::max(ends[ended].first, look.now_us() + 1);
    return ended + 1;
  }
  return 0;
}

// A device, and what its names are made from once it is known which devices are shown.
struct Unnamed {
  DeviceExplanation device;
  size_t ends = 0;  // of its attempts that have to end
};

Unnamed ExplainDevice(const QueueLook& look, const PassFleet& fleet, const Board::Bucket& bucket,
                      int64_t number, const DeviceVerdict& verdict) {
  const Board& board = look.state().board;
  const Board::Device& d = board.devices()[static_cast<size_t>(verdict.device)];
  Unnamed out;
  out.device.worker_id = board.workers()[static_cast<size_t>(d.worker)].id;
  out.device.device_id = d.id;
  out.device.verdict = verdict;
  if (verdict.kind == Kind::kNoPlan)
    out.device.refusal = RefusalOf(look.state(), look.core(), number, verdict.device);
  if (WillPass(verdict.kind)) {
    if (const auto need = fleet.NeedOn(bucket, verdict.device, number))
      out.ends = FindStart(look, fleet, bucket, *need, out.device);
  }
  return out;
}

void NameJobs(const QueueLook& look, const BoardExplanation& why, size_t ends, DeviceExplanation& out) {
  const Board& board = look.state().board;
  const Board::Device& d = board.devices()[static_cast<size_t>(out.verdict.device)];
  for (const int32_t index : d.held) out.held_by.push_back(look.NameOf(board.HoldAt(index).job_id));
  std::sort(out.held_by.begin(), out.held_by.end());
  if (out.verdict.kind == Kind::kReserved && why.before)
    out.reserved_for = look.NameOf(board.waiting().at(why.before->number).job_id);
  for (size_t i = 0; i < ends; ++i) {
    const HoldKey& key = board.EndsOf(out.verdict.device)[i].second;
    out.until.push_back(look.NameOf(board.FindHold(key)->job_id));
  }
}

}  // namespace

JobExplanation ExplainJob(const Job& job, QueueLook& look, size_t named) {
  JobExplanation out;
  out.reason = StateReason(job, look);
  const State& state = look.state();
  const Core& core = look.core();
  const int64_t now_us = look.now_us();
  const Board& board = state.board;
  const auto waiting = board.waiting().find(job.number);
  if (job.state != JobState::kQueued || waiting == board.waiting().end()) return out;
  out.position = look.PlaceOf(job);
  const NeedFn needs = NeedsOf(state, look.core());
  const BoardExplanation why = Explain(board, core.options, needs, now_us, core.options.lease_suspect_us,
                                       job.number, look.Reservations());
  out.overdue = why.overdue;
  out.over_quota = why.over_quota;
  out.backing_off = why.backing_off;
  const int32_t project = board.FindProject(job.tenant);
  // Of all it may be more: jobs that nobody has measured count as a whole device each.
  if (project >= 0)
    out.share_millionths = std::min<int64_t>(1'000'000, board.ShareOf(project, now_us, 0, 0));
  if (why.before) {
    out.before = look.NameOf(board.waiting().at(why.before->number).job_id);
    out.before_at = NameOf(board, why.before->device);
  }
  const Board::Bucket& bucket =
      board.buckets()[static_cast<size_t>(waiting->second.bucket)];
  const PassFleet fleet(board, core.options, needs, now_us, core.options.lease_suspect_us);
  std::vector<Unnamed> devices;
  devices.reserve(why.devices.size());
  for (const DeviceVerdict& verdict : why.devices)
    devices.push_back(ExplainDevice(look, fleet, bucket, job.number, verdict));
  const auto rank = [](const Unnamed& unnamed) {
    const DeviceExplanation& d = unnamed.device;
    const bool fits = d.verdict.kind == Kind::kFits;
    const int64_t missing_bytes = d.verdict.needed_bytes - d.verdict.free_bytes;
    return std::tuple<int, int64_t, int64_t, const std::string&, const std::string&>(
        fits ? 0 : d.start_us > 0 ? 1 : WillPass(d.verdict.kind) ? 2 : 3, fits ? 0 : d.start_us,
        missing_bytes, d.worker_id, d.device_id);
  };
  std::sort(devices.begin(), devices.end(), [&](const auto& a, const auto& b) { return rank(a) < rank(b); });
  out.devices.reserve(devices.size());
  for (Unnamed& unnamed : devices) {
    if (out.devices.size() < named) NameJobs(look, why, unnamed.ends, unnamed.device);
    out.devices.push_back(std::move(unnamed.device));
  }
  return out;
}

std::vector<Counterfactual> WhatWouldStart(const State& state, const Job& job, const Model& model,
                                           const std::vector<DeviceExplanation>& devices,
                                           size_t limit, Core& core) {
  std::vector<Counterfactual> found;
  std::map<std::string, size_t> tried;  // by kind of device
  std::set<std::string> fields;
  const Board& board = state.board;
  // The one with the most bytes free first.
  std::vector<const DeviceExplanation*> order;
  for (const DeviceExplanation& d : devices) {
    if (d.verdict.kind == Kind::kBytes || d.verdict.kind == Kind::kNever) order.push_back(&d);
  }
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return a->verdict.free_bytes > b->verdict.free_bytes;
  });
  for (const DeviceExplanation* d : order) {
    const Worker* worker = state.FindWorker(d->worker_id);
    const int32_t known = board.FindDevice(d->worker_id, d->device_id);
    if (worker == nullptr || known < 0) continue;
    const auto device = worker->devices.find(d->device_id);
    if (device == worker->devices.end()) continue;
    if (tried[ProfileKey(device->second.profile)]++ >= kDevicesPerKind) continue;
    const absl::StatusOr<PlanBytes> plan = core.planner.Plan(model, job.spec, device->second.profile);
    if (!plan.ok()) continue;
    // What is there already of its base is not asked for again.
    const Board::Device& at = board.devices()[static_cast<size_t>(known)];
    const auto& load = at.load;
    DeviceLoad there;
    for (const auto& group : load.groups) {
      there.groups.push_back({board.group_name(group.key), group.need, group.attempts, group.alone});
    }
    there.attempts = load.attempts;
    there.total_bytes = load.total_bytes;
    there.beside = load.beside;
    const int64_t shared_bytes =
        plan->TotalBytes() - there.Added(GroupKey(model, job.spec), Need(*plan));
    const int64_t room_bytes = device->second.capacity_bytes - there.total_bytes + shared_bytes;
    for (Suggestion& s : core.planner.Suggest(model, job.spec, device->second.profile, room_bytes)) {
      const absl::StatusOr<PlanBytes> changed =
          core.planner.Plan(model, s.spec, device->second.profile);
      if (!changed.ok() || !there.Fits(at.capacity(), GroupKey(model, s.spec), Need(*changed),
                                       job.run_alone, core.options))
        continue;
      if (!fields.insert(s.changes.front().field).second) continue;
      found.push_back({std::move(s), d->worker_id, d->device_id});
      if (found.size() >= limit) return found;
    }
  }
  return found;
}

}  // namespace nibble::core

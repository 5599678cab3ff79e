#include "server/core/views.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/error.h"
#include "base/status.h"
#include "server/core/schedule.h"
#include "server/core/schedule_sync.h"

namespace nibble::core {
namespace {

std::string Bytes(int64_t bytes) { return absl::StrCat(HumanBytes(bytes), " (", bytes, " bytes)"); }

std::string HeldByText(const QueueLook& look, const Board::Device& device) {
  std::vector<std::string> jobs;
  for (const int32_t index : device.held) jobs.push_back(look.state().board.HoldAt(index).job_id);
  return look.NamesOf(jobs);
}

// A start that hangs on the end of jobs nobody has measured is not told.
std::string ExpectedText(const QueueLook& look, const BoardReservation& reservation) {
  for (const HoldKey& key : reservation.gone) {
    const Board::Hold* hold = look.state().board.FindHold(key);
    if (hold != nullptr && !EndIsKnown(look.state(), key))
      return absl::StrCat("; nobody knows when: no steps of ", look.NamesOf({hold->job_id}),
                          " or its like were measured yet");
  }
  const int64_t start_us = reservation.start_us, now_us = look.now_us();
  if (start_us >= kNever || start_us <= now_us) return "";
  const int64_t seconds = (start_us - now_us) / kSecondUs + 1;
  std::string text = absl::StrCat(seconds, " s");
  if (seconds >= 180) text = absl::StrCat((seconds + 30) / 60, " min");
  if (seconds >= 10'800) text = absl::StrCat((seconds + 1'800) / 3'600, " h");
  return absl::StrCat("; expected to start in about ", text);
}

std::string NameOf(const Board& board, int32_t device) {
  const Board::Device& d = board.devices()[static_cast<size_t>(device)];
  return absl::StrCat(board.workers()[static_cast<size_t>(d.worker)].id, "/", d.id);
}

// How many devices did not take it, by why. Of a single device the bytes are told already.
std::string DevicesText(const std::vector<DeviceVerdict>& devices) {
  using Kind = DeviceVerdict::Kind;
  if (devices.size() == 1 && devices[0].kind == Kind::kAttempts)
    return "; the device has no place for another job or base";
  if (devices.size() == 1 && devices[0].kind == Kind::kLoad) return "; the device is busy";
  constexpr std::pair<Kind, std::string_view> kWords[] = {
      {Kind::kBytes, "lack free bytes"},      {Kind::kNever, "are too small"},
      {Kind::kAttempts, "take no more jobs"}, {Kind::kLoad, "are busy"},
      {Kind::kReserved, "are kept for a job before it"},
      {Kind::kNumerics, "have other numerics"},
      {Kind::kNoPlan, "do not take it"}, {Kind::kNotLive, "take no work now"}};
  if (devices.size() < 2) return "";
  std::vector<std::string> parts;
  for (const auto& [kind, words] : kWords) {
    const auto count = std::count_if(devices.begin(), devices.end(),
                                     [&](const DeviceVerdict& v) { return v.kind == kind; });
    if (count > 0) parts.push_back(absl::StrCat(count, " ", std::string(words)));
  }
  return absl::StrCat("; of ", devices.size(), " devices ", absl::StrJoin(parts, ", "));
}

std::string ShareText(const State& state, const Job& job, int64_t now_us) {
  if (state.board.projects().size() < 2) return "";
  const int32_t project = state.board.FindProject(job.tenant);
  // Jobs that nobody has measured count as a whole device each, so it may be more than all.
  const int64_t millionths =
      std::min<int64_t>(1'000'000, state.board.ShareOf(project, now_us, 0, 0));
  return absl::StrCat("; project ", job.tenant, " has had ", millionths / 10'000, ".",
                      millionths / 1'000 % 10, " % of the fleet by its weight");
}

// Devices that would be there, were they well.
std::string WithdrawnText(const State& state) {
  int64_t count = 0;
  std::string first;
  for (const auto& [worker_id, worker] : state.workers) {
    for (const auto& [id, device] : worker.devices) {
      if (worker.lost || device.fault.empty() || ++count > 1) continue;
      first = absl::StrCat("workers/", worker_id, "/", id, " (", device.fault, ")");
    }
  }
  if (count == 0) return "";
  return count == 1 ? absl::StrCat("; ", first, " is withdrawn")
                    : absl::StrCat("; ", count, " devices are withdrawn, ", first, " among them");
}

std::string NoRoomText(const State& state) {
  std::string text;
  for (const auto& [id, worker] : state.workers) {
    if (!worker.lost && !worker.no_room.empty())
      absl::StrAppend(&text, "; the disk of workers/", id, " is full (", worker.no_room, ")");
  }
  return text;
}

// Whom an operator keeps from work, and the way back.
std::string DrainingText(const State& state) {
  int64_t count = 0;
  std::string first;
  for (const auto& [id, worker] : state.workers) {
    if (worker.lost || !worker.draining || ++count > 1) continue;
    first = id;
  }
  if (count == 0) return "";
  return absl::StrCat("; workers/", first,
                      count == 1 ? " drains" : absl::StrCat(" and ", count - 1, " more drain"),
                      " (`nibble worker undrain ", first, "` ends that)");
}

// What the live devices are to a job that waits.
struct LiveDevices {
  bool any = false;
  bool numerics = false;  // one at least has those it began with
  bool fits = false;
  const DeviceVerdict* freest = nullptr;  // of those with a plan
};

LiveDevices LookAt(const Board& board, const std::vector<DeviceVerdict>& devices, const CoreOptions& options,
                   int64_t now_us) {
  using Kind = DeviceVerdict::Kind;
  LiveDevices live;
  for (const DeviceVerdict& v : devices) {
    const Board::Device& d = board.devices()[static_cast<size_t>(v.device)];
    const Board::WorkerFacts& worker = board.workers()[static_cast<size_t>(d.worker)];
    if (!worker.takes_work || now_us - worker.renewed_us > options.lease_suspect_us) continue;
    live.any = true;
    if (v.kind == Kind::kNumerics) continue;
    live.numerics = true;
    if (v.kind == Kind::kNoPlan) continue;
    live.fits = live.fits || v.kind == Kind::kFits;
    if (live.freest == nullptr || v.free_bytes > live.freest->free_bytes) live.freest = &v;
  }
  return live;
}

// Of a job that has a place kept for it: which, who is there now, and when.
std::string ReservedText(const Job& job, QueueLook& look, const BoardExplanation& why,
                         const DeviceVerdict& freest) {
  const Board& board = look.state().board;
  const BoardReservation& reservation = *why.reservation;
  const std::string holders = HeldByText(look, board.devices()[static_cast<size_t>(reservation.device)]);
  const auto there = std::find_if(why.devices.begin(), why.devices.end(),
                                  [&](const DeviceVerdict& v) { return v.device == reservation.device; });
  const int64_t total_bytes = reservation.need.TotalBytes();
  const bool shares = there != why.devices.end() && there->needed_bytes < total_bytes && !job.run_alone;
  const std::string missing =
      shares ? absl::StrCat(", of which ", Bytes(there->needed_bytes), " are not there with its base") : "";
  std::string text = absl::StrCat("needs ", Bytes(total_bytes), job.run_alone ? " alone" : "", missing,
                                  "; largest free ", Bytes(freest.free_bytes), " on ",
                                  NameOf(board, freest.device), "; waits for ",
                                  NameOf(board, reservation.device));
  if (!holders.empty()) absl::StrAppend(&text, ", held by ", holders);
  if (why.before) {
    absl::StrAppend(&text, "; ", look.NameOf(board.waiting().at(why.before->number).job_id),
                    " is before it and has ", NameOf(board, why.before->device), " reserved");
  }
  return absl::StrCat(text, ExpectedText(look, reservation));
}

// Of a job that no live device takes: one of them, why, and who else might come back.
std::string RefusedText(const Job& job, const QueueLook& look, const std::vector<DeviceVerdict>& devices) {
  const State& state = look.state();
  const auto refusing = std::find_if(devices.begin(), devices.end(), [](const DeviceVerdict& v) {
    return v.kind == DeviceVerdict::Kind::kNoPlan;
  });
  std::string text = "waits for a device that can take it";
  if (refusing != devices.end()) {
    absl::StrAppend(&text, "; ", NameOf(state.board, refusing->device), " cannot: ",
                    RefusalOf(state, look.core(), job.number, refusing->device));
  }
  return absl::StrCat(text, DevicesText(devices), DrainingText(state), NoRoomText(state),
                      WithdrawnText(state));
}

// Where a queued job that does not fit now would come nearest to fitting.
std::string WhyItWaits(const Job& job, QueueLook& look) {
  const State& state = look.state();
  const CoreOptions& options = look.core().options;
  const int64_t now_us = look.now_us();
  const Board& board = state.board;
  const BoardExplanation why = Explain(board, options, NeedsOf(state, look.core()), now_us,
                                       options.lease_suspect_us, job.number, look.Reservations());
  const LiveDevices live = LookAt(board, why.devices, options, now_us);
  if (!live.any) {
    return state.workers.empty() ? "waits for a worker: none is registered"
                                 : absl::StrCat("waits for a worker: none of those registered takes work now",
                                                DrainingText(state), NoRoomText(state), WithdrawnText(state));
  }
  if (!live.numerics) {
    return absl::StrCat(
        "waits for a device with numerics ", job.numerics_class, ", where it began; with `nibble update ",
        job.id, " --allow-numerics-change` it goes on elsewhere, with other rounding");
  }
  if (live.freest == nullptr) return RefusedText(job, look, why.devices);
  if (why.over_quota) return absl::StrCat("waits for room in the quota of project ", job.tenant);
  if (live.fits) return "fits now; starts next";
  const DeviceVerdict& freest = *live.freest;
  const std::string where = NameOf(board, freest.device);
  if (freest.lacks_host_memory) {
    return absl::StrCat("needs page-locked or other host memory beside ", where,
                        freest.kind == DeviceVerdict::Kind::kNever ? ", more than its worker offers"
                                                                   : ", which its worker's other jobs hold",
                        "; a job that is not paged or offloaded needs little", DevicesText(why.devices));
  }
  const std::string more = absl::StrCat(DevicesText(why.devices), ShareText(state, job, now_us),
                                        why.overdue ? "; overdue, so first in its project" : "",
                                        NoRoomText(state), WithdrawnText(state));
  if (why.reservation) return absl::StrCat(ReservedText(job, look, why, freest), more);
  return absl::StrCat("needs ", Bytes(freest.needed_bytes),
                      "; no live device offers that: the largest free is ", Bytes(freest.free_bytes), " on ",
                      where, more);
}

// What a job that has a device is doing there, where that is not plain.
std::string DoingText(const Job& job, const Attempt& attempt) {
  const std::string worker = absl::StrCat("workers/", attempt.worker_id);
  switch (job.state) {
    case JobState::kPausing:
      return absl::StrCat("waits for ", worker, " to save a checkpoint and let go",
                          job.resume_requested ? "; then goes back to the queue" : "");
    case JobState::kCancelling:
      return absl::StrCat("waits for ", worker, " to let go");
    default:
      break;
  }
  if (attempt.release_requested) return absl::StrCat("moves on: ", attempt.release_reason);
  if (job.state != JobState::kStarting || attempt.phase == Phase::kPausedDisk) return "";
  return absl::StrCat(worker, ": ", std::string(PhaseName(attempt.phase)));
}

// What keeps it from that, as its worker last said.
std::string TroubleText(const Attempt& attempt) {
  const std::string worker = absl::StrCat("workers/", attempt.worker_id);
  const std::string trouble = attempt.trouble.empty() ? "" : absl::StrCat(worker, ": ", attempt.trouble);
  if (attempt.phase != Phase::kPausedDisk) return trouble;
  return absl::StrCat(worker,
                      " waits for room on a full disk, its own or the server's; the job goes on by itself",
                      trouble.empty() ? "" : "; ", trouble);
}

std::string OfAttempt(const State& state, const Job& job, int64_t now_us, const Core& core) {
  const Attempt* attempt = job.Current();
  if (attempt == nullptr) return "";
  std::vector<std::string> parts = {DoingText(job, *attempt), TroubleText(*attempt)};
  const Worker* worker = state.FindWorker(attempt->worker_id);
  if (worker != nullptr && HealthOf(*worker, core.options, now_us) != WorkerHealth::kAlive)
    parts.push_back(absl::StrCat("workers/", attempt->worker_id, " is late with its renewal"));
  std::erase(parts, "");
  return absl::StrJoin(parts, "; ");
}

Want WantOf(const Job& job, const Attempt& attempt) {
  if (job.state == JobState::kCancelling) return Want::kStop;
  if (job.state == JobState::kPausing || attempt.release_requested) return Want::kRelease;
  return Want::kRun;
}

const Dataset* FindDataset(const State& state, const std::string& id) {
  const auto it = state.datasets.find(id);
  return it == state.datasets.end() ? nullptr : &it->second;
}

}  // namespace

std::string StateReason(const Job& job, QueueLook& look) {
  const State& state = look.state();
  const Core& core = look.core();
  const int64_t now_us = look.now_us();
  if (job.state == JobState::kFailed) return job.error_message;
  if (job.state == JobState::kPaused) return "paused; resume it to go on";
  if (job.state != JobState::kQueued) return OfAttempt(state, job, now_us, core);
  if (state.rollback_suspected) {
    return "nothing is placed: a worker has seen a later generation than this server's, so the "
           "database seems to have "
           "been rolled back";
  }
  if (job.not_before_us > now_us) {
    const std::string wait =
        absl::StrCat("waits ", (job.not_before_us - now_us) / kSecondUs + 1, " s before ");
    const Attempt* last = job.attempts.empty() ? nullptr : &job.attempts.rbegin()->second;
    const std::string after = last == nullptr || last->reason.empty()
                                  ? ""
                                  : absl::StrCat(" after ", last->reason,
                                                 last->message.empty() ? "" : ": ", last->message);
    if (last != nullptr && last->reason == ReasonName(Reason::kStorageFull))
      return absl::StrCat(wait, "another try", after);
    return absl::StrCat(wait, "retry ", job.infra_retries, " of ", core.options.max_infra_retries,
                        after);
  }
  const Model* model = state.ModelOf(job);
  if (model == nullptr) return "its base model is gone";
  if (job.kind == JobKind::kCheck) return "waits for a worker to read the data";
  return WhyItWaits(job, look);
}

int64_t EstimatedEndUnixUs(const Job& job, int64_t now_unix_us) {
  if (job.state != JobState::kRunning) return 0;
  const int64_t end_us = ExpectedEndUs(job, now_unix_us);
  return end_us >= kNever ? 0 : end_us;
}

DesiredSet DesiredFor(const State& state, const Worker& worker, const CoreOptions& options) {
  DesiredSet desired;
  desired.revision = worker.revision;
  const auto held = state.holding.find(worker.id);
  if (held == state.holding.end()) return desired;
  for (const AttemptKey& key : held->second) {
    const Job& job = state.jobs.at(key.first);
    const Attempt& attempt = job.attempts.at(key.second);
    if (attempt.state != AttemptState::kActive || attempt.incarnation != worker.incarnation)
      continue;
    Assignment a;
    a.job = &job;
    a.attempt = &attempt;
    a.model = state.ModelOf(job);
    a.dataset = FindDataset(state, job.dataset_id);
    if (!job.eval_dataset_id.empty()) a.eval_dataset = FindDataset(state, job.eval_dataset_id);
    for (const Checkpoint& checkpoint : job.checkpoints) {
      if (checkpoint.epoch == attempt.resume_epoch && checkpoint.step == attempt.resume_step)
        a.resume = &checkpoint;
    }
    a.want = WantOf(job, attempt);
    a.token = AttemptToken(options, state, job.id, attempt.epoch, worker.id, worker.incarnation);
    desired.assignments.push_back(std::move(a));
  }
  return desired;
}

int32_t WorkerStateNumber(const State& state, const Worker& worker, const CoreOptions& options,
                          int64_t now_us) {
  constexpr int32_t kIdle = 1, kBusy = 2, kDraining = 3, kSuspect = 4, kLost = 5;
  const WorkerHealth health = HealthOf(worker, options, now_us);
  if (health == WorkerHealth::kLost) return kLost;
  if (health == WorkerHealth::kSuspect) return kSuspect;
  if (worker.draining || worker.self_draining) return kDraining;
  const auto held = state.holding.find(worker.id);
  return held == state.holding.end() || held->second.empty() ? kIdle : kBusy;
}

std::vector<spec::DeviceProfile> KnownDevices(const State& state) {
  std::vector<spec::DeviceProfile> devices;
  for (const auto& [key, kind] : state.device_kinds) devices.push_back(kind.profile);
  return devices;
}

}  // namespace nibble::core

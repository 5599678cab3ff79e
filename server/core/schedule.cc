#include "server/core/schedule.h"

#include <algorithm>
#include <set>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "server/core/queue_look.h"
#include "server/core/schedule_sync.h"

namespace nibble::core {
namespace {

// Placements of one pass: bounds a turn of the control loop.
constexpr size_t kMaxStarts = 1'000;
// CHECKs that wait at one time because of jobs that wait.
constexpr size_t kMaxWaitingChecks = 64;

// CHECKs hold no device bytes; they go to the worker with the fewest.
void PlaceChecks(const State& state, int64_t now_us, const CoreOptions& options,
                 Schedule& schedule) {
  const auto is_due = [&](const std::string& id) {
    return state.jobs.at(id).not_before_us <= now_us;
  };
  if (std::none_of(state.queued_checks.begin(), state.queued_checks.end(), is_due)) return;
  std::set<std::pair<int32_t, std::string_view>> workers;  // CHECKs on it, id
  for (const Board::WorkerFacts& worker : state.board.workers()) {
    if (!worker.takes_work || now_us - worker.renewed_us > options.lease_suspect_us) continue;
    const auto held = state.checks_held.find(worker.id);
    const int32_t running = held == state.checks_held.end() ? 0 : held->second;
    const Worker* row = state.FindWorker(worker.id);
    if (running < options.max_checks_per_worker && row != nullptr && !row->devices.empty())
      workers.insert({running, worker.id});
  }
  for (const std::string& id : state.queued_checks) {
    if (!is_due(id)) continue;
    if (workers.empty()) return;
    const auto [running, worker_id] = *workers.begin();
    workers.erase(workers.begin());
    if (running + 1 < options.max_checks_per_worker) workers.insert({running + 1, worker_id});
    const Worker* worker = state.FindWorker(worker_id);
    schedule.placements.push_back({&state.jobs.at(id), worker, worker->devices.begin()->first, "", {},
                                   "reads the data"});
  }
}

// A job whose turn will not come soon has its data read in the meantime.
void FindUnread(const State& state, int64_t now_us, const CoreOptions& options,
                Schedule& schedule) {
  const auto& workers = state.board.workers();
  const bool live = std::any_of(workers.begin(), workers.end(), [&](const auto& worker) {
    return worker.takes_work && now_us - worker.renewed_us <= options.lease_suspect_us;
  });
  if (!live || state.unread.empty()) return;
  std::set<std::string> placed;
  for (const Placement& p : schedule.placements) placed.insert(p.job->id);
  size_t waiting = state.queued_checks.size();
  for (const auto& [key, jobs] : state.unread) {
    if (waiting >= kMaxWaitingChecks) return;
    const auto id = std::find_if(jobs.begin(), jobs.end(),
                                 [&](const std::string& j) { return placed.count(j) == 0; });
    if (id == jobs.end()) continue;
    schedule.wanting_checks.push_back(*id);
    ++waiting;
  }
}

// The plan of a waiting job for a device; nullptr when one of them is gone.
const absl::StatusOr<PlanBytes>* PlanOn(const State& state, Core& core, int64_t number,
                                        const Board::Device& d) {
  const Job* job = state.FindJob(state.board.waiting().at(number).job_id);
  const Model* model = job == nullptr ? nullptr : state.ModelOf(*job);
  const Worker* worker = state.FindWorker(state.board.workers()[static_cast<size_t>(d.worker)].id);
  if (model == nullptr || worker == nullptr) return nullptr;
  const auto device = worker->devices.find(d.id);
  if (device == worker->devices.end()) return nullptr;
  return &core.planner.PlanOf(*job, *model, device->second.profile);
}

// Devices that one job of the pass has to itself; ascending. A reservation on one is for the time after that
// job: beside it its holder would have started.
std::vector<int32_t> WholeDevices(const Board& board, const BoardSchedule& pass) {
  std::vector<int32_t> taken, whole;
  taken.reserve(pass.starts.size());
  for (const BoardSchedule::Start& start : pass.starts) taken.push_back(start.device);
  std::sort(taken.begin(), taken.end());
  for (auto it = taken.begin(); it != taken.end();) {
    const auto next = std::upper_bound(it, taken.end(), *it);
    const Board::Device& device = board.devices()[static_cast<size_t>(*it)];
    if (next - it == 1 && device.load.attempts == 0) whole.push_back(*it);
    it = next;
  }
  return whole;
}

std::string RecomputationText(const spec::PlanChoices& choices) {
  const std::string policy(spec::RecomputeName(choices.recompute));
  return choices.keep_blocks == 0 ? policy : absl::StrCat(policy, ", keep_blocks ", choices.keep_blocks);
}

// Its jobs count by their bytes: none takes more than it must.
bool HasByteQuota(const SchedulePolicy& policy, const std::string& project) {
  const auto it = policy.projects.find(project);
  return it != policy.projects.end() && it->second.quota_bytes > 0;
}

}  // namespace

DeviceLoad LoadOf(const State& state, const Worker& worker, const std::string& device_id) {
  DeviceLoad load;
  const auto held = state.holding.find(worker.id);
  if (held == state.holding.end()) return load;
  for (const AttemptKey& key : held->second) {
    const Attempt& attempt = *state.FindAttempt(key);
    if (attempt.device_id == device_id && !attempt.group.empty()) {
      load.Add(attempt.group, attempt.plan, attempt.run_alone);
    }
  }
  return load;
}

NeedFn NeedsOf(const State& state, Core& core) {
  return [&state, &core](int64_t number, const Board::Device& d) -> std::optional<Need> {
    const absl::StatusOr<PlanBytes>* plan = PlanOn(state, core, number, d);
    if (plan == nullptr || !plan->ok()) return std::nullopt;
    return Need(**plan);
  };
}

std::string RefusalOf(const State& state, Core& core, int64_t number, int32_t device) {
  const absl::StatusOr<PlanBytes>* plan =
      PlanOn(state, core, number, state.board.devices()[static_cast<size_t>(device)]);
  return plan == nullptr ? "" : std::string(plan->status().message());
}

std::map<std::pair<std::string, std::string>, int64_t> ExpectedStarts(const State& state,
                                                                      const Model& model,
                                                                      const spec::TrainSpec& spec,
                                                                      int64_t now_us, Core& core) {
  std::map<std::pair<std::string, std::string>, int64_t> starts;
  const Board& board = state.board;
  const std::string group = GroupKey(model, spec);
  for (const auto& [worker_id, worker] : state.workers) {
    if (!worker.heard || worker.lost || worker.draining || worker.self_draining || !worker.no_room.empty())
      continue;
    for (const auto& [device_id, device] : worker.devices) {
      const absl::StatusOr<PlanBytes> plan = core.planner.Plan(model, spec, device.profile);
      const int32_t known = board.FindDevice(worker_id, device_id);
      if (!plan.ok() || known < 0 || !Need(*plan).FitsAlone(Capacity(device)))
        continue;
      // By the expected ends of what is there, one after another.
      const std::vector<Board::EndKey>& held = board.EndsOf(known);
      for (size_t ended = 0; ended <= held.size(); ++ended) {
        if (ended > 0 && !EndIsKnown(state, held[ended - 1].second)) break;
        DeviceLoad rest;
        for (size_t i = ended; i < held.size(); ++i) {
          const Board::Hold& hold = *board.FindHold(held[i].second);
          rest.Add(board.group_name(hold.group), hold.need, hold.alone);
        }
        if (!rest.Fits(Capacity(device), group, *plan, false, core.options)) continue;
        starts[{worker_id, device_id}] =
            ended == 0 ? now_us : std::max(now_us, held[ended - 1].first);
        break;
      }
    }
  }
  return starts;
}

int64_t ExpectedEndUs(const Job& job, int64_t now_us) {
  const Progress& p = job.progress;
  if (p.planned_steps <= 0 || p.step_time_us <= 0) return kNever;
  const int64_t left = std::max<int64_t>(0, p.planned_steps - p.step);
  // So far away that it is no date.
  if (left > (kNever - now_us) / p.step_time_us) return kNever;
  return now_us + left * p.step_time_us;
}

Schedule MakeSchedule(const State& state, int64_t now_us, Core& core) {
  Schedule schedule;
  const Board& board = state.board;
  const BoardSchedule pass = RunPass(board, core.options, NeedsOf(state, core), now_us,
                                     core.options.lease_suspect_us, kMaxStarts);
  const std::vector<int32_t> whole = WholeDevices(board, pass);
  // By bucket and block: all jobs of a bucket need the same on all devices of a block. With a device to
  // itself what a job does depends on what that one offers, too.
  std::map<std::pair<int32_t, int32_t>, PlanBytes> plans;
  std::map<std::tuple<int32_t, int32_t, int64_t, int64_t, int64_t>, PlanBytes> alone;
  for (const BoardSchedule::Start& start : pass.starts) {
    const Board::Device& d = board.devices()[static_cast<size_t>(start.device)];
    Placement p;
    p.job = &state.jobs.at(board.waiting().at(start.number).job_id);
    p.worker = &state.workers.at(board.workers()[static_cast<size_t>(d.worker)].id);
    p.device_id = d.id;
    const Board::Bucket& bucket = board.buckets()[static_cast<size_t>(start.bucket)];
    p.group = board.group_name(bucket.group);
    const auto [plan, fresh] = plans.try_emplace({start.bucket, d.block});
    if (fresh) {
      plan->second = *core.planner.PlanOf(*p.job, *state.ModelOf(*p.job),
                                          p.worker->devices.at(d.id).profile);
    }
    p.plan = plan->second;
    if (p.job->recompute_left && std::binary_search(whole.begin(), whole.end(), start.device) &&
        !HasByteQuota(core.options, p.job->tenant)) {
      const auto [least, asked] = alone.try_emplace(
          {start.bucket, d.block, d.capacity_bytes, d.beside.pinned_bytes, d.beside.host_bytes});
      if (asked) {
        spec::DeviceProfile profile = p.worker->devices.at(d.id).profile;
        profile.capacity_bytes = d.capacity_bytes;
        least->second = core.planner.PlanAlone(*p.job, *state.ModelOf(*p.job), profile, plan->second);
      }
      p.plan = least->second;
    }
    const bool less = p.plan.choices != plan->second.choices;
    const int64_t left_bytes = start.left_bytes - (p.plan.TotalBytes() - plan->second.TotalBytes());
    p.why = absl::StrCat(start.warm ? "base resident, " : "", HumanBytes(left_bytes), " left");
    if (start.speed_percent == 100) {
      absl::StrAppend(&p.why, ", fastest device");
    } else if (start.speed_percent > 0) {
      absl::StrAppend(&p.why, ", ", start.speed_percent, " % of the fastest device's speed");
    }
    if (less) absl::StrAppend(&p.why, ", alone there: recompute ", RecomputationText(p.plan.choices));
    schedule.placements.push_back(std::move(p));
  }
  for (const BoardSchedule::Stop& stop : pass.stops) {
    const Job& claimant = state.jobs.at(board.waiting().at(stop.for_number).job_id);
    const Job& victim = state.jobs.at(board.FindHold(stop.key)->job_id);
    // It is kept with the victim, for whoever may see that one.
    schedule.preemptions.push_back(
        {victim.id, stop.key.second,
         absl::StrCat("preempted: ",
                      claimant.tenant == victim.tenant ? "jobs/" + claimant.id : QueueLook::kHidden, " ",
                      stop.why)});
  }
  PlaceChecks(state, now_us, core.options, schedule);
  FindUnread(state, now_us, core.options, schedule);
  return schedule;
}

}  // namespace nibble::core

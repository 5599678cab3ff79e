#include "server/core/schedule_sync.h"

#include <algorithm>
#include <limits>
#include <optional>

namespace nibble::core {
namespace {

// Before anything was measured: microseconds for a million multiply-adds of a parameter and a
// position; a small machine's.
constexpr int64_t kGuessPicosPerWork = 20'000;
constexpr int64_t kGuessSteps = 1'000;
constexpr int64_t kMaxStepUs = 24 * 3600 * kSecondUs;
constexpr int64_t kMaxWorkUs = int64_t{10} * 365 * 24 * 3600 * kSecondUs;
// A new measurement moves jobs in the queue when it differs by more than a quarter.
constexpr size_t kMaxReordered = 4'096;
constexpr size_t kMaxLearned = 10'000;
constexpr int32_t kLeastLoadMilli = 50;
// Steps that measure: of a plan nobody has measured, and otherwise.
constexpr int64_t kFirstSteps = 4;
constexpr int64_t kMeasuredSteps = 16;

int64_t MulDiv(int64_t a, int64_t b, int64_t divisor, int64_t bound) {
  const __int128 product = static_cast<__int128>(a) * b / std::max<int64_t>(1, divisor);
  return product > bound ? bound : static_cast<int64_t>(product);
}

// Millions of (parameter x position) per optimizer step.
int64_t StepWork(const Model& model, const spec::TrainSpec& spec) {
  const int64_t positions = int64_t{std::max(1, spec.micro_batch_size)} *
                            std::max(1, spec.gradient_accumulation_steps) *
                            std::max(1, spec.sequence_len);
  const int64_t parameters = std::max<int64_t>(1, model.config.TotalParameters());
  return std::max<int64_t>(1, MulDiv(positions, parameters, 1'000'000,
                                     std::numeric_limits<int64_t>::max() / 2));
}

int64_t StepsOf(const State& state, const Job& job) {
  if (job.progress.planned_steps > 0) return job.progress.planned_steps;
  if (job.spec.max_steps > 0) return job.spec.max_steps;
  const auto dataset = state.datasets.find(job.dataset_id);
  if (dataset == state.datasets.end() || dataset->second.rows <= 0) return kGuessSteps;
  const int64_t batch = int64_t{std::max(1, job.spec.micro_batch_size)} *
                        std::max(1, job.spec.gradient_accumulation_steps);
  const double epochs = std::clamp(job.spec.num_epochs, 0.01, 1e6);
  return std::max<int64_t>(
      1, static_cast<int64_t>(static_cast<double>(dataset->second.rows) * epochs) / batch);
}

// Workers on which it failed for what may lie with them (a disk that cannot be read, files that do not
// come): tried again there, it would soon have no retry left. The death of an engine counts only soon after
// the start (poisoned_workers), a full disk is told apart, and a checkpoint is as bad everywhere.
std::set<std::string> FailedOn(const Job& job) {
  std::set<std::string> workers = job.poisoned_workers;
  for (const auto& [epoch, attempt] : job.attempts) {
    const Reason reason = ReasonFromName(attempt.reason);
    if (attempt.state == AttemptState::kFailed && reason != Reason::kEngineFailed &&
        reason != Reason::kDeviceFault && reason != Reason::kOutOfMemory && reason != Reason::kStorageFull &&
        reason != Reason::kCheckpointInvalid)
      workers.insert(attempt.worker_id);
  }
  return workers;
}

BoardJob BoardJobOf(const State& state, const Job& job, const Model& model) {
  const Estimate estimate = Predict(state, job);
  BoardJob b;
  b.number = job.number;
  b.job_id = job.id;
  b.project = job.tenant;
  b.shape = job.plan_key;
  b.group = GroupKey(model, job.spec);
  b.base = model.digest;
  if (!job.spec.allow_numerics_change) b.numerics = job.numerics_class;
  b.alone = job.run_alone;
  b.priority = job.priority;
  b.queued_us = job.queued_us;
  b.not_before_us = job.not_before_us;
  b.work_us = estimate.left_us;
  // What was only guessed puts off no bound, and what was measured may be long by half.
  b.total_us = estimate.measured ? estimate.total_us / 10 * 7 : 0;
  b.load_milli = estimate.load_milli;
  b.own_load = job.measured.step_us > 0;
  b.started = !job.attempts.empty();
  b.avoid = FailedOn(job);
  return b;
}

// Of the device the attempt is on; where all are alike, nobody needs to look it up.
int64_t SpeedAt(const Board& board, const HoldKey& key) {
  if (!board.SpeedsDiffer()) return board.MeanMflops();
  const Board::Hold* hold = board.FindHold(key);
  if (hold == nullptr || hold->device < 0) return 0;
  return board.devices()[static_cast<size_t>(hold->device)].speed_mflops;
}

// As it would be on a device of another speed: only the turn depends on that.
Learned AtSpeed(Learned seen, int64_t mflops) {
  if (seen.speed_mflops <= 0 || mflops <= 0 || seen.speed_mflops == mflops) return seen;
  const int64_t turn_us = MulDiv(seen.step_us, seen.load_milli, 1'000, kMaxStepUs);
  const int64_t host_us = seen.step_us - turn_us;
  seen.load_milli = LoadAtSpeed(seen.load_milli, seen.speed_mflops, mflops);
  seen.step_us = std::min(kMaxStepUs, host_us + MulDiv(turn_us, seen.speed_mflops, mflops, kMaxStepUs));
  seen.speed_mflops = mflops;
  return seen;
}

// What is known of a plan on devices of that speed: measured there, else where most was measured.
std::optional<Learned> LearnedOf(const State& state, const std::string& plan_key, int64_t mflops) {
  const auto plan = state.learned.find(plan_key);
  if (plan == state.learned.end()) return std::nullopt;
  const auto there = plan->second.find(mflops);
  if (there != plan->second.end()) return there->second;
  const auto most = std::max_element(plan->second.begin(), plan->second.end(),
                                     [](auto& a, auto& b) { return a.second.jobs < b.second.jobs; });
  return AtSpeed(most->second, mflops);
}

// Steps of an attempt that took `passed_us`, each with a turn of `turn_us`, as they would be alone
// on the device. While the device has time to spare, nobody waits for it: the share it had is what
// it needs. Otherwise it may need more, and what was known before stands.
Learned Measured(Board& board, const HoldKey& key, int64_t turn_us, int64_t steps,
                 int64_t passed_us, int32_t known_milli) {
  constexpr int32_t kBusyMilli = 950;
  auto load_milli = static_cast<int32_t>(std::clamp<int64_t>(
      MulDiv(turn_us, steps * 1'000, passed_us, 1'000), kLeastLoadMilli, 1'000));
  board.SetHoldSeen(key, load_milli);
  const Board::Hold* hold = board.FindHold(key);
  if (hold != nullptr && hold->device >= 0) {
    const int32_t device = hold->device;
    const bool alone = board.devices()[static_cast<size_t>(device)].load.attempts <= 1;
    if (!alone && board.SeenLoadOf(device) >= kBusyMilli)
      load_milli = std::max(load_milli, known_milli);
  }
  return {std::min(kMaxStepUs, turn_us * 1'000 / load_milli), load_milli, 1, SpeedAt(board, key)};
}

// When somebody last came to the device of the attempt or went.
int64_t ChangedUs(const Board& board, const HoldKey& key) {
  const Board::Hold* hold = board.FindHold(key);
  if (hold == nullptr || hold->device < 0) return 0;
  return board.devices()[static_cast<size_t>(hold->device)].changed_us;
}

// What is known of a plan follows what its jobs were measured at: the mean of the first four, then
// a quarter of each further. `was` is what the job had taught before.
void Teach(const Learned& was, const Learned& now, Learned& plan) {
  constexpr int32_t kJobs = 4;
  const bool first = was.step_us == 0;
  if (first) plan.jobs = std::min(kJobs, plan.jobs + 1);
  plan.jobs = std::max(1, plan.jobs);
  plan.speed_mflops = now.speed_mflops;
  const Learned from = first ? plan : was;
  plan.step_us = std::max<int64_t>(1, plan.step_us + (now.step_us - from.step_us) / plan.jobs);
  plan.load_milli = std::clamp(plan.load_milli + (now.load_milli - from.load_milli) / plan.jobs,
                               kLeastLoadMilli, 1'000);
}

}  // namespace

Estimate Predict(const State& state, const Job& job) {
  return Predict(state, job, state.board.MeanMflops());
}

Estimate Predict(const State& state, const Job& job, int64_t mflops) {
  Estimate estimate;
  const Model* model = state.ModelOf(job);
  if (model == nullptr) return estimate;
  int64_t step_us = 0;
  const std::optional<Learned> seen = job.measured.step_us > 0 ? AtSpeed(job.measured, mflops)
                                                               : LearnedOf(state, job.plan_key, mflops);
  if (seen) {
    step_us = seen->step_us;
    estimate.load_milli = seen->load_milli;
    estimate.measured = true;
  } else {
    const int64_t picos = state.picos_per_work > 0 ? state.picos_per_work : kGuessPicosPerWork;
    step_us = MulDiv(StepWork(*model, job.spec), picos, 1'000'000, kMaxStepUs);
    if (state.picos_mflops > 0 && mflops > 0)
      step_us = MulDiv(step_us, state.picos_mflops, mflops, kMaxStepUs);
    const auto alike = state.learned_loads.find(job.model_id);
    estimate.load_milli =
        alike != state.learned_loads.end() ? alike->second : state.board.policy().default_load_milli;
  }
  const int64_t steps = StepsOf(state, job);
  estimate.total_us = MulDiv(steps, std::max<int64_t>(1, step_us), 1, kMaxWorkUs);
  estimate.left_us = MulDiv(std::max<int64_t>(0, steps - job.progress.step),
                            std::max<int64_t>(1, step_us), 1, kMaxWorkUs);
  return estimate;
}

bool EndIsKnown(const State& state, const HoldKey& key) {
  const Board::Hold* hold = state.board.FindHold(key);
  if (hold == nullptr || hold->releasing) return true;
  const Job* job = state.FindJob(hold->job_id);
  if (job == nullptr) return true;
  return (job->progress.planned_steps > 0 || job->spec.max_steps > 0) && Predict(state, *job).measured;
}

void SyncQueued(State* state, const Job& job) {
  if (job.kind != JobKind::kTrain) return;
  const Model* model = state->ModelOf(job);
  if (job.state != JobState::kQueued || model == nullptr) {
    state->board.Dequeue(job.number);
    return;
  }
  state->board.Enqueue(BoardJobOf(*state, job, *model));
}

void SyncHold(State* state, const Job& job, const Attempt& attempt, int64_t now_us) {
  const HoldKey key{job.number, attempt.epoch};
  if (!attempt.holds_bytes || attempt.group.empty()) {
    state->board.RemoveHold(key, now_us);
    return;
  }
  const Board& board = state->board;
  const int32_t device =
      board.SpeedsDiffer() ? board.FindDevice(attempt.worker_id, attempt.device_id) : -1;
  const Estimate estimate =
      device < 0 ? Predict(*state, job)
                 : Predict(*state, job, board.devices()[static_cast<size_t>(device)].speed_mflops);
  BoardHold h;
  h.key = key;
  h.job_id = job.id;
  h.project = job.tenant;
  h.worker_id = attempt.worker_id;
  h.device_id = attempt.device_id;
  h.group = attempt.group;
  h.need = attempt.plan;
  h.alone = attempt.run_alone;
  h.priority = job.priority;
  h.start_us = attempt.start_us > 0 ? attempt.start_us : now_us;
  h.work_us = estimate.left_us;
  h.load_milli = estimate.load_milli;
  h.releasing = attempt.state != AttemptState::kActive || attempt.release_requested ||
                job.state == JobState::kPausing || job.state == JobState::kCancelling;
  state->board.AddHold(h, now_us);
}

void SyncEstimate(State* state, const Job& job, int64_t now_us) {
  if (job.state == JobState::kQueued) return SyncQueued(state, job);
  const Attempt* attempt = job.Current();
  if (attempt == nullptr || attempt->group.empty()) return;
  const HoldKey key{job.number, attempt->epoch};
  const Estimate estimate = Predict(*state, job, SpeedAt(state->board, key));
  state->board.SetHoldWork(key, estimate.left_us, estimate.load_milli, now_us);
}

void SyncWorker(State* state, const Worker& worker) {
  Board& board = state->board;
  board.PutWorker({worker.id, worker.heard && !worker.lost && !worker.draining &&
                                  !worker.self_draining && worker.no_room.empty(),
                   worker.renewed_us});
  bool put = false;
  for (const std::string& id : board.DevicesOf(worker.id)) {
    const auto device = worker.devices.find(id);
    if (device != worker.devices.end() && device->second.fault.empty()) continue;
    board.RemoveDevice(worker.id, id);
    put = true;
  }
  for (const auto& [id, device] : worker.devices) {
    if (!device.fault.empty()) continue;
    const int32_t known = board.FindDevice(worker.id, id);
    const std::string profile = ProfileKey(device.profile);
    if (known >= 0) {
      const Board::Device& d = board.devices()[static_cast<size_t>(known)];
      const Board::Block& block = board.blocks()[static_cast<size_t>(d.block)];
      if (d.capacity() == Capacity(device) && block.profile == profile &&
          d.speed_mflops == SpeedOf(device.profile))
        continue;
    }
    board.PutDevice(worker.id, id, profile, NumericsClass(device.profile), device.capacity_bytes,
                    Capacity(device).beside, SpeedOf(device.profile));
    board.SetWarm(worker.id, id, device.resident_bases);
    put = true;
  }
  const auto held = state->holding.find(worker.id);
  if (!put || held == state->holding.end()) return;
  for (const AttemptKey& key : held->second) {
    const Job& job = state->jobs.at(key.first);
    SyncHold(state, job, job.attempts.at(key.second), worker.renewed_us);
  }
}

void RebuildBoard(State* state, int64_t now_us) {
  const SchedulePolicy policy = state->board.policy();
  state->board = {};
  state->board.SetPolicy(policy);
  for (const auto& [id, worker] : state->workers) SyncWorker(state, worker);
  for (const auto& [id, job] : state->jobs) {
    if (job.state == JobState::kQueued) SyncQueued(state, job);
    for (const auto& [epoch, attempt] : job.attempts) {
      if (attempt.holds_bytes && !attempt.group.empty()) SyncHold(state, job, attempt, now_us);
    }
  }
}

void Learn(State* state, Job& job, Attempt& attempt, const Progress& head, int64_t now_us) {
  const int64_t steps = head.step - attempt.seen_step;
  const int64_t passed_us = now_us - attempt.seen_us;
  const HoldKey key{job.number, attempt.epoch};
  const bool first = attempt.seen_us == 0 || attempt.seen_us < ChangedUs(state->board, key);
  // The step in hand when either head was sent is not counted: a few steps measure nothing.
  const Estimate known = Predict(*state, job, SpeedAt(state->board, key));
  if (!first && steps < (known.measured ? kMeasuredSteps : kFirstSteps)) return;
  attempt.seen_step = head.step;
  attempt.seen_us = now_us;
  if (first || passed_us <= 0 || head.step_time_us <= 0) return;
  const Model* model = state->ModelOf(job);
  if (model == nullptr) return;
  const Learned now = Measured(state->board, key, std::min(head.step_time_us, kMaxStepUs), steps,
                               passed_us, known.load_milli);
  if (state->learned.size() >= kMaxLearned && state->learned.count(job.plan_key) == 0)
    state->learned.clear();
  Learned& plan = state->learned[job.plan_key][now.speed_mflops];
  const Learned was = plan;
  // What it taught on another device stays with that one.
  Teach(job.measured.speed_mflops == now.speed_mflops ? job.measured : Learned{}, now, plan);
  job.measured = now;
  state->learned_loads[job.model_id] = plan.load_milli;
  state->picos_per_work = std::max<int64_t>(
      1, MulDiv(now.step_us, 1'000'000, StepWork(*model, job.spec), kMaxStepUs * 1'000));
  state->picos_mflops = now.speed_mflops;
  if (was.load_milli != plan.load_milli) {
    const Learned on_most = *LearnedOf(*state, job.plan_key, state->board.MeanMflops());
    state->board.SetShapeLoad(job.plan_key, on_most.load_milli);
  }
  if (std::abs(was.step_us - plan.step_us) <= was.step_us / 4) return;
  for (const int64_t number : state->board.WaitingOfShape(job.plan_key, kMaxReordered)) {
    SyncQueued(state, state->jobs.at(state->board.waiting().at(number).job_id));
  }
}

}  // namespace nibble::core

#include "server/control_loop.h"

#include <algorithm>
#include <future>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "server/core/apply.h"
#include "server/core/schedule_sync.h"

namespace nibble {
namespace {

// What rows that were read again take over from those they replace. Revisions go up, so that whatever workers
// were told from now on counts as newer; attempts count as told from there on.
void CarryWorker(const core::Worker* before, int64_t revision_of_new, const core::Now& now,
                 core::Worker& worker) {
  worker.stored_seen_unix_us = worker.last_seen_unix_us;
  if (before != nullptr) worker.last_seen_unix_us = before->last_seen_unix_us;
  worker.renewed_us = before != nullptr ? before->renewed_us : now.monotonic_us;
  worker.heard = before != nullptr && before->heard;
  worker.self_draining = before != nullptr && before->self_draining;
  worker.revision = (before != nullptr ? before->revision : revision_of_new) + 1;
  if (before == nullptr) return;
  for (auto& [device_id, device] : worker.devices) {
    const auto was = before->devices.find(device_id);
    if (was == before->devices.end()) continue;
    device.used_bytes = was->second.used_bytes;
    device.resident_bases = was->second.resident_bases;
  }
}

void CarryJob(const core::Job* before, const core::State& fresh, const core::CoreOptions& options,
              const core::Now& now, core::Job& job) {
  job.queued_us = before != nullptr
                      ? before->queued_us
                      : now.monotonic_us - std::max<int64_t>(0, now.unix_us - job.queued_unix_us);
  job.not_before_us = before != nullptr && before->state == job.state ? before->not_before_us : 0;
  job.cancel_deadline_us = now.monotonic_us + options.cancel_force_us;
  if (before != nullptr) job.measured = before->measured;
  // Rows are not written for every step, and nobody tells a step twice.
  if (before != nullptr && before->epoch == job.epoch && before->progress.step >= job.progress.step) {
    const int64_t planned_steps = job.progress.planned_steps;
    job.progress = before->progress;
    job.progress.planned_steps = planned_steps;
  }
  for (auto& [epoch, attempt] : job.attempts) {
    const auto worker = fresh.workers.find(attempt.worker_id);
    if (worker != fresh.workers.end()) attempt.assign_revision = worker->second.revision;
    if (before == nullptr) continue;
    const auto was = before->attempts.find(epoch);
    if (was != before->attempts.end()) attempt.start_us = was->second.start_us;
  }
}

// Everything was read again.
void CarryOver(const core::State& old, const core::CoreOptions& options, const core::Now& now,
               core::State& fresh) {
  fresh.rollback_suspected = old.rollback_suspected;
  fresh.gone_revision = old.gone_revision;
  const int64_t revision = core::RevisionOfNew(fresh);
  for (auto& [id, worker] : fresh.workers) CarryWorker(old.FindWorker(id), revision, now, worker);
  for (auto& [id, job] : fresh.jobs) CarryJob(old.FindJob(id), fresh, options, now, job);
  fresh.learned = old.learned;
  fresh.learned_loads = old.learned_loads;
  fresh.picos_per_work = old.picos_per_work;
  fresh.picos_mflops = old.picos_mflops;
  fresh.board.SetPolicy(options);
  core::RebuildBoard(&fresh, now.monotonic_us);
  for (auto& [digest, blob] : fresh.blobs)
    blob.pin_until_us = now.monotonic_us + options.blob_pin_us;
}

// The rows that are named, as they are now.
core::State RowsOf(const core::Touched& touched, const core::State& state) {
  core::State rows;
  for (const std::string& id : touched.workers) {
    if (const core::Worker* worker = state.FindWorker(id)) rows.workers[id] = *worker;
  }
  const auto keep = [&](const std::string& id) {
    const core::Job* job = state.FindJob(id);
    if (job != nullptr) rows.jobs.emplace(id, *job);
  };
  for (const std::string& id : touched.jobs) keep(id);
  for (const core::AttemptKey& key : touched.attempts) keep(key.first);
  return rows;
}

constexpr int64_t kPrunedAtOnce = 2'000;
constexpr int64_t kPruneEveryUs = 600 * core::kSecondUs;

// A generation begins with a server that starts. Whoever is not of the one on the disk has no say there, nor
// a state that is true.
absl::Status CheckGeneration(int64_t on_disk, int64_t mine) {
  if (on_disk == mine) return absl::OkStatus();
  return Error(Reason::kStoreUnavailable, absl::StrCat("another server, of generation ", on_disk,
                                                       ", writes to this database; this one is of ", mine,
                                                       " and must stop"));
}

absl::Status Unavailable() {
  return Error(Reason::kStoreUnavailable,
               "the server's database cannot be written or read now; try again");
}

}  // namespace

ControlLoop::ControlLoop(Options options, core::SpecFunctions functions, store::Store* store,
                         WatchHub* hub, const Clock* clock)
    : options_(std::move(options)),
      core_{options_.core, core::Planner(std::move(functions))},
      store_(store),
      hub_(hub),
      clock_(clock),
      mailbox_(core::kMailboxCapacity) {}

ControlLoop::~ControlLoop() { Stop(); }

absl::Status ControlLoop::Start() {
  now_ = ReadClock();
  ASSIGN_OR_RETURN(state_, store_->Load());
  if (options_.on_load) options_.on_load(state_);
  std::vector<core::EventRecord> records;
  RETURN_IF_ERROR(
      Step(core::ServerStart{options_.timeline, options_.new_timeline}, "", &records).status());
  RETURN_IF_ERROR(store_->Commit(state_, records));
  state_.touched = {};
  if (options_.on_commit) options_.on_commit(records, state_);
  next_tick_us_ = now_.monotonic_us + options_.tick_us;
  serving_ = true;
  return absl::OkStatus();
}

void ControlLoop::RunThread() {
  thread_ = std::thread([this] {
    while (!stopping_ || mailbox_.size() > 0) {
      const int64_t wait_us = NextDueUs() - clock_->NowMonotonicUs();
      RunOnce(std::clamp<int64_t>(wait_us, 0, 1'000'000));
    }
  });
}

void ControlLoop::Stop() {
  // In this order: whatever was let in is there when the thread looks for the last time.
  mailbox_.Close();
  stopping_ = true;
  const bool ran = thread_.joinable();
  if (ran) thread_.join();
  while (serving_ && mailbox_.size() > 0) RunOnce(0);
  if (ran && serving_) KeepSeen();
  ReleaseHeld(true);
}

bool ControlLoop::Post(core::CommandBody body, Reply reply, std::string scope) {
  Item item;
  item.command = std::move(body);
  item.scope = std::move(scope);
  item.reply = std::move(reply);
  return mailbox_.Post(std::move(item));
}

bool ControlLoop::PostSynchronize(core::Synchronize request, Reply reply) {
  Item item;
  // A worker that leaves, and has nothing any more, waits for nothing but this answer.
  item.hold = !request.draining || !request.attempts.empty();
  item.worker_id = request.worker_id;
  item.incarnation = request.incarnation;
  item.known_revision = request.known_revision;
  item.command = std::move(request);
  item.reply = std::move(reply);
  return mailbox_.Post(std::move(item));
}

bool ControlLoop::Read(std::function<void(const Outcome&)> read) {
  Item item;
  item.read = std::move(read);
  return mailbox_.Post(std::move(item));
}

absl::StatusOr<std::string> ControlLoop::Call(core::CommandBody body) {
  // Shared, so that an answer after the loop was destroyed would still find it.
  auto promise = std::make_shared<std::promise<absl::StatusOr<std::string>>>();
  auto future = promise->get_future();
  const bool posted = Post(std::move(body), [promise](absl::Status status, const Outcome& outcome) {
    if (status.ok()) {
      promise->set_value(outcome.id);
    } else {
      promise->set_value(std::move(status));
    }
  });
  if (posted) return future.get();
  if (mailbox_.closed())
    return Error(Reason::kShuttingDown, "the server is shutting down").ToStatus();
  return Error(Reason::kQueueFull, "too many requests wait for the server; try again").ToStatus();
}

bool ControlLoop::ReadAndWait(const std::function<void(const Outcome&)>& read) {
  auto promise = std::make_shared<std::promise<void>>();
  auto future = promise->get_future();
  if (!Read([promise, &read](const Outcome& outcome) {
        read(outcome);
        promise->set_value();
      })) {
    return false;
  }
  future.wait();
  return true;
}

// An orderly end is a reason to write when workers were last seen. What cannot be written is minutes old.
void ControlLoop::KeepSeen() {
  for (const auto& [id, worker] : state_.workers) {
    if (worker.last_seen_unix_us != worker.stored_seen_unix_us) state_.touched.workers.insert(id);
  }
  if (!state_.touched.Empty()) (void)store_->Commit(state_, {});
  state_.touched = {};
}

int64_t ControlLoop::NextDueUs() const {
  return held_until_.empty() ? next_tick_us_ : std::min(next_tick_us_, held_until_.begin()->first);
}

absl::StatusOr<std::string> ControlLoop::Step(core::CommandBody body, std::string scope,
                                              std::vector<core::EventRecord>* records) {
  ASSIGN_OR_RETURN(core::Decision decision,
                   options_.decide(state_, {now_, std::move(body), std::move(scope)}, core_));
  for (const core::Event& event : decision.events) core::Apply(&state_, event, records);
  return std::move(decision.id);
}

std::vector<ControlLoop::Item> ControlLoop::TakeBatch(int64_t wait_us) {
  std::vector<Item> items = mailbox_.Take(core::kMaxBatchCommands, wait_us);
  if (items.empty() || options_.batch_us <= 0 || items.size() >= core::kMaxBatchCommands)
    return items;
  // A little company makes one transaction of many.
  std::vector<Item> more = mailbox_.Take(core::kMaxBatchCommands - items.size(), options_.batch_us);
  std::move(more.begin(), more.end(), std::back_inserter(items));
  return items;
}

void ControlLoop::RunOnce(int64_t wait_us) {
  std::vector<Item> items = TakeBatch(wait_us);
  const int64_t last_us = std::exchange(now_, ReadClock()).monotonic_us;
  if (!serving_) {
    const absl::Status loaded = Reload();
    serving_ = loaded.ok();
  }
  std::vector<core::EventRecord> records;
  std::vector<Answer> answers;
  answers.reserve(items.size());
  // Turns are never further apart than a tick.
  const int64_t slept_us = now_.monotonic_us - last_us;
  if (serving_ && options_.core.sleep_us > 0 && slept_us >= options_.core.sleep_us)
    CHECK_OK(Step(core::Awake{slept_us}, "", &records).status());
  for (Item& item : items) {
    Answer answer;
    if (item.command && serving_) {
      absl::StatusOr<std::string> id = Step(std::move(*item.command), std::move(item.scope), &records);
      if (id.ok()) {
        answer.id = *std::move(id);
      } else {
        answer.status = id.status();
      }
    } else if (item.command) {
      answer.status = Unavailable();
    }
    answer.item = std::move(item);
    answers.push_back(std::move(answer));
  }
  const bool ticks = now_.monotonic_us >= next_tick_us_;
  // Neither can be refused. Only what is recorded can make room, or want it; time passes by ticks.
  if (serving_ && ticks) CHECK_OK(Step(core::Tick{}, "", &records).status());
  if (serving_ && (ticks || !records.empty())) CHECK_OK(Step(core::Place{}, "", &records).status());
  if (ticks) next_tick_us_ = now_.monotonic_us + options_.tick_us;
  Settle(answers, records);
  if (ticks && serving_) PruneEvents();
}

// A little at a time, so that nobody waits for it. What fails now is tried again: nothing else depends on it.
void ControlLoop::PruneEvents() {
  if (options_.retain_events_us <= 0 || now_.monotonic_us < next_prune_us_) return;
  const auto removed =
      store_->PruneEvents(now_.unix_us - options_.retain_events_us, kPrunedAtOnce);
  const bool more = removed.ok() && *removed >= kPrunedAtOnce;
  next_prune_us_ = now_.monotonic_us + (more ? 0 : kPruneEveryUs);
}

void ControlLoop::Settle(std::vector<Answer>& answers,
                         const std::vector<core::EventRecord>& records) {
  const absl::Status committed = serving_ ? Commit(records) : absl::OkStatus();
  if (!committed.ok()) {
    for (Answer& answer : answers) {
      if (answer.item.command) answer.status = committed;
    }
  }
  for (Answer& answer : answers) AnswerOne(answer);
  if (committed.ok() && !records.empty()) {
    hub_->PublishEvents(records);
    if (options_.on_commit) options_.on_commit(records, state_);
  }
  ReleaseHeld(false);
}

absl::Status ControlLoop::Commit(const std::vector<core::EventRecord>& records) {
  if (records.empty() && state_.touched.Empty()) return absl::OkStatus();
  state_.touched.workers.merge(state_.touched.seen);
  absl::Status status = store_->Commit(state_, records);
  if (status.ok()) {
    state_.touched = {};
    return status;
  }
  // Nobody knows what is on disk now; events may be there that were never published.
  hub_->CutAll();
  absl::Status recovered = Recover();
  if (!recovered.ok()) recovered = Reload();
  if (!recovered.ok()) {
    serving_ = false;
    Fatal(recovered);
  }
  return status;
}

// Reads again what the commit was to write: the rest is on the disk as it is here.
absl::Status ControlLoop::Recover() {
  const core::Touched touched = state_.touched;
  const core::State before = RowsOf(touched, state_);
  const int64_t generation = state_.generation;
  absl::Status reread = store_->Reread(state_);
  if (reread.ok()) reread = CheckGeneration(state_.generation, generation);
  state_.generation = generation;
  if (!reread.ok()) {  // Reload takes over from these
    state_.workers.insert(before.workers.begin(), before.workers.end());
    state_.jobs.insert(before.jobs.begin(), before.jobs.end());
  }
  for (auto& [id, worker] : state_.workers) {
    if (touched.workers.contains(id)) {
      CarryWorker(before.FindWorker(id), core::RevisionOfNew(state_), now_, worker);
    } else {
      ++worker.revision;
    }
  }
  std::set<std::string> jobs = touched.jobs;
  for (const core::AttemptKey& key : touched.attempts) jobs.insert(key.first);
  for (const std::string& id : jobs) {
    const auto job = state_.jobs.find(id);
    if (job != state_.jobs.end()) CarryJob(before.FindJob(id), state_, options_.core, now_, job->second);
  }
  RETURN_IF_ERROR(reread);
  for (const std::string& digest : touched.blobs) {
    const auto blob = state_.blobs.find(digest);
    if (blob != state_.blobs.end()) blob->second.pin_until_us = now_.monotonic_us + options_.core.blob_pin_us;
  }
  state_.BuildIndexes();
  core::RebuildBoard(&state_, now_.monotonic_us);
  for (const auto& [worker, held] : held_) state_.revised.insert(worker);
  return absl::OkStatus();
}

absl::Status ControlLoop::Reload() {
  ASSIGN_OR_RETURN(core::State fresh, store_->Load());
  RETURN_IF_ERROR(CheckGeneration(fresh.generation, state_.generation));
  CarryOver(state_, options_.core, now_, fresh);
  for (const auto& [worker, held] : held_) fresh.revised.insert(worker);
  state_ = std::move(fresh);
  return absl::OkStatus();
}

void ControlLoop::Fatal(const absl::Status& status) {
  if (options_.on_fatal) options_.on_fatal(status);
}

void ControlLoop::AnswerOne(Answer& answer) {
  const Outcome outcome{state_, core_, now_, answer.id};
  if (answer.item.read) {
    answer.item.read(outcome);
  } else if (answer.item.hold && answer.status.ok()) {
    Hold(answer);
  } else if (answer.item.reply) {
    answer.item.reply(answer.status, outcome);
  }
}

void ControlLoop::Hold(Answer& answer) {
  const Item& item = answer.item;
  Held held{std::move(answer.item.reply), item.incarnation, item.known_revision,
            now_.monotonic_us + options_.core.synchronize_hold_us};
  Release(item.worker_id);  // one call per worker: the older one was given up
  state_.revised.insert(item.worker_id);  // it may be out of date already
  held_until_.insert({held.deadline_us, item.worker_id});
  held_.emplace(item.worker_id, std::move(held));
}

void ControlLoop::AnswerHeld(const std::string& worker_id, const Held& held) {
  const core::Worker* worker = state_.FindWorker(worker_id);
  absl::Status status;
  if (worker == nullptr || worker->incarnation != held.incarnation) {
    // What the worker should run now is none of this process's business.
    status = Error(Reason::kStaleAttempt, "another process has registered as workers/" + worker_id);
  }
  held.reply(status, {state_, core_, now_, worker_id});
}

void ControlLoop::Release(const std::string& worker_id) {
  const auto node = held_.extract(worker_id);
  if (node.empty()) return;
  held_until_.erase({node.mapped().deadline_us, worker_id});
  AnswerHeld(worker_id, node.mapped());
}

// Those whose worker's set is another one, and those whose time has come; nobody looks at the others.
void ControlLoop::ReleaseHeld(bool all) {
  for (const std::string& id : std::exchange(state_.revised, {})) {
    const auto held = held_.find(id);
    if (held == held_.end()) continue;
    const core::Worker* worker = state_.FindWorker(id);
    if (worker == nullptr || worker->revision != held->second.known_revision) Release(id);
  }
  while (!held_until_.empty() && (all || held_until_.begin()->first <= now_.monotonic_us))
    Release(std::string(held_until_.begin()->second));
}

}  // namespace nibble

#include "server/control_loop.h"

#include <algorithm>
#include <future>
#include <utility>

#include "base/error.h"
#include "base/status.h"
#include "server/core/apply.h"

namespace nibble {
namespace {

constexpr int64_t kPrunedAtOnce = 2'000;
constexpr int64_t kPruneEveryUs = 600 * core::kSecondUs;

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
  ASSIGN_OR_RETURN(state_, store_->Load());
  if (options_.on_load) options_.on_load(state_);
  now_ = ReadClock();  // leases begin now, however long that took
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

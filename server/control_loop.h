// The single writer: the only thread that owns the state.
//
// One turn: take a batch of commands, Decide and Apply each, place what can be placed, Commit it
// all in one transaction, and only then answer, run effects and publish. A command that is refused
// changes nothing. When a Commit fails the state is thrown away and loaded again before anybody is
// answered.
//
// Post, Call and Read are thread-safe. Replies and Read closures run on the loop's thread: they may
// look at the State they are given, and must return soon. RunOnce is a whole turn and can be driven
// by a test or the simulator without any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/mailbox.h"
#include "server/core/decide.h"
#include "server/core/limits.h"
#include "server/core/state.h"
#include "server/core/views.h"
#include "server/store/store.h"
#include "server/watch_hub.h"

namespace nibble {

class ControlLoop {
 public:
  // What was committed; `state` is valid during the callback only. For CreateJob and the like `id`
  // names the resource. The loop's Core is there for the views.
  struct Outcome {
    const core::State& state;
    core::Core& core;
    core::Now now;
    std::string id;
  };
  using Reply = std::function<void(absl::Status, const Outcome&)>;

  struct Options {
    core::CoreOptions core;
    int64_t batch_us = 2'000;  // waits this long for company once a command is there
    int64_t tick_us = 1'000'000;
    int64_t retain_events_us = 0;  // events of before are forgotten; 0 = never
    std::string timeline;       // a fresh UUID, for a new database
    bool new_timeline = false;  // after a restore
    // What Start has loaded, before anything is decided: it may bring up to date what rows do not tell.
    std::function<void(core::State&)> on_load;
    // After each commit, on the loop's thread: logs, metrics.
    std::function<void(const std::vector<core::EventRecord>&, const core::State&)> on_commit;
    // Called when neither Commit nor Load works: the process should end (exit code 74).
    std::function<void(absl::Status)> on_fatal;
    // What decides; the simulator wraps it to plant faults.
    std::function<absl::StatusOr<core::Decision>(const core::State&, const core::Command&,
                                                 core::Core&)>
        decide = core::Decide;
  };

  ControlLoop(Options options, core::SpecFunctions functions, store::Store* store, WatchHub* hub,
              const Clock* clock);
  ~ControlLoop();

  // Loads the state and commits ServerStart. Before anything else.
  absl::Status Start();
  // Runs turns on a thread of its own until Stop.
  void RunThread();
  // No more commands; what is queued is decided, held calls are answered, the thread ends.
  void Stop();

  // The command, with `now` set by the loop; `reply` is called exactly once, after the commit.
  // False (and no reply) when the mailbox is full or closed: answer QUEUE_FULL or SHUTTING_DOWN.
  // `scope` is the project the caller is confined to; "" = none.
  [[nodiscard]] bool Post(core::CommandBody body, Reply reply, std::string scope = "");
  // Post and wait. QUEUE_FULL and SHUTTING_DOWN come back as errors. Not from the loop's thread.
  absl::StatusOr<std::string> Call(core::CommandBody body);
  // Runs `read` on the loop's thread, after everything posted before it was committed.
  [[nodiscard]] bool Read(std::function<void(const Outcome&)> read);
  // Read and wait; false when the loop is full or closed.
  bool ReadAndWait(const std::function<void(const Outcome&)>& read);
  // A worker's Synchronize: renews the lease at once; `reply` is held until the worker's desired
  // set has another revision than known_revision, or synchronize_hold_us have passed, or the loop
  // stops. A newer Synchronize of the same worker answers the older one at once.
  [[nodiscard]] bool PostSynchronize(core::Synchronize request, Reply reply);

  // One turn: up to kMaxBatchCommands, ticking when due. Waits at most wait_us for the first.
  void RunOnce(int64_t wait_us);
  // When RunOnce has something to do without a command: the next tick or the end of a hold.
  int64_t NextDueUs() const;

  const core::State& state() const { return state_; }  // of the driving thread only
  core::Core& core() { return core_; }
  size_t mailbox_size() const { return mailbox_.size(); }
  bool serving() const { return serving_.load(); }  // false after a fatal store error

 private:
  struct Item {
    std::optional<core::CommandBody> command;
    std::string scope;
    Reply reply;  // of the command
    std::function<void(const Outcome&)> read;
    bool hold = false;      // a Synchronize
    std::string worker_id;  // whose
    std::string incarnation;
    int64_t known_revision = 0;
  };
  struct Answer {
    Item item;
    absl::Status status;
    std::string id;
  };
  struct Held {
    Reply reply;
    std::string incarnation;
    int64_t known_revision = 0;
    int64_t deadline_us = 0;
  };

  core::Now ReadClock() const { return {clock_->NowMonotonicUs(), clock_->NowUnixUs()}; }
  absl::StatusOr<std::string> Step(core::CommandBody body, std::string scope,
                                   std::vector<core::EventRecord>* records);
  std::vector<Item> TakeBatch(int64_t wait_us);
  void Settle(std::vector<Answer>& answers, const std::vector<core::EventRecord>& records);
  absl::Status Commit(const std::vector<core::EventRecord>& records);
  absl::Status Recover();
  absl::Status Reload();
  void PruneEvents();
  void KeepSeen();
  void AnswerOne(Answer& answer);
  void Hold(Answer& answer);
  void AnswerHeld(const std::string& worker_id, const Held& held);
  void Release(const std::string& worker_id);
  void ReleaseHeld(bool all);
  void Fatal(const absl::Status& status);

  Options options_;
  core::Core core_;
  store::Store* store_;
  WatchHub* hub_;
  const Clock* clock_;
  core::State state_;
  Mailbox<Item> mailbox_;
  std::map<std::string, Held> held_;  // by worker
  std::set<std::pair<int64_t, std::string>> held_until_;  // their deadlines, workers
  core::Now now_;                     // of the current turn, or of the last
  int64_t next_tick_us_ = 0;
  int64_t next_prune_us_ = 0;
  std::atomic<bool> serving_{false};
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace nibble

// What a job needs before it can have a turn, done beside the turns of the others: reading and tokenizing its
// data, which takes minutes of a large set.
//
// A thread for each job, of which one works at a time: a long one lets the next go on every kSliceUs, so that
// a small job does not wait for a large one's end, and lines of one file are in memory at a time, as planned.
// It is niced (kNice): on a machine without a processor to spare, steps come first. Results are those of the
// same work anywhere else.
//
// Work asks `stop` often, at least between any two rows; true: it is wanted no more, and returns any error.
// Add, Cancel and Take from one thread; the end of the object stops all and waits for them.
#pragma once

#include <sched.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "engine/job.h"

namespace nibble::engine {

class Preparer {
 public:
  static constexpr int64_t kSliceUs = 100'000;
  static constexpr int kNice = 5;

  using Work = std::function<absl::StatusOr<std::unique_ptr<Job>>(const std::function<bool()>& stop)>;
  struct Prepared {
    std::string attempt;
    absl::StatusOr<std::unique_ptr<Job>> job;
  };

  // `ready` is called on any thread when there is something to take.
  Preparer(std::function<void()> ready, const Clock& clock);
  ~Preparer();
  Preparer(const Preparer&) = delete;
  Preparer& operator=(const Preparer&) = delete;

  // OUT_OF_MEMORY when the system has no thread left.
  absl::Status Add(const std::string& attempt, Work work);
  // It comes out of Take soon, with an error or, when it was done already, without.
  void Cancel(const std::string& attempt);
  // In the order in which they got ready; its thread has ended and given back what it had.
  std::optional<Prepared> Take();

 private:
  struct Task {
    std::string attempt;
    Work work;
    bool cancelled = false;
    std::thread thread;
    std::optional<absl::StatusOr<std::unique_ptr<Job>>> result;
  };
  void Run(Task& task);
  // With mutex_ held by `lock`: waits until nobody else works and it is this one's turn, or it is cancelled.
  void AwaitTurn(std::unique_lock<std::mutex>& lock, Task& task);
  bool Stop(Task& task, int64_t& since_us);

  const std::function<void()> ready_;
  const Clock& clock_;
  cpu_set_t processors_;  // those of the process: whoever calls Add may have been pinned since
  std::mutex mutex_;
  std::condition_variable changed_;
  std::list<Task> tasks_;
  std::deque<Task*> line_;  // the first works, the others wait
  std::deque<Task*> done_;
};

}  // namespace nibble::engine

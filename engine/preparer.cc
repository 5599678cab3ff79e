#include "engine/preparer.h"

#include <malloc.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "engine/crash_line.h"

namespace nibble::engine {

Preparer::Preparer(std::function<void()> ready, const Clock& clock)
    : ready_(std::move(ready)), clock_(clock) {
  CPU_ZERO(&processors_);
  sched_getaffinity(0, sizeof processors_, &processors_);
}

Preparer::~Preparer() {
  {
    std::lock_guard lock(mutex_);
    for (Task& task : tasks_) task.cancelled = true;
  }
  changed_.notify_all();
  for (Task& task : tasks_) task.thread.join();
}

absl::Status Preparer::Add(const std::string& attempt, Work work) {
  std::lock_guard lock(mutex_);
  Task& task = tasks_.emplace_back();
  task.attempt = attempt;
  task.work = std::move(work);
  line_.push_back(&task);
  try {
    task.thread = std::thread([this, &task] { Run(task); });
  } catch (const std::system_error& error) {
    line_.pop_back();
    tasks_.pop_back();
    return Error(Reason::kOutOfMemory,
                 absl::StrCat("the system has no thread to read the job's data with: ", error.what()));
  }
  return absl::OkStatus();
}

void Preparer::Cancel(const std::string& attempt) {
  {
    std::lock_guard lock(mutex_);
    for (Task& task : tasks_) task.cancelled = task.cancelled || task.attempt == attempt;
  }
  changed_.notify_all();
}

std::optional<Preparer::Prepared> Preparer::Take() {
  std::list<Task> taken;
  {
    std::lock_guard lock(mutex_);
    if (done_.empty()) return std::nullopt;
    const auto it = std::find_if(tasks_.begin(), tasks_.end(),
                                 [&](const Task& task) { return &task == done_.front(); });
    taken.splice(taken.begin(), tasks_, it);
    done_.pop_front();
  }
  Task& task = taken.front();
  task.thread.join();
  return Prepared{std::move(task.attempt), *std::move(task.result)};
}

void Preparer::AwaitTurn(std::unique_lock<std::mutex>& lock, Task& task) {
  changed_.wait(lock, [&] { return task.cancelled || line_.front() == &task; });
}

bool Preparer::Stop(Task& task, int64_t& since_us) {
  std::unique_lock lock(mutex_);
  if (!task.cancelled && line_.size() > 1 && clock_.NowMonotonicUs() - since_us >= kSliceUs) {
    std::erase(line_, &task);
    line_.push_back(&task);
    changed_.notify_all();
    AwaitTurn(lock, task);
    since_us = clock_.NowMonotonicUs();
  }
  return task.cancelled;
}

void Preparer::Run(Task& task) {
  const auto thread = static_cast<id_t>(syscall(SYS_gettid));
  setpriority(PRIO_PROCESS, thread, getpriority(PRIO_PROCESS, thread) + kNice);
  sched_setaffinity(0, sizeof processors_, &processors_);
  {
    std::unique_lock lock(mutex_);
    AwaitTurn(lock, task);
  }
  absl::StatusOr<std::unique_ptr<Job>> result = absl::CancelledError("it is wanted no more");
  {
    const CrashLine crash_line(task.attempt);
    int64_t since_us = clock_.NowMonotonicUs();
    const auto stop = [&] { return Stop(task, since_us); };
    if (!stop()) result = task.work(stop);
    task.work = nullptr;
  }
  malloc_trim(0);  // what reading took goes back to the system, as it would have in no thread of its own
  {
    std::lock_guard lock(mutex_);
    task.result = std::move(result);
    std::erase(line_, &task);
    done_.push_back(&task);
  }
  changed_.notify_all();
  ready_();
}

}  // namespace nibble::engine

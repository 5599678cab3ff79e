// A few threads that run what is posted, in order of posting. Post from any thread.
//
// One thread is there from the beginning, more come when all are busy, `most` in the end. So who waits for
// something long, a transfer of gigabytes, keeps nobody waiting until there are that many of them. Where the
// system has no more threads, fewer do.
#pragma once

#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/log.h"
#include "base/mailbox.h"

namespace nibble::worker {

class TaskPool {
 public:
  explicit TaskPool(int most) : most_(static_cast<size_t>(most)), tasks_(kCapacity) {
    threads_.emplace_back([this] { Work(); });
  }
  // Runs what was posted before, then ends. Whoever posts long tasks cancels them first.
  ~TaskPool() { Stop(); }
  void Stop() {
    tasks_.Close();
    std::vector<std::thread> threads;
    {
      std::lock_guard lock(mutex_);
      threads.swap(threads_);
    }
    for (auto& thread : threads) thread.join();
  }
  // False once stopped, or with a queue that nobody could ever work off.
  bool Post(std::function<void()> task) {
    std::lock_guard lock(mutex_);
    if (!tasks_.Post(std::move(task))) return false;
    if (++unfinished_ > threads_.size() && threads_.size() < most_) Grow();
    return true;
  }

 private:
  static constexpr size_t kCapacity = 4096;

  void Work() {
    constexpr int64_t kHourUs = 3'600'000'000;
    while (true) {
      auto taken = tasks_.Take(1, kHourUs);
      if (taken.empty() && tasks_.closed()) return;
      for (auto& task : taken) {
        task();
        task = nullptr;
        std::lock_guard lock(mutex_);
        --unfinished_;
      }
    }
  }
  void Grow() {
    try {
      threads_.emplace_back([this] { Work(); });
    } catch (const std::system_error& error) {
      LogWarning("worker.no_thread",
                 {{"threads", static_cast<int64_t>(threads_.size())}, {"why", error.what()}});
    }
  }

  const size_t most_;
  Mailbox<std::function<void()>> tasks_;
  std::mutex mutex_;  // guards the two below
  std::vector<std::thread> threads_;
  size_t unfinished_ = 0;
};

}  // namespace nibble::worker

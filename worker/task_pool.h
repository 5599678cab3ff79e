// A few threads that run what is posted, in order of posting. Post from any thread.
#pragma once

#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "base/mailbox.h"

namespace nibble::worker {

class TaskPool {
 public:
  explicit TaskPool(int threads) : tasks_(kCapacity) {
    for (int i = 0; i < threads; ++i) {
      threads_.emplace_back([this] {
        constexpr int64_t kHourUs = 3'600'000'000;
        while (true) {
          auto taken = tasks_.Take(1, kHourUs);
          if (taken.empty() && tasks_.closed()) return;
          for (auto& task : taken) task();
        }
      });
    }
  }
  // Runs what was posted before, then ends. Whoever posts long tasks cancels them first.
  ~TaskPool() { Stop(); }
  void Stop() {
    tasks_.Close();
    for (auto& thread : threads_) {
      if (thread.joinable()) thread.join();
    }
  }
  // False once stopped, or with a queue that nobody could ever work off.
  bool Post(std::function<void()> task) { return tasks_.Post(std::move(task)); }

 private:
  static constexpr size_t kCapacity = 4096;
  Mailbox<std::function<void()>> tasks_;
  std::vector<std::thread> threads_;
};

}  // namespace nibble::worker

// A few threads that may block: disk reads and writes, data set checks, plans.
//
// Callers post and are called back from there; they never wait. The queue is bounded: Post is false when
// it is full or closed. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "base/mailbox.h"

namespace nibble::server {

class IoPool {
 public:
  IoPool(int threads, size_t capacity);
  ~IoPool();
  IoPool(const IoPool&) = delete;
  IoPool& operator=(const IoPool&) = delete;
  [[nodiscard]] bool Post(std::function<void()> work) { return queue_.Post(std::move(work)); }
  // What is queued still runs; the threads end. Idempotent.
  void Stop();
  size_t queued() const { return queue_.size(); }

 private:
  Mailbox<std::function<void()>> queue_;
  std::vector<std::thread> threads_;
};

}  // namespace nibble::server

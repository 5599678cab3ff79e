// A bounded queue with many producers and one consumer: the only way threads talk.
//
// Post never blocks: a full mailbox refuses, and the caller tells its client (QUEUE_FULL). Take waits
// for something, a deadline, or Close. All methods are thread-safe.
#pragma once

#include <condition_variable>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <utility>
#include <vector>

namespace nibble {

template <typename T>
class Mailbox {
 public:
  explicit Mailbox(size_t capacity) : capacity_(capacity) {}

  // False when full or closed; `item` is then untouched.
  [[nodiscard]] bool Post(T&& item) {
    {
      std::lock_guard lock(mutex_);
      if (closed_ || items_.size() >= capacity_) return false;
      items_.push_back(std::move(item));
    }
    ready_.notify_one();
    return true;
  }

  // Up to max_items in order of arrival; empty after the timeout or when closed and drained.
  std::vector<T> Take(size_t max_items, int64_t timeout_us) {
    std::vector<T> taken;
    std::unique_lock lock(mutex_);
    ready_.wait_for(lock, std::chrono::microseconds(timeout_us),
                    [&] { return closed_ || !items_.empty(); });
    while (!items_.empty() && taken.size() < max_items) {
      taken.push_back(std::move(items_.front()));
      items_.pop_front();
    }
    return taken;
  }

  // No more posts; what is inside can still be taken.
  void Close() {
    {
      std::lock_guard lock(mutex_);
      closed_ = true;
    }
    ready_.notify_all();
  }

  bool closed() const {
    std::lock_guard lock(mutex_);
    return closed_;
  }
  size_t size() const {
    std::lock_guard lock(mutex_);
    return items_.size();
  }

 private:
  const size_t capacity_;
  mutable std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<T> items_;
  bool closed_ = false;
};

}  // namespace nibble

#include "server/ticker.h"

#include <chrono>
#include <vector>

#include "base/clock.h"

namespace nibble::server {

Ticker::Ticker(int64_t resolution_us)
    : resolution_us_(resolution_us), thread_([this] { Run(); }) {}

Ticker::~Ticker() { Stop(); }

int64_t Ticker::Add(int64_t period_us, std::function<void()> function) {
  std::lock_guard lock(mutex_);
  const int64_t handle = next_handle_++;
  entries_[handle] = {period_us, RealClock::Get().NowMonotonicUs() + period_us, std::move(function)};
  return handle;
}

void Ticker::Remove(int64_t handle) {
  std::lock_guard running(running_);
  std::lock_guard lock(mutex_);
  entries_.erase(handle);
}

void Ticker::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Ticker::Run() {
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait_for(lock, std::chrono::microseconds(resolution_us_), [&] { return stopped_; });
      if (stopped_) return;
    }
    std::lock_guard running(running_);
    std::vector<std::function<void()>> due;
    {
      std::lock_guard lock(mutex_);
      const int64_t now = RealClock::Get().NowMonotonicUs();
      for (auto& [handle, entry] : entries_) {
        if (entry.due_us > now) continue;
        entry.due_us = now + entry.period_us;
        due.push_back(entry.function);
      }
    }
    for (const auto& function : due) function();
  }
}

}  // namespace nibble::server

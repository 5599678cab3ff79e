// One thread that calls functions now and then: heartbeats, collection of garbage, token refresh.
//
// Functions run one after the other and must return soon. Thread-safe. After Remove returned, the function
// is not running and will not run again; so Remove must not be called from the function itself.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

namespace nibble::server {

class Ticker {
 public:
  explicit Ticker(int64_t resolution_us = 200'000);
  ~Ticker();
  Ticker(const Ticker&) = delete;
  Ticker& operator=(const Ticker&) = delete;
  // Calls `function` every period_us, first after one period. Returns a handle for Remove.
  int64_t Add(int64_t period_us, std::function<void()> function);
  void Remove(int64_t handle);
  // Ends the thread; idempotent.
  void Stop();

 private:
  struct Entry {
    int64_t period_us = 0;
    int64_t due_us = 0;
    std::function<void()> function;
  };
  void Run();

  const int64_t resolution_us_;
  std::mutex mutex_;       // guards the rest
  std::mutex running_;     // held while functions run; taken before mutex_
  std::condition_variable wake_;
  bool stopped_ = false;
  int64_t next_handle_ = 1;
  std::map<int64_t, Entry> entries_;
  std::thread thread_;
};

}  // namespace nibble::server

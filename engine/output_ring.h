// Lines on their way to the worker: bounded, so that a slow reader never stalls a step.
//
// Push never blocks. When the ring is full the oldest line that may be lost (a `step` line) makes
// room, and a `dropped` line counts them before the next line that goes out. Lines that may not be
// lost are few and are always taken. A thread of its own writes to the descriptor. Thread-safe.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <thread>

namespace nibble::engine {

class OutputRing {
 public:
  OutputRing(int fd, size_t capacity);
  // Writes what is left, unless the reader is gone.
  ~OutputRing();

  // `line` without a newline.
  void Push(std::string line, bool may_be_lost = false);
  // Waits until everything pushed so far is written or the reader is gone.
  void Flush();

 private:
  struct Entry {
    std::string line;
    bool may_be_lost;
  };
  void WriteLoop();
  bool WriteAll(const std::string& text);

  const int fd_;
  const size_t capacity_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Entry> entries_;
  int64_t dropped_ = 0;
  bool writing_ = false;
  bool closing_ = false;
  bool broken_ = false;
  std::thread writer_;
};

}  // namespace nibble::engine

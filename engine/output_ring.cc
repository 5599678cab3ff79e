#include "engine/output_ring.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "engine/line.h"

namespace nibble::engine {

OutputRing::OutputRing(int fd, size_t capacity)
    : fd_(fd), capacity_(capacity), writer_([this] { WriteLoop(); }) {}

OutputRing::~OutputRing() {
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  writer_.join();
}

void OutputRing::Push(std::string line, bool may_be_lost) {
  {
    std::lock_guard lock(mutex_);
    if (broken_) return;
    if (entries_.size() >= capacity_) {
      const auto victim = std::find_if(entries_.begin(), entries_.end(),
                                       [](const Entry& entry) { return entry.may_be_lost; });
      if (victim != entries_.end()) {
        entries_.erase(victim);
        ++dropped_;
      }
    }
    entries_.push_back({std::move(line), may_be_lost});
  }
  changed_.notify_all();
}

void OutputRing::Flush() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return broken_ || (entries_.empty() && !writing_); });
}

void OutputRing::WriteLoop() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return closing_ || !entries_.empty(); });
    if (entries_.empty() || broken_) return;
    std::string text;
    if (dropped_ > 0) {
      text = Line("dropped").Integer("count", dropped_).Take() + "\n";
      dropped_ = 0;
    }
    text += entries_.front().line + "\n";
    entries_.pop_front();
    writing_ = true;
    lock.unlock();
    const bool written = WriteAll(text);
    lock.lock();
    writing_ = false;
    broken_ = broken_ || !written;
    changed_.notify_all();
  }
}

bool OutputRing::WriteAll(const std::string& text) {
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t written = write(fd_, text.data() + done, text.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    done += static_cast<size_t>(written);
  }
  return true;
}

}  // namespace nibble::engine

#include "server/watch_hub.h"

#include <algorithm>
#include <utility>

namespace nibble {

struct WatchHub::Subscription::Queue {
  std::mutex mutex;
  std::string job_id;
  std::function<void()> wake;  // empty once the subscriber has gone
  Taken waiting;

  // Under `mutex`; wakes when there was nothing before.
  void Wake(bool was_empty) {
    if (was_empty && wake) wake();
  }
  bool IsEmpty() const { return waiting.events.empty() && waiting.metrics.empty() && !waiting.cut; }
  void Cut() {
    const bool was_empty = IsEmpty();
    waiting.cut = true;
    Wake(was_empty);
  }
};

WatchHub::Subscription::~Subscription() {
  {
    std::lock_guard lock(queue_->mutex);
    queue_->wake = nullptr;
  }
  hub_->Remove(queue_.get());
}

WatchHub::Taken WatchHub::Subscription::Take() {
  std::lock_guard lock(queue_->mutex);
  Taken taken = std::move(queue_->waiting);
  queue_->waiting = {};
  queue_->waiting.cut = false;
  return taken;
}

std::unique_ptr<WatchHub::Subscription> WatchHub::Subscribe(std::string job_id,
                                                            std::function<void()> wake) {
  auto queue = std::make_shared<Subscription::Queue>();
  queue->job_id = job_id;
  queue->wake = std::move(wake);
  std::lock_guard lock(mutex_);
  if (closed_) {
    queue->waiting.cut = true;
  } else {
    queues_.emplace(std::move(job_id), queue);
  }
  return std::unique_ptr<Subscription>(new Subscription(this, std::move(queue)));
}

void WatchHub::PublishEvents(const std::vector<core::EventRecord>& records) {
  std::lock_guard lock(mutex_);
  std::vector<const Subscription::Queue*> overflowed;
  for (const core::EventRecord& record : records) {
    const auto add = [&](const std::string& key) {
      const auto [begin, end] = queues_.equal_range(key);
      for (auto it = begin; it != end; ++it) {
        Subscription::Queue& queue = *it->second;
        std::lock_guard queue_lock(queue.mutex);
        if (queue.waiting.cut) continue;
        if (queue.waiting.events.size() >= max_events_) {
          queue.Cut();
          overflowed.push_back(&queue);
          continue;
        }
        const bool was_empty = queue.IsEmpty();
        queue.waiting.events.push_back(record);
        queue.Wake(was_empty);
      }
    };
    if (!record.job_id.empty()) add(record.job_id);
    add("");
  }
  std::erase_if(queues_, [&](const auto& entry) {
    return std::find(overflowed.begin(), overflowed.end(), entry.second.get()) != overflowed.end();
  });
}

void WatchHub::PublishMetrics(std::string_view job_id,
                              const std::vector<store::StepMetric>& metrics) {
  if (metrics.empty()) return;
  std::lock_guard lock(mutex_);
  const auto [begin, end] = queues_.equal_range(std::string(job_id));
  for (auto it = begin; it != end; ++it) {
    Subscription::Queue& queue = *it->second;
    std::lock_guard queue_lock(queue.mutex);
    if (queue.waiting.cut) continue;
    const bool was_empty = queue.IsEmpty();
    auto& waiting = queue.waiting.metrics;
    waiting.insert(waiting.end(), metrics.begin(), metrics.end());
    // Metrics may be thinned, events may not: the rest is in the store.
    if (waiting.size() > max_metrics_) {
      waiting.erase(waiting.begin(), waiting.end() - static_cast<int64_t>(max_metrics_));
    }
    queue.Wake(was_empty);
  }
}

void WatchHub::Close() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
  }
  CutAll();
}

void WatchHub::CutAll() {
  std::lock_guard lock(mutex_);
  for (auto& [key, queue] : queues_) {
    std::lock_guard queue_lock(queue->mutex);
    queue->Cut();
  }
  queues_.clear();
}

size_t WatchHub::subscribers() const {
  std::lock_guard lock(mutex_);
  return queues_.size();
}

void WatchHub::Remove(const Subscription::Queue* queue) {
  std::lock_guard lock(mutex_);
  std::erase_if(queues_, [&](const auto& entry) { return entry.second.get() == queue; });
}

}  // namespace nibble

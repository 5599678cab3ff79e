// Fan-out of what was committed to those who watch: job events, and step metrics beside them.
//
// A subscription is a bounded queue with a wake-up callback. Events reach it in sequence order,
// without gaps, from the moment it was made; what was before, the subscriber reads from History
// (subscribe first, then read, then drop sequences already seen). A queue that overflows is cut:
// `cut` is set, nothing more is added, and the watcher goes on from its last sequence with a new
// subscription. Nobody waits for a slow watcher. Thread-safe; the callback runs on the publisher's
// thread and must only post.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "server/core/event_record.h"
#include "server/store/store.h"

namespace nibble {

class WatchHub {
 public:
  struct Taken {
    std::vector<core::EventRecord> events;
    std::vector<store::StepMetric> metrics;  // coalesced to the newest when there are too many
    bool cut = false;
  };

  class Subscription {
   public:
    ~Subscription();
    Subscription(const Subscription&) = delete;
    Subscription& operator=(const Subscription&) = delete;
    // All that has come since the last call; never blocks.
    Taken Take();

   private:
    friend class WatchHub;
    struct Queue;
    Subscription(WatchHub* hub, std::shared_ptr<Queue> queue)
        : hub_(hub), queue_(std::move(queue)) {}
    WatchHub* hub_;
    std::shared_ptr<Queue> queue_;
  };

  explicit WatchHub(size_t max_events = 256, size_t max_metrics = 1024)
      : max_events_(max_events), max_metrics_(max_metrics) {}

  // `wake` is called after something was added to an empty queue, and when the queue is cut. job_id
  // "" subscribes to the events of all jobs and of the fleet, without metrics. The hub must outlive
  // it.
  std::unique_ptr<Subscription> Subscribe(std::string job_id, std::function<void()> wake);

  void PublishEvents(const std::vector<core::EventRecord>& records);
  void PublishMetrics(std::string_view job_id, const std::vector<store::StepMetric>& metrics);
  // Cuts everybody who watches now: after a failed commit nobody knows what they have missed.
  void CutAll();
  // The same for good: the server is going down.
  void Close();
  size_t subscribers() const;

 private:
  void Remove(const Subscription::Queue* queue);

  const size_t max_events_;
  const size_t max_metrics_;
  mutable std::mutex mutex_;
  bool closed_ = false;
  std::multimap<std::string, std::shared_ptr<Subscription::Queue>, std::less<>> queues_;
};

}  // namespace nibble

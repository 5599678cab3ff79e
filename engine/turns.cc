#include "engine/turns.h"

#include <algorithm>
#include <cmath>

namespace nibble::engine {

double TurnWeight(int64_t priority) {
  return std::exp2(static_cast<double>(std::clamp<int64_t>(priority, -40, 40)) / 10);
}

double TurnQueue::Least() const {
  const Entry* least = nullptr;
  for (const Entry& entry : entries_) {
    if (!entry.paused && (least == nullptr || entry.used < least->used)) least = &entry;
  }
  return least == nullptr ? 0 : least->used;
}

void TurnQueue::Add(const std::string& id, double weight) {
  entries_.push_back({id, weight, Least()});
}

void TurnQueue::Remove(const std::string& id) {
  std::erase_if(entries_, [&](const Entry& entry) { return entry.id == id; });
}

void TurnQueue::SetPaused(const std::string& id, bool paused) {
  const double least = Least();
  for (Entry& entry : entries_) {
    if (entry.id != id || entry.paused == paused) continue;
    // The time spent paused is not made up for.
    if (!paused) entry.used = std::max(entry.used, least);
    entry.paused = paused;
  }
}

std::string TurnQueue::Next() const {
  const Entry* next = nullptr;
  for (const Entry& entry : entries_) {
    if (!entry.paused && (next == nullptr || entry.used < next->used)) next = &entry;
  }
  return next == nullptr ? "" : next->id;
}

void TurnQueue::Charge(const std::string& id, int64_t time_us) {
  for (Entry& entry : entries_) {
    if (entry.id == id) entry.used += static_cast<double>(time_us) / entry.weight;
  }
}

}  // namespace nibble::engine

#include "engine/turns.h"

#include <algorithm>
#include <cmath>

namespace nibble::engine {

double TurnWeight(int64_t priority) {
  return std::exp2(static_cast<double>(std::clamp<int64_t>(priority, -40, 40)) / 10);
}

const TurnQueue::Entry* TurnQueue::First() const {
  const Entry* first = nullptr;
  for (const Entry& entry : entries_) {
    if (!entry.paused && (first == nullptr || entry.used < first->used)) first = &entry;
  }
  return first;
}

void TurnQueue::NoteLevel() {
  if (const Entry* first = First()) level_ = first->used;
}

void TurnQueue::Add(const std::string& id, double weight) {
  NoteLevel();
  entries_.push_back({.id = id, .weight = weight, .used = level_});
}

void TurnQueue::Remove(const std::string& id) {
  NoteLevel();
  std::erase_if(entries_, [&](const Entry& entry) { return entry.id == id; });
}

void TurnQueue::SetWeight(const std::string& id, double weight) {
  for (Entry& entry : entries_) {
    if (entry.id == id) entry.weight = weight;
  }
}

void TurnQueue::SetPaused(const std::string& id, bool paused) {
  NoteLevel();
  for (Entry& entry : entries_) {
    if (entry.id != id || entry.paused == paused) continue;
    // The time spent paused is not made up for.
    if (!paused) entry.used = std::max(entry.used, level_);
    entry.paused = paused;
  }
}

std::string TurnQueue::Next() const { return First() == nullptr ? "" : First()->id; }

std::vector<std::string> TurnQueue::NextTogether() const {
  const Entry* const first = First();
  if (first == nullptr) return {};
  std::vector<const Entry*> company;
  for (const Entry& entry : entries_) {
    if (&entry == first || entry.paused) continue;
    if (entry.used == first->used || entry.used < first->used + first->last) company.push_back(&entry);
  }
  std::stable_sort(company.begin(), company.end(),
                   [](const Entry* a, const Entry* b) { return a->used < b->used; });
  std::vector<std::string> ids = {first->id};
  for (const Entry* const entry : company) ids.push_back(entry->id);
  return ids;
}

void TurnQueue::Charge(const std::string& id, int64_t time_us) {
  for (Entry& entry : entries_) {
    if (entry.id != id) continue;
    entry.last = static_cast<double>(time_us) / entry.weight;
    entry.used += entry.last;
  }
}

}  // namespace nibble::engine

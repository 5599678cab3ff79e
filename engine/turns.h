// Whose turn it is: the job that has had the least time for its weight, the older one when equal. The
// weight is the job's priority, so that nobody starves: who waits comes nearer with every turn of others.
//
// A job that joins or comes back starts level with the neediest that can run, or where nobody can with where
// they were when last one could: it neither waits nor takes over. Pure; one thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nibble::engine {

// Shares of time by priority: ten more is twice the time; 1 at priority 0, 1/16 to 16 at the ends.
double TurnWeight(int64_t priority);

class TurnQueue {
 public:
  void Add(const std::string& id, double weight = 1);
  void Remove(const std::string& id);
  // From its next turn on: what it has had so far stays as it was weighed.
  void SetWeight(const std::string& id, double weight);
  // A paused job keeps its place but gets no turn.
  void SetPaused(const std::string& id, bool paused);
  // Empty when nobody can run.
  std::string Next() const;
  // Next, and behind it in their order who would have a turn before it had a second one: who may do a step
  // with it without getting ahead of anybody.
  std::vector<std::string> NextTogether() const;
  // `id` used the device this long.
  void Charge(const std::string& id, int64_t time_us);

 private:
  struct Entry {
    std::string id;
    double weight = 1;
    double used = 0;  // time over weight
    double last = 0;  // of that the latest charge
    bool paused = false;
  };
  const Entry* First() const;  // null when nobody can run
  // Notes where the neediest is; before who can run changes.
  void NoteLevel();

  std::vector<Entry> entries_;  // oldest first
  double level_ = 0;
};

}  // namespace nibble::engine

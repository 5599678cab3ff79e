// What one answer shows of the queue: for whom, and what is worked out once for all jobs in it.
//
// Of one state, one time and one thread; thrown away with the answer. Pure but for the planner's memory.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "server/core/decide.h"
#include "server/core/schedule_pass.h"
#include "server/core/state.h"

namespace nibble::core {

class QueueLook {
 public:
  // Places up to this one are exact. Beyond it the jobs of each other project are taken to be alike: a place
  // costs some look-ups, however long the queue is.
  static constexpr int32_t kExactPlaces = 256;
  // What a reader sees of a job of a project that is not its own.
  static constexpr const char* kHidden = "another project's job";

  // `scope`: the project the reader is confined to; "" = none. Jobs of others have no names for it.
  QueueLook(const State& state, Core& core, int64_t now_us, std::string scope = "")
      : state_(state), core_(core), now_us_(now_us), scope_(std::move(scope)) {}

  // 1 = next; 0 = it does not wait.
  int32_t PlaceOf(const Job& job);
  // What the pass that would run now keeps free for those that cannot start.
  const std::vector<BoardReservation>& Reservations();

  bool Sees(const std::string& job_id) const;
  // "jobs/a", or kHidden.
  std::string NameOf(const std::string& job_id) const;
  // "a, b and 3 more", "a and 2 jobs of other projects".
  std::string NamesOf(const std::vector<std::string>& job_ids) const;

  const State& state() const { return state_; }
  Core& core() const { return core_; }
  int64_t now_us() const { return now_us_; }

 private:
  const State& state_;
  Core& core_;
  const int64_t now_us_;
  const std::string scope_;
  std::optional<std::map<int64_t, int32_t>> first_;  // by number: the first kExactPlaces
  std::optional<std::vector<BoardReservation>> reservations_;
};

}  // namespace nibble::core

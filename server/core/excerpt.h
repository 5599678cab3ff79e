// What placement of one more job depends on, copied out of the state a little at a time, so that planning
// goes on elsewhere and the loop decides in between.
//
// Workers, the attempts that hold bytes on them, their jobs and models, and what was learned of steps. Each
// worker is copied with all that is on it; workers of different parts may be some turns of the loop apart. A
// job that moves meanwhile is where it was copied last, seldom on none: a forecast is as good with that as
// with a moment that has passed when it is read. Pure; one thread at a time.
#pragma once

#include <cstddef>
#include <string>
#include <utility>

#include "server/core/state.h"

namespace nibble::core {

class Excerpt {
 public:
  // Workers, jobs and plans of a part: a millisecond or two of the loop's time.
  static constexpr size_t kRowsAtOnce = 512;

  explicit Excerpt(const Model& model) { copied_.models[model.id] = model; }
  // Copies the next part; true once all is there. On the loop's thread, with its state of that time.
  bool Copy(const State& state, size_t rows = kRowsAtOnce);
  // What was copied, with indexes and board as of `now_us` (monotonic). Elsewhere.
  State Take(int64_t now_us) &&;

 private:
  enum class Part { kBegin, kLearned, kWorkers, kDone };
  size_t CopyWorker(const State& state, const Worker& worker);

  State copied_;
  Part part_ = Part::kBegin;
  std::string after_;  // key of the last row of the part that was copied
};

}  // namespace nibble::core

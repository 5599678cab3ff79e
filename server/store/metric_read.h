// What both metric stores do to rows: merge a repeat, thin a series.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/store/store.h"

namespace nibble::store {

// A repeat of (job, epoch, step): only an evaluation it brings is new, or the step's own figures
// when what is there came from an evaluation alone.
void Merge(const StepMetric& repeat, StepMetric& row);

// "12 0 3 4 5 6"; all zero is the empty text, and what cannot be read is zeros.
std::string PhaseTimesToText(const spec::StepPhaseTimes& times);
spec::StepPhaseTimes PhaseTimesFromText(std::string_view text);
// A series as its rows go by, in order of (step, epoch): what is thinned away is never held, so that a job
// of a million steps costs no more memory than its answer.
//
// Of a step the highest epoch's row stands, but one that came from an evaluation alone (an attempt that
// resumed right there) only brings its evaluation. At most about max_points stay: the first, the last, the
// others evenly; beside them as many evaluations, the newest among them: all, or every second, fourth, ... of
// those that would not have stayed. 0 = all. One thread.
class SeriesReader {
 public:
  // `steps`: how many different ones are to come.
  SeriesReader(int64_t steps, int64_t max_points)
      : steps_(steps), max_points_(steps > max_points ? max_points : 0) {}
  void Add(StepMetric row);
  std::vector<StepMetric> Take() &&;
  size_t held() const { return kept_.size() + (open_ ? 1 : 0) + (newest_ ? 1 : 0); }

 private:
  struct Kept {
    StepMetric metric;
    int64_t evaluation = -1;  // its number among those that stay as evaluations; -1 = for its place
  };
  void Close();  // the step that is open is complete
  void HalveEvaluations();

  const int64_t steps_;
  const int64_t max_points_;  // 0 = all
  int64_t next_ = 0;          // number of the open step
  std::optional<StepMetric> open_;
  std::vector<Kept> kept_;
  int64_t evaluations_ = 0;  // seen beside those at kept places
  int64_t kept_evaluations_ = 0;
  int64_t stride_ = 1;                // of evaluations that stay
  std::optional<StepMetric> newest_;  // of them, unless its number lets it stay
};

}  // namespace nibble::store

#include "server/store/metric_read.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace nibble::store {

void Merge(const StepMetric& repeat, StepMetric& row) {
  if (row.tokens == 0 && repeat.tokens > 0) {
    const std::optional<double> eval_loss = row.eval_loss;
    row = repeat;
    if (!row.eval_loss) row.eval_loss = eval_loss;
  } else if (repeat.eval_loss && !row.eval_loss) {
    row.eval_loss = repeat.eval_loss;
  }
}

std::string PhaseTimesToText(const spec::StepPhaseTimes& times) {
  return times == spec::StepPhaseTimes{} ? "" : absl::StrJoin(times, " ");
}

spec::StepPhaseTimes PhaseTimesFromText(std::string_view text) {
  spec::StepPhaseTimes times{};
  const std::vector<absl::string_view> parts =
      absl::StrSplit(absl::string_view(text.data(), text.size()), ' ');
  if (parts.size() != times.size()) return times;
  for (size_t i = 0; i < times.size(); ++i)
    if (!absl::SimpleAtoi(parts[i], &times[i])) return {};
  return times;
}

void SeriesReader::Add(StepMetric row) {
  if (open_ && open_->step != row.step) Close();
  if (open_ && row.tokens == 0 && open_->tokens > 0) {
    if (row.eval_loss) open_->eval_loss = row.eval_loss;
  } else {
    open_ = std::move(row);
  }
}

void SeriesReader::Close() {
  // The last step of every bucket, so that the newest is always among them.
  const bool ends_bucket = max_points_ <= 0 || next_ + 1 >= steps_ ||
                           next_ * max_points_ / steps_ != (next_ + 1) * max_points_ / steps_;
  if (next_ == 0 || ends_bucket || open_->eval_loss) kept_.push_back(*std::move(open_));
  open_.reset();
  ++next_;
}

std::vector<StepMetric> SeriesReader::Take() && {
  if (open_) Close();
  return std::move(kept_);
}

}  // namespace nibble::store

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
  const bool stays = max_points_ <= 0 || next_ == 0 || next_ + 1 >= steps_ ||
                     next_ * max_points_ / steps_ != (next_ + 1) * max_points_ / steps_;
  if (stays) {
    kept_.push_back({*std::move(open_)});
  } else if (open_->eval_loss) {
    const int64_t number = evaluations_++;
    if (number % stride_ == 0) {
      kept_.push_back({*std::move(open_), number});
      newest_.reset();
      if (++kept_evaluations_ > max_points_) HalveEvaluations();
    } else {
      newest_ = std::move(open_);
    }
  }
  open_.reset();
  ++next_;
}

void SeriesReader::HalveEvaluations() {
  stride_ *= 2;
  const auto goes = [this](const Kept& kept) {
    return kept.evaluation >= 0 && kept.evaluation % stride_ != 0;
  };
  if (goes(kept_.back())) newest_ = kept_.back().metric;
  kept_evaluations_ -= static_cast<int64_t>(std::erase_if(kept_, goes));
}

std::vector<StepMetric> SeriesReader::Take() && {
  if (open_) Close();
  std::vector<StepMetric> series;
  series.reserve(kept_.size() + 1);
  for (Kept& kept : kept_) {
    if (newest_ && newest_->step < kept.metric.step) {
      series.push_back(*std::move(newest_));
      newest_.reset();
    }
    series.push_back(std::move(kept.metric));
  }
  if (newest_) series.push_back(*std::move(newest_));
  return series;
}

}  // namespace nibble::store

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

void AddInOrder(StepMetric metric, std::vector<StepMetric>& rows) {
  if (rows.empty() || rows.back().step != metric.step) {
    rows.push_back(std::move(metric));
  } else if (metric.tokens == 0 && rows.back().tokens > 0) {
    if (metric.eval_loss) rows.back().eval_loss = metric.eval_loss;
  } else {
    rows.back() = std::move(metric);
  }
}

std::vector<StepMetric> Thin(std::vector<StepMetric> metrics, int64_t max_points) {
  const auto count = static_cast<int64_t>(metrics.size());
  if (max_points <= 0 || count <= max_points) return metrics;
  std::vector<StepMetric> kept;
  for (int64_t i = 0; i < count; ++i) {
    // The last row of every bucket, so that the newest step is always among them.
    const int64_t mine = i * max_points / count;
    const int64_t next = (i + 1) * max_points / count;
    const bool ends_bucket = next != mine || i + 1 == count;
    auto& metric = metrics[static_cast<size_t>(i)];
    if (i == 0 || ends_bucket || metric.eval_loss) kept.push_back(std::move(metric));
  }
  return kept;
}

}  // namespace nibble::store

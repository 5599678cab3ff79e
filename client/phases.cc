#include "client/phases.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace nibble::client {

std::string PhaseView(const v1::QueryMetricsResponse& metrics, const Style& style) {
  struct Phase {
    const char* name;
    int64_t us;
  };
  std::vector<Phase> phases = {{"linear", 0},    {"attention", 0}, {"elementwise", 0},
                               {"loss", 0},      {"optimizer", 0}, {"data", 0}};
  int64_t steps = 0, total_us = 0;
  for (const auto& point : metrics.points()) {
    if (!point.has_phases()) continue;
    const v1::StepPhases& p = point.phases();
    const int64_t values[] = {p.linear_us(), p.attention_us(), p.elementwise_us(),
                              p.loss_us(),   p.optimizer_us(), p.data_us()};
    for (size_t i = 0; i < phases.size(); ++i) phases[i].us += values[i];
    total_us += point.step_time_us() + p.data_us();
    ++steps;
  }
  if (steps == 0) return "";
  int64_t known_us = 0;
  for (const Phase& phase : phases) known_us += phase.us;
  phases.push_back({"other", std::max<int64_t>(0, total_us - known_us)});
  total_us = std::max(total_us, known_us);
  std::vector<std::vector<std::string>> rows = {{"PHASE", "MS A STEP", "SHARE", ""}};
  const int width = style.columns > 0 ? std::clamp(style.columns - 36, 6, 30) : 30;
  for (const Phase& phase : phases) {
    const double share =
        static_cast<double>(phase.us) / static_cast<double>(std::max<int64_t>(1, total_us));
    rows.push_back({phase.name,
                    absl::StrFormat("%.2f", static_cast<double>(phase.us / steps) * 1e-3),
                    absl::StrFormat("%.1f%%", 100 * share), Bar(share, width, style)});
  }
  return absl::StrCat(Table(rows, style, {1, 2}),
                      absl::StrFormat("%d %s, %.2f ms each\n", steps, steps == 1 ? "step" : "steps",
                                      static_cast<double>(total_us) * 1e-3 / static_cast<double>(steps)));
}

}  // namespace nibble::client

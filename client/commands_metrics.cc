// nibble metrics: the series of a job, as a table, CSV or a plot.
#include <algorithm>
#include <string_view>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/error.h"
#include "base/status.h"
#include "client/commands.h"
#include "client/phases.h"

namespace nibble::client {
namespace {

double MetricValue(const v1::MetricPoint& p, std::string_view name, bool& present) {
  present = true;
  if (name == "eval_loss") {
    present = p.has_eval_loss();
    return p.eval_loss();
  }
  // A point without tokens is an evaluation alone.
  present = p.tokens() > 0;
  if (name == "loss") return p.loss();
  if (name == "grad_norm") return p.gradient_norm();
  if (name == "learning_rate") return p.learning_rate();
  if (name == "tokens") return static_cast<double>(p.tokens());
  if (name == "tokens_per_second") {
    present = present && p.step_time_us() > 0;
    return present ? static_cast<double>(p.tokens()) * 1e6 / static_cast<double>(p.step_time_us())
                   : 0;
  }
  if (name == "used_bytes") return static_cast<double>(p.used_bytes());
  present = false;
  return 0;
}

constexpr std::string_view kMetricNames[] = {
    "loss", "eval_loss", "grad_norm", "learning_rate", "tokens", "tokens_per_second", "used_bytes"};

absl::StatusOr<std::vector<std::string>> MetricNames(const std::string& text) {
  std::vector<std::string> names = absl::StrSplit(text, ',', absl::SkipEmpty());
  for (const std::string& name : names) {
    if (std::find(std::begin(kMetricNames), std::end(kMetricNames), name) ==
        std::end(kMetricNames)) {
      return Error::Field(Reason::kSpecInvalid, "--name",
                          absl::StrCat("has no \"", name,
                                       "\"; there are loss, eval_loss, grad_norm, "
                                       "learning_rate, tokens, tokens_per_second, used_bytes"))
          .ToStatus();
    }
  }
  return names;
}

void PrintMetricRows(const Globals& g, const v1::QueryMetricsResponse& metrics,
                     const std::vector<std::string>& names, bool csv) {
  std::vector<std::vector<std::string>> rows = {{csv ? "step" : "STEP"}};
  std::vector<int> right = {0};
  for (const std::string& name : names) {
    right.push_back(static_cast<int>(rows[0].size()));
    rows[0].push_back(csv ? name : absl::AsciiStrToUpper(name));
  }
  for (const auto& point : metrics.points()) {
    std::vector<std::string> row = {absl::StrCat(point.step())};
    bool any = false;
    for (const std::string& name : names) {
      bool present = false;
      const double value = MetricValue(point, name, present);
      any |= present;
      row.push_back(!present ? (csv ? "" : "-")
                    : csv    ? absl::StrFormat("%.9g", value)
                             : absl::StrFormat("%.6g", value));
    }
    if (any) rows.push_back(std::move(row));
  }
  if (!csv) return PrintOut(Table(rows, g.terminal.style, right));
  for (const auto& row : rows) PrintOut(absl::StrJoin(row, ",") + "\n");
}

}  // namespace

int MetricsCommand(const Globals& g, const MetricsArgs& args) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    ASSIGN_OR_RETURN(const std::vector<std::string> names, MetricNames(args.names));
    v1::QueryMetricsRequest request;
    request.set_name(FullName("jobs", args.job));
    request.set_max_points(args.max_points);
    ASSIGN_OR_RETURN(const v1::QueryMetricsResponse metrics, client.QueryMetrics(request));
    if (!args.plot && !args.csv && PrintMessage(g.terminal, metrics)) return kExitOk;
    if (args.phases) {
      const std::string view = PhaseView(metrics, g.terminal.style);
      if (view.empty()) PrintNote(g.terminal, "no step has said where its time went");
      PrintOut(view);
      return kExitOk;
    }
    if (!args.plot) {
      PrintMetricRows(g, metrics, names, args.csv);
      return kExitOk;
    }
    std::vector<Series> series;
    for (const std::string& name : names) {
      Series s{name, {}, {}};
      for (const auto& point : metrics.points()) {
        bool present = false;
        const double value = MetricValue(point, name, present);
        if (!present) continue;
        s.x.push_back(static_cast<double>(point.step()));
        s.y.push_back(value);
      }
      if (!s.x.empty()) series.push_back(std::move(s));
    }
    const auto lines = Plot(series, std::min(g.terminal.columns, 100), 14, g.terminal.style);
    if (lines.empty()) PrintNote(g.terminal, "nothing to plot yet");
    for (const std::string& line : lines) PrintOut(line + "\n");
    return kExitOk;
  });
}

}  // namespace nibble::client

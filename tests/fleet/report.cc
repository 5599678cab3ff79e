// Tables and plots of a fleet simulation.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/fleet/report.h"
#include "tests/fleet/run.h"

namespace nibble::fleet {
namespace {

const Cells& Header() {
  static const auto* header =
      new Cells{"policy",       "mean h",      "p50 h",       "p99 h",      "slowdown",
                "p99 slowdown", "makespan h",  "plan/used",   "reserved",   "unreserved",
                "device busy",  "share error", "preemptions", "pass p99 ms"};
  return *header;
}

Cells Row(const Summary& s) {
  const std::string error =
      s.backlogged_hours == 0 ? "-" : absl::StrFormat("%.1f", s.share_error_mean);
  const std::string pass = s.pass_p99_ms > 0 ? absl::StrFormat("%.2f", s.pass_p99_ms) : "-";
  return {s.policy,
          absl::StrFormat("%.2f", s.mean_h),
          absl::StrFormat("%.2f", s.p50_h),
          absl::StrFormat("%.1f", s.p99_h),
          absl::StrFormat("%.2f", s.slowdown_mean),
          absl::StrFormat("%.2f", s.slowdown_p99),
          absl::StrFormat("%.0f", s.makespan_h),
          absl::StrFormat("%.3f", s.planned_over_touched),
          absl::StrFormat("%.0f %%", 100 * s.reserved),
          absl::StrFormat("%.0f %%", 100 * s.unreserved_backlog),
          absl::StrFormat("%.0f %%", 100 * s.busy),
          error,
          absl::StrFormat("%.2f", s.preemptions),
          pass};
}

const Summary* Find(const std::vector<Summary>& summaries, std::string_view policy) {
  for (const Summary& s : summaries) {
    if (s.policy == policy) return &s;
  }
  return nullptr;
}

bool HasFairness(const std::vector<Summary>& summaries) {
  return !summaries.empty() && summaries.front().rho_p50 > 0;
}

// Of finish-time fairness, where it was measured: policies as rows.
std::vector<Cells> FairnessRows(const std::vector<Summary>& summaries) {
  std::vector<Cells> rows{{"policy", "rho p50", "rho p95", "rho max", "worst project", "p95 of chance"}};
  for (const Summary& s : summaries) {
    rows.push_back({s.policy, absl::StrFormat("%.2f", s.rho_p50), absl::StrFormat("%.2f", s.rho_p95),
                    absl::StrFormat("%.2f", s.rho_max), absl::StrFormat("%.2f", s.rho_worst_project),
                    absl::StrFormat("%.2f", s.rho_chance_p95)});
  }
  return rows;
}

// What the goals are about, in words.
std::string Goals(const std::vector<Summary>& summaries) {
  const Summary* nibble = Find(summaries, "nibble");
  if (nibble == nullptr) return "";
  std::string text;
  if (const Summary* c = Find(summaries, "clairvoyant")) {
    absl::StrAppendFormat(&text, "mean completion is %.1f %% above the clairvoyant baseline's; ",
                          100 * (nibble->mean_h / c->mean_h - 1));
  }
  if (const Summary* c = Find(summaries, "clairvoyant-fair")) {
    absl::StrAppendFormat(&text, "%.1f %% above that of the one that keeps the projects' shares; ",
                          100 * (nibble->mean_h / c->mean_h - 1));
  }
  if (const Summary* f = Find(summaries, "fifo")) {
    absl::StrAppendFormat(&text, "%.1f times better than whole devices first in, first out; ",
                          f->mean_h / nibble->mean_h);
  }
  absl::StrAppendFormat(
      &text, "devices over capacity %d times; starts after the bound %d, worst wait %.2f of it.\n",
      nibble->over_capacity, nibble->bound_broken, nibble->worst_wait);
  return absl::StrCat("nibble: ", text);
}

// ---- SVG

constexpr int kWidth = 960;
constexpr int kHeight = 400;

// Horizontal bars, one per policy.
std::string Bars(const std::string& title, const std::vector<Summary>& summaries, double Summary::* value,
                 int decimals, double top) {
  double longest = 0;
  for (const Summary& s : summaries) longest = std::max(longest, s.*value);
  std::string svg = SvgLabel(20, top - 20, title, "start", 14);
  for (size_t i = 0; i < summaries.size(); ++i) {
    const double y = top + static_cast<double>(i) * 44;
    const double width = 250 * summaries[i].*value / std::max(longest, 1e-9);
    absl::StrAppend(&svg, SvgLabel(118, y + 19, summaries[i].policy, "end"));
    absl::StrAppendFormat(&svg,
                          "<rect x=\"124\" y=\"%.1f\" width=\"%.1f\" height=\"26\" fill=\"%s\"/>\n",
                          y, std::max(1.0, width), SvgColor(i));
    absl::StrAppend(
        &svg, SvgLabel(130 + width, y + 18, absl::StrFormat("%.*f", decimals, summaries[i].*value), "start"));
  }
  return svg;
}

// Share of jobs (y) with at most that much (x, logarithmic): `steps` are quantiles at 0, 1, ... 100 %.
std::string Curves(const std::string& title, const std::string& axis, const std::vector<Summary>& summaries,
                   std::vector<double> Summary::* steps, double top) {
  constexpr double kLeft = 530, kW = 400, kH = 240;
  double least = 1, most = 10;
  for (const Summary& s : summaries) {
    if ((s.*steps).empty()) continue;
    least = std::min(least, std::max(1e-3, (s.*steps).front()));
    most = std::max(most, (s.*steps).back());
  }
  const double first = std::floor(std::log10(least)), last = std::ceil(std::log10(most));
  const auto x_of = [&](double value) {
    return kLeft + kW * (std::max(first, std::log10(value)) - first) / (last - first);
  };
  std::string svg = SvgLabel(kLeft - 30, top - 20, title, "start", 14);
  for (double decade = first; decade <= last; ++decade) {
    const double x = x_of(std::pow(10.0, decade));
    absl::StrAppend(&svg, SvgLine(x, top, x, top + kH),
                    SvgLabel(x, top + kH + 18, absl::StrFormat("%g", std::pow(10.0, decade)), "middle"));
  }
  for (int p = 0; p <= 100; p += 25) {
    const double y = top + kH * (1 - p / 100.0);
    absl::StrAppend(&svg, SvgLine(kLeft, y, kLeft + kW, y),
                    SvgLabel(kLeft - 6, y + 4, absl::StrCat(p), "end"));
  }
  absl::StrAppend(&svg, SvgLabel(kLeft + kW / 2, top + kH + 36, axis, "middle"));
  for (size_t i = summaries.size(); i-- > 0;) {
    std::vector<std::pair<double, double>> points;
    for (size_t p = 0; p < (summaries[i].*steps).size(); ++p)
      points.emplace_back(x_of((summaries[i].*steps)[p]), top + kH * (1 - static_cast<double>(p) / 100));
    absl::StrAppend(&svg, SvgCurve(points, i, i == 0 ? 3 : 2));
  }
  return svg;
}

}  // namespace

std::string RowsText(const std::vector<Cells>& rows) {
  std::vector<size_t> widths(rows.front().size());
  for (const Cells& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const Cells& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string pad(widths[i] - row[i].size(), ' ');
      absl::StrAppend(&text, i == 0 ? row[i] + pad : pad + row[i],
                      i + 1 < row.size() ? "  " : "\n");
    }
  }
  return text;
}

std::string RowsMarkdown(const std::vector<Cells>& rows) {
  std::string text;
  const auto add = [&](const Cells& row) {
    for (const std::string& cell : row) absl::StrAppend(&text, "| ", cell, " ");
    absl::StrAppend(&text, "|\n");
  };
  add(rows.front());
  add(Cells(rows.front().size(), "---"));
  std::for_each(rows.begin() + 1, rows.end(), add);
  return text;
}

const char* SvgColor(size_t policy) {
  constexpr const char* kColors[] = {"#1b7f5c", "#3b5bdb", "#7048e8", "#e8590c",
                                     "#c2255c", "#868e96", "#212529"};
  return kColors[policy % std::size(kColors)];
}

std::string SvgLabel(double x, double y, const std::string& text, const char* anchor, int size) {
  return absl::StrFormat(
      "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" font-size=\"%d\" "
      "fill=\"#212529\">%s</text>\n",
      x, y, anchor, size, text);
}

std::string SvgHead(int width, int height, const std::string& title) {
  return absl::StrFormat(
             "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
             "height=\"%d\" "
             "font-family=\"sans-serif\">\n<rect width=\"100%%\" height=\"100%%\" "
             "fill=\"#ffffff\"/>\n",
             width, height, width, height) +
         SvgLabel(20, 30, title, "start", 18);
}

std::string SvgLine(double x1, double y1, double x2, double y2) {
  return absl::StrFormat(
      "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#dee2e6\"/>\n", x1, y1, x2, y2);
}

std::string SvgCurve(const std::vector<std::pair<double, double>>& points, size_t policy, int width) {
  std::string list;
  for (const auto& [x, y] : points) absl::StrAppendFormat(&list, "%.1f,%.1f ", x, y);
  return absl::StrFormat("<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"%d\"/>\n",
                         list, SvgColor(policy), width);
}

std::string TableText(const Scenario& scenario, const std::vector<Summary>& summaries) {
  std::vector<Cells> rows{Header()};
  for (const Summary& s : summaries) rows.push_back(Row(s));
  const int64_t runs = summaries.empty() ? 0 : summaries.front().runs;
  std::string text = absl::StrCat(scenario.name, ", ", runs, " runs\n", RowsText(rows), Goals(summaries));
  if (HasFairness(summaries)) absl::StrAppend(&text, RowsText(FairnessRows(summaries)));
  return text;
}

std::string TableMarkdown(const Scenario& scenario, const std::vector<Summary>& summaries) {
  std::vector<Cells> rows{Header()};
  for (const Summary& s : summaries) rows.push_back(Row(s));
  std::string text = absl::StrCat("### ", scenario.name, "\n\n", scenario.about, "\n\n", RowsMarkdown(rows),
                                  "\n", Goals(summaries));
  if (HasFairness(summaries)) absl::StrAppend(&text, "\n", RowsMarkdown(FairnessRows(summaries)));
  return text;
}

std::string PlotSvg(const Scenario& scenario, const std::vector<Summary>& summaries) {
  const int64_t runs = summaries.empty() ? 0 : summaries.front().runs;
  const bool fair = HasFairness(summaries);
  const int height = fair ? 2 * kHeight - 60 : kHeight;
  std::string svg = SvgHead(kWidth, height, absl::StrFormat("%s (%d runs)", scenario.name, runs));
  absl::StrAppend(&svg, Bars("Mean completion, hours", summaries, &Summary::mean_h, 1, 80),
                  Curves("Jobs with at most this slowdown, %", "slowdown", summaries,
                         &Summary::slowdown_steps, 80));
  if (fair) {
    absl::StrAppend(&svg,
                    Bars("Completion over that alone (rho), p95", summaries, &Summary::rho_p95, 2, 420),
                    Curves("Jobs with at most this rho, %", "rho", summaries, &Summary::rho_steps, 420));
  }
  return svg + "</svg>\n";
}

}  // namespace nibble::fleet

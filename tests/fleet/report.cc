// Tables and plots of a fleet simulation.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/fleet/run.h"

namespace nibble::fleet {
namespace {

using Cells = std::vector<std::string>;

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

constexpr const char* kColors[] = {"#1b7f5c", "#3b5bdb", "#7048e8", "#e8590c",
                                   "#c2255c", "#868e96", "#212529"};
constexpr int kWidth = 960;
constexpr int kHeight = 400;

std::string Label(double x, double y, const std::string& text, const char* anchor, int size = 12) {
  return absl::StrFormat(
      "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" font-size=\"%d\" "
      "fill=\"#212529\">%s</text>\n",
      x, y, anchor, size, text);
}

// Horizontal bars, one per policy.
std::string Bars(const std::vector<Summary>& summaries) {
  double longest = 0;
  for (const Summary& s : summaries) longest = std::max(longest, s.mean_h);
  std::string svg = Label(20, 60, "Mean completion, hours", "start", 14);
  for (size_t i = 0; i < summaries.size(); ++i) {
    const double y = 80 + static_cast<double>(i) * 44;
    const double width = 250 * summaries[i].mean_h / std::max(longest, 1e-9);
    absl::StrAppend(&svg, Label(118, y + 19, summaries[i].policy, "end"));
    absl::StrAppendFormat(&svg,
                          "<rect x=\"124\" y=\"%.1f\" width=\"%.1f\" height=\"26\" fill=\"%s\"/>\n",
                          y, std::max(1.0, width), kColors[i % std::size(kColors)]);
    absl::StrAppend(
        &svg, Label(130 + width, y + 18, absl::StrFormat("%.1f", summaries[i].mean_h), "start"));
  }
  return svg;
}

// Share of jobs (y) with at most that slowdown (x, logarithmic).
std::string Curves(const std::vector<Summary>& summaries) {
  constexpr double kLeft = 530, kTop = 80, kW = 400, kH = 240;
  double worst = 10;
  for (const Summary& s : summaries) worst = std::max(worst, s.slowdown_steps.back());
  const double decades = std::ceil(std::log10(worst));
  const auto x_of = [&](double slowdown) { return kLeft + kW * std::log10(slowdown) / decades; };
  std::string svg = Label(kLeft - 30, 60, "Jobs with at most this slowdown, %", "start", 14);
  for (int d = 0; d <= static_cast<int>(decades); ++d) {
    const double x = x_of(std::pow(10.0, d));
    absl::StrAppendFormat(
        &svg, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#dee2e6\"/>\n", x,
        kTop, x, kTop + kH);
    absl::StrAppend(&svg,
                    Label(x, kTop + kH + 18, absl::StrFormat("%.0f", std::pow(10.0, d)), "middle"));
  }
  for (int p = 0; p <= 100; p += 25) {
    const double y = kTop + kH * (1 - p / 100.0);
    absl::StrAppendFormat(
        &svg, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#dee2e6\"/>\n", kLeft,
        y, kLeft + kW, y);
    absl::StrAppend(&svg, Label(kLeft - 6, y + 4, absl::StrCat(p), "end"));
  }
  for (size_t i = summaries.size(); i-- > 0;) {
    std::string points;
    for (size_t p = 0; p < summaries[i].slowdown_steps.size(); ++p) {
      absl::StrAppendFormat(&points, "%.1f,%.1f ", x_of(summaries[i].slowdown_steps[p]),
                            kTop + kH * (1 - static_cast<double>(p) / 100));
    }
    absl::StrAppendFormat(
        &svg, "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"%d\"/>\n", points,
        kColors[i % std::size(kColors)], i == 0 ? 3 : 2);
  }
  return svg;
}

}  // namespace

std::string TableText(const Scenario& scenario, const std::vector<Summary>& summaries) {
  std::vector<Cells> rows{Header()};
  for (const Summary& s : summaries) rows.push_back(Row(s));
  std::vector<size_t> widths(Header().size());
  for (const Cells& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  const int64_t runs = summaries.empty() ? 0 : summaries.front().runs;
  std::string text = absl::StrCat(scenario.name, ", ", runs, " runs\n");
  for (const Cells& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string pad(widths[i] - row[i].size(), ' ');
      absl::StrAppend(&text, i == 0 ? row[i] + pad : pad + row[i],
                      i + 1 < row.size() ? "  " : "\n");
    }
  }
  return text + Goals(summaries);
}

std::string TableMarkdown(const Scenario& scenario, const std::vector<Summary>& summaries) {
  std::string text = absl::StrCat("### ", scenario.name, "\n\n", scenario.about, "\n\n");
  const auto add = [&](const Cells& row) {
    for (const std::string& cell : row) absl::StrAppend(&text, "| ", cell, " ");
    absl::StrAppend(&text, "|\n");
  };
  add(Header());
  add(Cells(Header().size(), "---"));
  for (const Summary& s : summaries) add(Row(s));
  return absl::StrCat(text, "\n", Goals(summaries));
}

std::string PlotSvg(const Scenario& scenario, const std::vector<Summary>& summaries) {
  const int64_t runs = summaries.empty() ? 0 : summaries.front().runs;
  return absl::StrFormat(
             "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
             "height=\"%d\" "
             "font-family=\"sans-serif\">\n<rect width=\"100%%\" height=\"100%%\" "
             "fill=\"#ffffff\"/>\n",
             kWidth, kHeight, kWidth, kHeight) +
         Label(20, 30, absl::StrFormat("%s (%d runs)", scenario.name, runs), "start", 18) +
         Bars(summaries) + Curves(summaries) + "</svg>\n";
}

}  // namespace nibble::fleet

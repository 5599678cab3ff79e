// The SVG form of plan_figure.h.
#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "client/plan_figure.h"

namespace nibble::client {
namespace {

// Pixels. The legend stands to the right of both panels.
constexpr double kWidth = 1080, kHeight = 760, kLeft = 92, kRight = 838;
constexpr double kStackTop = 104, kStackBottom = 424, kRegionTop = 516, kRegionBottom = 716;
constexpr double kPlot = kRight - kLeft;

struct Look {
  const char* name;
  const char* fill;
};
constexpr Look kLooks[kLayerCount] = {
    {"process and host", "#9aa0a6"}, {"base", "#4c78a8"},        {"adapters", "#54a24b"},
    {"gradients", "#72b7b2"},        {"optimizer", "#b279a2"},   {"tables, alignment", "#c9b18b"},
    {"activations", "#f2a93b"},      {"workspace", "#e45756"}};

std::string Escape(const std::string& text) {
  return absl::StrReplaceAll(text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

void Text(std::string& out, double x, double y, const char* style, const std::string& text) {
  absl::StrAppendFormat(&out, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">%s</text>\n", x, y, style,
                        Escape(text));
}

// Round numbers of bytes from 0 to `most`, at most six steps apart.
std::vector<int64_t> Ticks(int64_t most) {
  int64_t unit = 1;
  while (unit <= most / 1024 && unit < (int64_t{1} << 40)) unit *= 1024;
  // Below two of a unit, the next smaller one gives rounder steps.
  if (unit > 1024 && most / unit < 2) unit /= 1024;
  double step = static_cast<double>(unit);
  for (int i = 0; static_cast<double>(most) / step > 6; ++i) step *= i % 3 == 1 ? 2.5 : 2;
  std::vector<int64_t> ticks;
  for (double at = 0; at <= static_cast<double>(most); at += step) {
    ticks.push_back(static_cast<int64_t>(at));
  }
  return ticks;
}

class Drawing {
 public:
  Drawing(const v1::MemoryLayout& layout, const PlanCurve& curve) : layout_(layout), curve_(curve) {}

  std::string Draw(const std::string& title, const std::string& subtitle) {
    absl::StrAppendFormat(
        &out_,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" "
        "viewBox=\"0 0 %.0f %.0f\" role=\"img\">\n<title>%s</title>\n"
        "<style>text{font-family:'DejaVu Sans',Helvetica,Arial,sans-serif;fill:#202124}"
        ".t{font-size:19px;font-weight:bold}.s{font-size:13px;fill:#5f6368}"
        ".h{font-size:14px;font-weight:bold}.a{font-size:12px;fill:#5f6368;text-anchor:end}"
        ".c{font-size:12px;fill:#5f6368;text-anchor:middle}.l{font-size:13px}"
        ".r{font-size:13px;text-anchor:end}.p{font-size:13px;font-weight:bold}"
        ".q{font-size:13px;font-weight:bold;text-anchor:end}"
        ".g{stroke:#dadce0;stroke-width:1}.x{stroke:#5f6368;stroke-width:1}</style>\n"
        "<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n",
        kWidth, kHeight, kWidth, kHeight, Escape(title));
    Text(out_, kLeft, 34, "t", title);
    Text(out_, kLeft, 56, "s", subtitle);
    DrawStack();
    DrawSpans();
    DrawRegion();
    DrawPeak();
    DrawLegend();
    return std::move(out_) + "</svg>\n";
  }

 private:
  double X(double operation) const {
    return kLeft + operation * kPlot / static_cast<double>(curve_.activation_bytes.size());
  }
  double StackY(double bytes) const {
    return kStackBottom - bytes / stack_most_ * (kStackBottom - kStackTop);
  }

  void Axis(double top, double bottom, int64_t most, double scale_most) {
    for (const int64_t tick : Ticks(most)) {
      const double y = bottom - static_cast<double>(tick) / scale_most * (bottom - top);
      absl::StrAppendFormat(&out_, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"g\"/>\n",
                            kLeft, y, kRight, y);
      Text(out_, kLeft - 8, y + 4, "a", tick == 0 ? "0" : FormatBytes(tick));
    }
  }

  void DrawStack() {
    const auto operations = curve_.activation_bytes.size();
    stack_most_ = 1.04 * static_cast<double>(std::max(curve_.planned_bytes, curve_.BytesAt(curve_.peak)));
    Axis(kStackTop, kStackBottom, static_cast<int64_t>(stack_most_), stack_most_);
    // A pixel column shows the most that is held within it.
    const size_t columns = std::min<size_t>(operations, static_cast<size_t>(kPlot));
    std::vector<int32_t> shown;
    for (size_t c = 0; c < columns; ++c) {
      auto best = static_cast<int32_t>(c * operations / columns);
      for (size_t op = c * operations / columns; op < (c + 1) * operations / columns; ++op) {
        if (curve_.BytesAt(static_cast<int32_t>(op)) > curve_.BytesAt(best)) best = static_cast<int32_t>(op);
      }
      shown.push_back(best);
    }
    std::vector<double> below(columns, 0);
    for (int layer = 0; layer < kLayerCount; ++layer) {
      std::vector<double> above = below;
      for (size_t c = 0; c < columns; ++c) {
        above[c] += static_cast<double>(curve_.LayerBytes(static_cast<Layer>(layer), shown[c]));
      }
      if (above != below) Area(kLooks[layer].fill, below, above);
      below = std::move(above);
    }
    const double y = StackY(static_cast<double>(curve_.planned_bytes));
    absl::StrAppendFormat(&out_,
                          "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"x\" "
                          "stroke-dasharray=\"6 4\"/>\n",
                          kLeft, y, kRight, y);
  }

  // Between two outlines of steps; runs of equal height become one step.
  void Area(const char* fill, const std::vector<double>& below, const std::vector<double>& above) {
    const size_t columns = below.size();
    const auto x = [&](size_t c) {
      return kLeft + static_cast<double>(c) * kPlot / static_cast<double>(columns);
    };
    absl::StrAppendFormat(&out_, "<path fill=\"%s\" d=\"M%.1f %.1f", fill, kLeft, StackY(above[0]));
    for (size_t c = 0; c < columns; ++c) {
      if (c == 0 || above[c] == above[c - 1]) continue;
      absl::StrAppendFormat(&out_, "H%.1fV%.1f", x(c), StackY(above[c]));
    }
    absl::StrAppendFormat(&out_, "H%.1fV%.1f", kRight, StackY(below[columns - 1]));
    for (size_t c = columns; c-- > 1;) {
      if (below[c] != below[c - 1]) absl::StrAppendFormat(&out_, "H%.1fV%.1f", x(c), StackY(below[c - 1]));
    }
    out_ += absl::StrFormat("H%.1fZ\"/>\n", kLeft);
  }

  void DrawSpans() {
    for (size_t i = 0; i < curve_.spans.size(); ++i) {
      const PlanCurve::Span& span = curve_.spans[i];
      const double from = X(span.first), to = X(span.last + 1);
      absl::StrAppendFormat(&out_,
                            "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"22\" fill=\"%s\"/>\n", from,
                            kStackBottom, to - from, i % 2 == 0 ? "#e8eaed" : "#f6f7f8");
      if (i > 0) {
        absl::StrAppendFormat(&out_, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"x\"/>\n",
                              from, kStackBottom, from, kStackBottom + 22);
      }
      if (to - from > 8.0 * static_cast<double>(span.name.size())) {
        Text(out_, (from + to) / 2, kStackBottom + 15, "c", span.name);
      }
    }
    absl::StrAppendFormat(&out_, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"x\"/>\n",
                          kLeft, kStackBottom, kRight, kStackBottom);
  }

  void DrawRegion() {
    Text(out_, kLeft, kRegionTop - 34, "h", "The step region: where every buffer lies, and when");
    Text(out_, kLeft, kRegionTop - 16, "s",
         absl::StrCat(FormatBytes(layout_.plan().step_bytes()),
                      ", reserved at exactly this size; offsets upwards, operations to the right"));
    const auto most = static_cast<double>(std::max<int64_t>(1, layout_.plan().step_bytes()));
    Axis(kRegionTop, kRegionBottom, layout_.plan().step_bytes(), most);
    for (const v1::PlannedBuffer& buffer : layout_.buffers()) {
      if (buffer.persistent()) continue;
      const double height = static_cast<double>(buffer.size_bytes()) / most * (kRegionBottom - kRegionTop);
      if (height < 0.15) continue;  // less than could be seen
      const double y = kRegionBottom -
                       static_cast<double>(buffer.offset()) / most * (kRegionBottom - kRegionTop) - height;
      const double from = X(buffer.first_use());
      const double width = std::max(0.4, X(buffer.last_use() + 1) - from);
      // A thin light edge sets neighbours apart where there is room for one.
      const bool edge = height > 4 && width > 4;
      absl::StrAppendFormat(&out_,
                            "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" "
                            "fill=\"%s\"%s/>\n",
                            from, y, width, height,
                            kLooks[static_cast<int>(buffer.category() == "workspace" ? Layer::kWorkspace
                                                                                     : Layer::kActivations)]
                                .fill,
                            edge ? " stroke=\"#ffffff\" stroke-width=\"0.5\"" : "");
    }
    absl::StrAppendFormat(&out_, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"x\"/>\n",
                          kLeft, kRegionBottom, kRight, kRegionBottom);
    Text(out_, (kLeft + kRight) / 2, kRegionBottom + 22, "c",
         absl::StrCat(curve_.activation_bytes.size(),
                      " operations of one micro-batch, the optimizer and an evaluation, in order; not to "
                      "scale of time"));
  }

  void DrawPeak() {
    const double x = X(curve_.peak + 0.5);
    const double y = StackY(static_cast<double>(curve_.BytesAt(curve_.peak)));
    for (const auto& [top, bottom] :
         {std::pair{kStackTop - 12, kStackBottom + 22}, {kRegionTop, kRegionBottom}}) {
      absl::StrAppendFormat(&out_,
                            "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#202124\" "
                            "stroke-dasharray=\"2 3\"/>\n",
                            x, top, x, bottom);
    }
    absl::StrAppendFormat(&out_, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"#202124\"/>\n", x, y);
    const bool left = x > (kLeft + kRight) / 2;
    Text(out_, left ? x - 8 : x + 8, kStackTop - 8, left ? "q" : "p",
         absl::StrCat("peak ", FormatBytes(curve_.BytesAt(curve_.peak)), " in ", curve_.peak_phase));
  }

  void DrawLegend() {
    const double x = kRight + 24, edge = kWidth - 20;
    double y = kStackTop + 6;
    Text(out_, x, y, "h", "at the peak");
    const auto row = [&](const char* fill, const std::string& name, int64_t bytes, const char* style) {
      y += 25;
      if (fill != nullptr) {
        absl::StrAppendFormat(&out_,
                              "<rect x=\"%.1f\" y=\"%.1f\" width=\"13\" height=\"13\" fill=\"%s\"/>\n", x,
                              y - 11, fill);
      }
      Text(out_, x + 21, y, "l", name);
      Text(out_, edge, y, style, FormatBytes(bytes));
    };
    for (int i = kLayerCount - 1; i >= 0; --i) {
      const int64_t bytes = curve_.LayerBytes(static_cast<Layer>(i), curve_.peak);
      if (bytes > 0) row(kLooks[i].fill, kLooks[i].name, bytes, "r");
    }
    y += 8;
    absl::StrAppendFormat(&out_,
                          "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"g\"/>\n",
                          x, y, edge, y);
    row(nullptr, "held", curve_.BytesAt(curve_.peak), "q");
    row(nullptr, "reserved", curve_.planned_bytes, "q");
    absl::StrAppendFormat(&out_,
                          "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"x\" "
                          "stroke-dasharray=\"6 4\"/>\n",
                          x, y - 4, x + 15, y - 4);
  }

  const v1::MemoryLayout& layout_;
  const PlanCurve& curve_;
  double stack_most_ = 1;
  std::string out_;
};

}  // namespace

std::string PlanSvg(const v1::MemoryLayout& layout, const std::string& title,
                    const std::string& subtitle) {
  const PlanCurve curve = CurveOf(layout);
  if (curve.activation_bytes.empty()) return "";
  return Drawing(layout, curve).Draw(title, subtitle);
}

}  // namespace nibble::client

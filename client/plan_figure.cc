#include "client/plan_figure.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace nibble::client {
namespace {

struct LayerLook {
  const char* name;
  Ink ink;
  const char* plain;  // without colour
};
constexpr LayerLook kLooks[kLayerCount] = {
    {"process and host", Ink::kDim, "."}, {"base", Ink::kBlue, ":"},
    {"adapters", Ink::kGreen, "a"},       {"gradients", Ink::kCyan, "g"},
    {"optimizer", Ink::kMagenta, "o"},    {"tables", Ink::kPlain, "t"},
    {"activations", Ink::kYellow, "#"},   {"workspace", Ink::kRed, "w"}};

// "backward layer 3" and "recompute layer 3" are both of the backward pass.
std::string SpanName(const std::string& phase) {
  const std::string word = phase.substr(0, phase.find(' '));
  if (word == "recompute") return "backward";
  return word == "evaluate" ? "evaluation" : word;
}

struct Column {
  int32_t operation = 0;  // the one with the most bytes of those the column stands for
  bool peak = false;
};

std::vector<Column> Columns(const PlanCurve& curve, int width) {
  const auto operations = static_cast<int64_t>(curve.activation_bytes.size());
  std::vector<Column> columns(static_cast<size_t>(std::min<int64_t>(width, operations)));
  for (size_t c = 0; c < columns.size(); ++c) {
    const auto begin = static_cast<int32_t>(static_cast<int64_t>(c) * operations /
                                            static_cast<int64_t>(columns.size()));
    const auto end = static_cast<int32_t>(static_cast<int64_t>(c + 1) * operations /
                                          static_cast<int64_t>(columns.size()));
    columns[c].operation = begin;
    for (int32_t op = begin; op < end; ++op) {
      if (curve.BytesAt(op) > curve.BytesAt(columns[c].operation)) columns[c].operation = op;
      columns[c].peak = columns[c].peak || op == curve.peak;
    }
  }
  return columns;
}

// Where the axis begins: at zero, unless what never changes would take most of the height.
double AxisLow(const PlanCurve& curve) {
  const auto top = static_cast<double>(curve.BytesAt(curve.peak));
  const double moving = top - static_cast<double>(curve.ConstantBytes());
  if (moving > 0.4 * top) return 0;
  return std::max(0.0, top - 2.2 * std::max(moving, 0.01 * top));
}

// One cell of the stack, seen at height `bytes`.
std::string Cell(const PlanCurve& curve, int32_t operation, double low, double high,
                 const Style& style) {
  constexpr std::string_view kBlocks[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  const auto total = static_cast<double>(curve.BytesAt(operation));
  if (total <= low) return " ";
  const double seen = std::min((low + high) / 2, (low + total) / 2);
  double reached = 0;
  int layer = 0;
  for (; layer < kLayerCount - 1; ++layer) {
    reached += static_cast<double>(curve.LayerBytes(static_cast<Layer>(layer), operation));
    if (reached > seen) break;
  }
  const LayerLook& look = kLooks[layer];
  const double filled = std::min(1.0, (total - low) / (high - low));
  if (!style.color || !style.unicode) return filled < 0.25 ? " " : look.plain;
  return Paint(style, look.ink, kBlocks[std::clamp(static_cast<int>(filled * 8 + 0.5) - 1, 0, 7)]);
}

std::string Repeat(std::string_view text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out.append(text);
  return out;
}

// Names of the spans under the columns, each in its own stretch.
std::string SpanLine(const PlanCurve& curve, const std::vector<Column>& columns, const Style& style) {
  const auto operations = static_cast<int64_t>(curve.activation_bytes.size());
  const auto width = static_cast<int64_t>(columns.size());
  std::string out;
  int at = 0;
  for (const PlanCurve::Span& span : curve.spans) {
    const int end = static_cast<int>((int64_t{span.last} + 1) * width / operations);
    const int room = end - at;
    if (room <= 0) continue;
    std::string name = room >= 3 ? span.name.substr(0, static_cast<size_t>(room - 1)) : "";
    if (name.size() < span.name.size() && room < 6) name.clear();
    const int rest = room - 1 - static_cast<int>(name.size());
    const std::string_view line = style.unicode ? "─" : "-";
    absl::StrAppend(&out, style.unicode ? "╵" : "|",
                    Paint(style, Ink::kDim, Repeat(line, rest / 2)), name,
                    Paint(style, Ink::kDim, Repeat(line, rest - rest / 2)));
    at = end;
  }
  return out;
}

}  // namespace

int64_t PlanCurve::ConstantBytes() const {
  int64_t sum = 0;
  for (const int64_t bytes : constant_bytes) sum += bytes;
  return sum;
}

int64_t PlanCurve::LayerBytes(Layer layer, int32_t operation) const {
  const auto op = static_cast<size_t>(operation);
  if (layer == Layer::kActivations) return activation_bytes[op];
  if (layer == Layer::kWorkspace) return workspace_bytes[op];
  return constant_bytes[static_cast<size_t>(layer)];
}

int64_t PlanCurve::BytesAt(int32_t operation) const {
  const auto op = static_cast<size_t>(operation);
  return ConstantBytes() + activation_bytes[op] + workspace_bytes[op];
}

PlanCurve CurveOf(const v1::MemoryLayout& layout) {
  PlanCurve curve;
  const auto operations = static_cast<size_t>(std::max(0, layout.operations()));
  // Differences first: a buffer adds its bytes where it begins and takes them away behind its end.
  std::vector<int64_t> activations(operations + 1), workspace(operations + 1);
  const auto at = [&](Layer layer) -> int64_t& {
    return curve.constant_bytes[static_cast<size_t>(layer)];
  };
  int64_t lasting = 0, lasting_end = layout.plan().persistent_bytes();
  for (const v1::PlannedBuffer& buffer : layout.buffers()) {
    // A job of short micro-batches has its activations in its persistent region.
    if (buffer.persistent() && buffer.last_use() > 0) lasting_end = std::min(lasting_end, buffer.offset());
    if (!buffer.persistent() || buffer.last_use() > 0) {
      std::vector<int64_t>& change = buffer.category() == "workspace" ? workspace : activations;
      const auto first = static_cast<size_t>(std::max(0, buffer.first_use()));
      const auto last = static_cast<size_t>(std::max(0, buffer.last_use()));
      if (first > last || last >= operations) continue;
      change[first] += buffer.size_bytes();
      change[last + 1] -= buffer.size_bytes();
      continue;
    }
    lasting += buffer.size_bytes();
    at(buffer.category() == "adapters"    ? Layer::kAdapters
       : buffer.category() == "gradients" ? Layer::kGradients
       : buffer.category() == "optimizer" ? Layer::kOptimizer
                                          : Layer::kTables) += buffer.size_bytes();
  }
  const v1::MemoryPlan& plan = layout.plan();
  at(Layer::kBase) = plan.base_bytes();
  at(Layer::kTables) += lasting_end - lasting;
  at(Layer::kProcess) =
      plan.total_bytes() - plan.base_bytes() - plan.persistent_bytes() - plan.step_bytes();
  curve.planned_bytes = plan.total_bytes();
  int64_t live_activations = 0, live_workspace = 0;
  for (size_t op = 0; op < operations; ++op) {
    curve.activation_bytes.push_back(live_activations += activations[op]);
    curve.workspace_bytes.push_back(live_workspace += workspace[op]);
    const auto now = static_cast<int32_t>(op);
    if (curve.BytesAt(now) > curve.BytesAt(curve.peak)) curve.peak = now;
  }
  for (int i = 0; i < layout.phases_size(); ++i) {
    const v1::PlanPhase& phase = layout.phases(i);
    const int32_t next =
        i + 1 < layout.phases_size() ? layout.phases(i + 1).first_use() : layout.operations();
    if (phase.first_use() <= curve.peak && curve.peak < next) curve.peak_phase = phase.name();
    const std::string name = SpanName(phase.name());
    if (curve.spans.empty() || curve.spans.back().name != name) {
      curve.spans.push_back({name, phase.first_use(), next - 1});
    }
    curve.spans.back().last = next - 1;
  }
  return curve;
}

std::vector<std::string> PlotPlan(const PlanCurve& curve, int width, int height, const Style& style) {
  std::vector<std::string> lines;
  constexpr int kMargin = 12;
  if (curve.activation_bytes.empty() || width < kMargin + 20 || height < 4) return lines;
  const std::vector<Column> columns = Columns(curve, width - kMargin);
  const double low = AxisLow(curve);
  const auto top = static_cast<double>(curve.BytesAt(curve.peak));
  const double row_bytes = (top - low) / height;

  int peak_column = 0;
  while (!columns[static_cast<size_t>(peak_column)].peak) ++peak_column;
  const std::string label =
      absl::StrCat("peak ", FormatBytes(curve.BytesAt(curve.peak)), " in ", curve.peak_phase);
  const bool left = peak_column + 2 + static_cast<int>(label.size()) > static_cast<int>(columns.size());
  const std::string mark = style.unicode ? "▼" : "v";
  const int indent = left ? std::max(0, peak_column - static_cast<int>(label.size()) - 1) : peak_column;
  lines.push_back(absl::StrCat(
      std::string(static_cast<size_t>(kMargin + indent), ' '),
      Paint(style, Ink::kBold, left ? absl::StrCat(label, " ", mark) : absl::StrCat(mark, " ", label))));
  for (int row = height - 1; row >= 0; --row) {
    const double from = low + row * row_bytes;
    const bool named = row == height - 1 || row == 0 || row == height / 2;
    const std::string tick =
        named ? FormatBytes(static_cast<int64_t>(row == height - 1 ? top : from)) : "";
    std::string line = absl::StrFormat("%*s ", kMargin - 2, tick);
    const bool cut = row == 0 && low > 0;
    line += style.unicode ? (cut ? "≈" : named ? "┤" : "│") : cut ? "~" : "|";
    for (const Column& column : columns) {
      line += Cell(curve, column.operation, from, from + row_bytes, style);
    }
    lines.push_back(std::move(line));
  }
  lines.push_back(std::string(kMargin, ' ') + SpanLine(curve, columns, style));
  std::string legend;
  int used = 0;
  for (int i = kLayerCount - 1; i >= 0; --i) {
    const int64_t bytes = curve.LayerBytes(static_cast<Layer>(i), curve.peak);
    if (bytes == 0) continue;
    const std::string entry = absl::StrCat(kLooks[i].name, " ", FormatBytes(bytes));
    if (used > 0 && used + static_cast<int>(entry.size()) + 4 > width - kMargin) {
      lines.push_back(std::string(kMargin, ' ') + legend);
      legend.clear();
      used = 0;
    }
    const bool blocks = style.color && style.unicode;
    absl::StrAppend(&legend, used ? "  " : "",
                    blocks ? Paint(style, kLooks[i].ink, "█") : std::string(kLooks[i].plain), " ", entry);
    used += static_cast<int>(entry.size()) + 4;
  }
  lines.push_back(std::string(kMargin, ' ') + legend);
  const auto foot = [&](const std::string& text) {
    lines.push_back(std::string(kMargin, ' ') + Paint(style, Ink::kDim, text));
  };
  foot(absl::StrCat(FormatBytes(curve.planned_bytes), " reserved; ", curve.activation_bytes.size(),
                    " operations, not to scale of time"));
  if (low > 0) {
    foot(absl::StrCat("the axis begins at ", FormatBytes(static_cast<int64_t>(low)),
                      "; what lies below never changes"));
  }
  return lines;
}

}  // namespace nibble::client

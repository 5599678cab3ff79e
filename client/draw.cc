#include "client/draw.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "absl/strings/str_cat.h"

namespace nibble::client {
namespace {

constexpr std::string_view kBlocks[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
constexpr std::string_view kEighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
constexpr std::string_view kAsciiLevels = "_.-~=+*#";

void AppendUtf8(std::string& out, uint32_t code) {
  out += static_cast<char>(0xE0 | (code >> 12));
  out += static_cast<char>(0x80 | ((code >> 6) & 0x3F));
  out += static_cast<char>(0x80 | (code & 0x3F));
}

std::vector<double> Bucketed(const std::vector<double>& values, int width) {
  const size_t cells = std::min(values.size(), static_cast<size_t>(std::max(width, 0)));
  std::vector<double> out;
  for (size_t i = 0; i < cells; ++i) {
    const size_t begin = i * values.size() / cells;
    const size_t end = (i + 1) * values.size() / cells;
    double sum = 0;
    int count = 0;
    for (size_t j = begin; j < end; ++j) {
      if (!std::isfinite(values[j])) continue;
      sum += values[j];
      ++count;
    }
    out.push_back(count ? sum / count : std::numeric_limits<double>::quiet_NaN());
  }
  return out;
}

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void Add(double v) {
    low = std::min(low, v);
    high = std::max(high, v);
  }
  bool empty() const { return low > high; }
  // A flat range is widened, so that a constant series is drawn in the middle.
  void Widen() {
    if (high > low) return;
    const double pad = low == 0 ? 1 : std::abs(low) * 0.05;
    low -= pad;
    high += pad;
  }
};

// The dots of one plot, two columns and four rows a cell.
class Canvas {
 public:
  Canvas(int width, int height)
      : width_(width), height_(height), dots_(static_cast<size_t>(width * height)) {}
  void Dot(int x, int y) {
    if (x < 0 || y < 0 || x >= width_ * 2 || y >= height_ * 4) return;
    static constexpr uint8_t kBits[4][2] = {{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};
    dots_[static_cast<size_t>(y / 4 * width_ + x / 2)] |= kBits[y % 4][x % 2];
  }
  void Line(int x0, int y0, int x1, int y1) {
    const int steps = std::max({std::abs(x1 - x0), std::abs(y1 - y0), 1});
    for (int i = 0; i <= steps; ++i) {
      Dot(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps);
    }
  }
  uint8_t Cell(int column, int row) const {
    return dots_[static_cast<size_t>(row * width_ + column)];
  }

 private:
  int width_;
  int height_;
  std::vector<uint8_t> dots_;
};

std::string PadLeft(const std::string& text, int width) {
  return std::string(static_cast<size_t>(std::max(0, width - DisplayWidth(text))), ' ') + text;
}

Canvas DrawSeries(const Series& series, const Range& xs, const Range& ys, int width, int height) {
  Canvas canvas(width, height);
  bool joined = false;
  int last_x = 0;
  int last_y = 0;
  for (size_t i = 0; i < series.x.size() && i < series.y.size(); ++i) {
    if (!std::isfinite(series.y[i]) || !std::isfinite(series.x[i])) {
      joined = false;
      continue;
    }
    const double fx = (series.x[i] - xs.low) / (xs.high - xs.low);
    const double fy = (series.y[i] - ys.low) / (ys.high - ys.low);
    const int x = static_cast<int>(std::lround(fx * (width * 2 - 1)));
    const int y = static_cast<int>(std::lround((1 - fy) * (height * 4 - 1)));
    if (joined) {
      canvas.Line(last_x, last_y, x, y);
    } else {
      canvas.Dot(x, y);
    }
    joined = true;
    last_x = x;
    last_y = y;
  }
  return canvas;
}

constexpr Ink kSeriesInk[] = {Ink::kBlue, Ink::kYellow, Ink::kGreen, Ink::kRed};
// Where neither colour nor dots tell series apart.
constexpr std::string_view kSeriesMarks = "*o+x";

std::string PlotRow(const std::vector<Canvas>& layers, int row, int width, const Style& style) {
  std::string line;
  for (int column = 0; column < width; ++column) {
    uint8_t bits = 0;
    Ink ink = Ink::kPlain;
    char mark = '*';
    for (size_t s = 0; s < layers.size(); ++s) {
      const uint8_t own = layers[s].Cell(column, row);
      if (own) ink = kSeriesInk[s % 4];
      if (own) mark = kSeriesMarks[s % 4];
      bits |= own;
    }
    if (!bits) {
      line += ' ';
    } else if (style.unicode && (style.color || layers.size() == 1)) {
      std::string cell;
      AppendUtf8(cell, 0x2800u + bits);
      line += Paint(style, ink, cell);
    } else {
      line += mark;
    }
  }
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line;
}

}  // namespace

std::string Bar(double fraction, int width, const Style& style) {
  if (width <= 0) return "";
  if (!std::isfinite(fraction)) fraction = 0;
  fraction = std::clamp(fraction, 0.0, 1.0);
  std::string out;
  if (!style.unicode) {
    const int full = static_cast<int>(fraction * width);
    out.assign(static_cast<size_t>(full), '#');
    out.append(static_cast<size_t>(width - full), '.');
    return out;
  }
  const int eighths = static_cast<int>(fraction * width * 8);
  int cells = eighths / 8;
  for (int i = 0; i < cells; ++i) out += "█";
  if (eighths % 8 != 0) {
    out += kEighths[eighths % 8];
    ++cells;
  }
  std::string rest;
  for (int i = cells; i < width; ++i) rest += "·";
  return out + Paint(style, rest.empty() ? Ink::kPlain : Ink::kDim, rest);
}

std::string Sparkline(const std::vector<double>& values, int width, const Style& style) {
  const std::vector<double> cells = Bucketed(values, width);
  Range range;
  for (double v : cells) {
    if (std::isfinite(v)) range.Add(v);
  }
  std::string out;
  for (double v : cells) {
    if (!std::isfinite(v)) {
      out += ' ';
      continue;
    }
    const double span = range.high - range.low;
    const int level = span > 0 ? std::min(7, static_cast<int>((v - range.low) / span * 8)) : 3;
    if (style.unicode) {
      out += kBlocks[level];
    } else {
      out += kAsciiLevels[static_cast<size_t>(level)];
    }
  }
  return out;
}

std::vector<std::string> Plot(const std::vector<Series>& series, int width, int height,
                              const Style& style) {
  Range xs;
  Range ys;
  for (const Series& s : series) {
    for (size_t i = 0; i < s.x.size() && i < s.y.size(); ++i) {
      if (!std::isfinite(s.x[i]) || !std::isfinite(s.y[i])) continue;
      xs.Add(s.x[i]);
      ys.Add(s.y[i]);
    }
  }
  if (xs.empty() || height < 2) return {};
  const Range x_shown = xs;
  xs.Widen();
  ys.Widen();
  const std::string top = FormatLoss(ys.high);
  const std::string bottom = FormatLoss(ys.low);
  const int margin = std::max(DisplayWidth(top), DisplayWidth(bottom));
  const int inner = width - margin - 2;
  if (inner < 8) return {};
  std::vector<Canvas> layers;
  for (const Series& s : series) layers.push_back(DrawSeries(s, xs, ys, inner, height));

  const std::string axis = style.unicode ? "┤" : "|";
  std::vector<std::string> lines;
  for (int row = 0; row < height; ++row) {
    const std::string label = row == 0 ? top : row == height - 1 ? bottom : "";
    lines.push_back(
        absl::StrCat(PadLeft(label, margin), " ", axis, PlotRow(layers, row, inner, style)));
  }
  const std::string left = absl::StrCat(static_cast<int64_t>(x_shown.low));
  const std::string right = absl::StrCat(static_cast<int64_t>(x_shown.high));
  lines.push_back(absl::StrCat(std::string(static_cast<size_t>(margin + 2), ' '), left,
                               PadLeft(right, inner - static_cast<int>(left.size()))));
  if (series.size() > 1) {
    std::string legend(static_cast<size_t>(margin + 2), ' ');
    for (size_t s = 0; s < series.size(); ++s) {
      absl::StrAppend(&legend, s ? "   " : "",
                      Paint(style, kSeriesInk[s % 4],
                            style.unicode && style.color ? "━" : std::string_view(&kSeriesMarks[s % 4], 1)),
                      " ",
                      series[s].name);
    }
    lines.push_back(legend);
  }
  return lines;
}

}  // namespace nibble::client

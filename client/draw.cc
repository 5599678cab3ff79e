#include "client/draw.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace nibble::client {
namespace {

constexpr std::string_view kBlocks[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
constexpr std::string_view kEighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
constexpr std::string_view kAsciiLevels = "_.-~=+*#";

bool IsContinuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

// The end of the escape sequence starting at `i`, or `i` when there is none.
size_t SkipEscape(std::string_view text, size_t i) {
  if (text[i] != '\x1b' || i + 1 >= text.size() || text[i + 1] != '[') return i;
  size_t j = i + 2;
  while (j < text.size() && !(text[j] >= '@' && text[j] <= '~')) ++j;
  return j < text.size() ? j + 1 : j;
}

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

std::string PlotRow(const std::vector<Canvas>& layers, int row, int width, const Style& style) {
  std::string line;
  for (int column = 0; column < width; ++column) {
    uint8_t bits = 0;
    Ink ink = Ink::kPlain;
    for (size_t s = 0; s < layers.size(); ++s) {
      const uint8_t own = layers[s].Cell(column, row);
      if (own) ink = kSeriesInk[s % 4];
      bits |= own;
    }
    if (!bits) {
      line += ' ';
    } else if (style.unicode) {
      std::string cell;
      AppendUtf8(cell, 0x2800u + bits);
      line += Paint(style, ink, cell);
    } else {
      line += '*';
    }
  }
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line;
}

}  // namespace

std::string Paint(const Style& style, Ink ink, std::string_view text) {
  static constexpr std::string_view kCodes[] = {"", "1", "2", "31", "32", "33", "34", "35", "36"};
  if (!style.color || ink == Ink::kPlain) return std::string(text);
  return absl::StrCat("\x1b[", std::string(kCodes[static_cast<int>(ink)]), "m", std::string(text),
                      "\x1b[0m");
}

std::string FormatBytes(int64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  while (std::abs(value) >= 1024 && unit < 5) {
    value /= 1024;
    ++unit;
  }
  if (unit == 0) return absl::StrFormat("%d B", bytes);
  return absl::StrFormat(std::abs(value) >= 100 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
}

std::string FormatCount(double count) {
  if (!std::isfinite(count)) return "-";
  if (std::abs(count) < 1000) return absl::StrFormat("%.0f", count);
  static constexpr const char* kUnits[] = {"", "k", "M", "G", "T"};
  int unit = 0;
  while (std::abs(count) >= 1000 && unit < 4) {
    count /= 1000;
    ++unit;
  }
  return absl::StrFormat(std::abs(count) >= 100 ? "%.0f%s" : "%.1f%s", count, kUnits[unit]);
}

std::string FormatDuration(int64_t seconds) {
  if (seconds < 0) return "-";
  if (seconds < 60) return absl::StrFormat("%ds", seconds);
  if (seconds < 3600) return absl::StrFormat("%dm%02ds", seconds / 60, seconds % 60);
  if (seconds < 86400) return absl::StrFormat("%dh%02dm", seconds / 3600, seconds / 60 % 60);
  return absl::StrFormat("%dd%02dh", seconds / 86400, seconds / 3600 % 24);
}

std::string FormatLoss(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  const double size = std::abs(value);
  if (size != 0 && size < 0.001) return absl::StrFormat("%.1e", value);
  if (size < 10) return absl::StrFormat("%.4f", value);
  return absl::StrFormat(size < 1000 ? "%.2f" : "%.0f", value);
}

std::string FormatRate(double value) {
  return std::isfinite(value) ? absl::StrFormat("%.1e", value) : FormatLoss(value);
}

int DisplayWidth(std::string_view text) {
  int width = 0;
  for (size_t i = 0; i < text.size();) {
    const size_t next = SkipEscape(text, i);
    if (next != i) {
      i = next;
      continue;
    }
    if (!IsContinuation(text[i])) ++width;
    ++i;
  }
  return width;
}

std::string Ellipsize(std::string_view text, int width) {
  if (DisplayWidth(text) <= width) return std::string(text);
  if (width <= 0) return "";
  std::string out;
  int used = 0;
  bool cut = false;
  for (size_t i = 0; i < text.size();) {
    size_t next = SkipEscape(text, i);
    const bool escape = next != i;
    if (!escape) {
      next = i + 1;
      while (next < text.size() && IsContinuation(text[next])) ++next;
    }
    if (escape) {
      out.append(text.substr(i, next - i));
    } else if (used < width - 1) {
      out.append(text.substr(i, next - i));
      ++used;
    } else if (!cut) {
      out += "…";
      cut = true;
    }
    i = next;
  }
  return out;
}

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
                      Paint(style, kSeriesInk[s % 4], style.unicode ? "━" : "*"), " ",
                      series[s].name);
    }
    lines.push_back(legend);
  }
  return lines;
}

std::string Table(const std::vector<std::vector<std::string>>& rows, const Style& style,
                  const std::vector<int>& right) {
  std::vector<int> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], DisplayWidth(row[c]));
  }
  std::string out;
  for (size_t r = 0; r < rows.size(); ++r) {
    std::string line;
    for (size_t c = 0; c < rows[r].size(); ++c) {
      const std::string cell = r == 0 ? Paint(style, Ink::kBold, rows[r][c]) : rows[r][c];
      const int gap = widths[c] - DisplayWidth(cell);
      const bool to_right =
          std::find(right.begin(), right.end(), static_cast<int>(c)) != right.end();
      if (c) line += "  ";
      if (to_right) line.append(static_cast<size_t>(gap), ' ');
      line += cell;
      if (!to_right && c + 1 < rows[r].size()) line.append(static_cast<size_t>(gap), ' ');
    }
    absl::StrAppend(&out, line, "\n");
  }
  return out;
}

}  // namespace nibble::client

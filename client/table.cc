// Tables, and what they do where they are wider than the terminal.
#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/draw.h"

namespace nibble::client {
namespace {

using Rows = std::vector<std::vector<std::string>>;

constexpr int kGap = 2;
// A column of words is not wrapped into fewer cells than this.
constexpr int kNarrowest = 16;

std::vector<int> Widths(const Rows& rows) {
  std::vector<int> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], DisplayWidth(row[c]));
  }
  return widths;
}

int Total(const std::vector<int>& widths) {
  int total = 0;
  for (const int width : widths) total += width + kGap;
  return std::max(0, total - kGap);
}

bool IsIn(const std::vector<int>& columns, size_t c) {
  return std::find(columns.begin(), columns.end(), static_cast<int>(c)) != columns.end();
}

std::string Aligned(const Rows& rows, const std::vector<int>& widths, const std::vector<int>& right) {
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c) {
      const auto gap = static_cast<size_t>(std::max(0, widths[c] - DisplayWidth(row[c])));
      if (c) line.append(kGap, ' ');
      if (IsIn(right, c)) line.append(gap, ' ');
      line += row[c];
      if (!IsIn(right, c) && c + 1 < row.size()) line.append(gap, ' ');
    }
    while (!line.empty() && line.back() == ' ') line.pop_back();
    absl::StrAppend(&out, line, "\n");
  }
  return out;
}

std::string WithoutPaint(const std::string& text) {
  std::string out;
  bool escape = false;
  for (const char c : text) {
    if (c == '\x1b') {
      escape = true;
    } else if (!escape) {
      out += c;
    } else if (c == 'm') {
      escape = false;
    }
  }
  return out;
}

// At spaces; a word that is longer stays whole.
std::vector<std::string> Wrapped(const std::string& text, int width) {
  std::vector<std::string> lines(1);
  for (const absl::string_view word : absl::StrSplit(text, ' ', absl::SkipEmpty())) {
    const std::string next(word);
    std::string& line = lines.back();
    if (line.empty()) {
      line = next;
    } else if (DisplayWidth(line) + 1 + DisplayWidth(next) <= width) {
      absl::StrAppend(&line, " ", next);
    } else {
      lines.push_back(next);
    }
  }
  return lines;
}

// The rows with the words of one column wrapped (and no longer painted); empty when they do not fit even so.
Rows WithWrapped(const Rows& rows, size_t column, int width) {
  Rows out;
  for (const auto& row : rows) {
    if (row.size() <= column || DisplayWidth(row[column]) <= width) {
      out.push_back(row);
      continue;
    }
    const std::vector<std::string> lines = Wrapped(WithoutPaint(row[column]), width);
    for (size_t i = 0; i < lines.size(); ++i) {
      if (DisplayWidth(lines[i]) > width) return {};
      out.push_back(i == 0 ? row : std::vector<std::string>(row.size()));
      out.back()[column] = lines[i];
    }
  }
  return out;
}

// Row by row: its first cell, and under it "label value" as many a line as there is room for.
std::string Records(const Rows& rows, const Style& style) {
  std::string out;
  for (size_t r = 1; r < rows.size(); ++r) {
    absl::StrAppend(&out, Paint(style, Ink::kBold, rows[r].empty() ? "" : rows[r][0]), "\n");
    std::string line;
    for (size_t c = 1; c < rows[r].size() && c < rows[0].size(); ++c) {
      if (rows[r][c].empty() || rows[r][c] == "-") continue;
      const std::string label = absl::AsciiStrToLower(absl::StripAsciiWhitespace(rows[0][c]));
      const std::string item =
          absl::StrCat(label.empty() ? "" : Paint(style, Ink::kDim, label) + " ", rows[r][c]);
      if (!line.empty() && DisplayWidth(line) + kGap + DisplayWidth(item) > style.columns) {
        absl::StrAppend(&out, line, "\n");
        line.clear();
      }
      absl::StrAppend(&line, line.empty() ? "    " : "  ", item);
    }
    if (!line.empty()) absl::StrAppend(&out, line, "\n");
  }
  return out;
}

}  // namespace

std::string Table(const Rows& rows, const Style& style, const std::vector<int>& right) {
  Rows painted = rows;
  if (!painted.empty()) {
    for (std::string& cell : painted[0]) cell = Paint(style, Ink::kBold, cell);
  }
  std::vector<int> widths = Widths(painted);
  const int over = style.columns > 0 ? Total(widths) - style.columns : 0;
  if (over <= 0) return Aligned(painted, widths, right);
  size_t widest = 0;
  for (size_t c = 1; c < widths.size(); ++c) {
    if (!IsIn(right, c) && (widest == 0 || widths[c] > widths[widest])) widest = c;
  }
  if (widest > 0 && widths[widest] - over >= kNarrowest) {
    const Rows wrapped = WithWrapped(painted, widest, widths[widest] - over);
    if (!wrapped.empty()) return Aligned(wrapped, Widths(wrapped), right);
  }
  if (rows.size() > 1) return Records(rows, style);
  std::string header = Aligned(painted, widths, right);
  header.pop_back();
  return Ellipsize(header, style.columns, style) + "\n";
}

}  // namespace nibble::client

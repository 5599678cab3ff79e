// Drawing for a terminal, as pure functions: numbers in, text out.
//
// Text is UTF-8. A Style says what the terminal can do; with everything off the same functions make plain
// ASCII for pipes and logs.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::client {

struct Style {
  bool color = false;
  bool unicode = true;
  int columns = 0;  // cells a line may take; 0 = no bound, as in a pipe
};

// Wraps `text` in one of our few colours; unchanged when the style has none.
enum class Ink { kPlain, kBold, kDim, kRed, kGreen, kYellow, kBlue, kMagenta, kCyan };
std::string Paint(const Style& style, Ink ink, std::string_view text);

// "1.5 GiB", "12.0 KiB", "17 B"; negative values keep their sign.
std::string FormatBytes(int64_t bytes);
// "850", "1.9k", "12.3M".
std::string FormatCount(double count);
// "12s", "3m05s", "2h04m", "3d02h"; "-" for negative.
std::string FormatDuration(int64_t seconds);
// Four significant digits: "0.4124", "12.34", "1.2e-05"; "nan", "inf" spelled out.
std::string FormatLoss(double value);
// "2.0e-04", the usual way of writing a learning rate.
std::string FormatRate(double value);

// Cells a text takes: escape sequences and combining marks none, East Asian wide characters and emoji two.
int DisplayWidth(std::string_view text);
// At most `width` cells, the last one "…" (or ".") if something was cut. Escape sequences survive
// whole.
std::string Ellipsize(std::string_view text, int width, const Style& style);
// What others wrote (a file's name, say), safe to show: control characters, which could move the cursor or
// break a line, become "?".
std::string Printable(std::string_view text);
// File names are bytes; a message holds UTF-8 alone. What is none becomes "?".
std::string ValidUtf8(std::string_view text);

// A bar of `width` cells, filled to `fraction` (clamped to 0..1) in eighths of a cell.
std::string Bar(double fraction, int width, const Style& style);

// One line of at most `width` cells; longer series are averaged in buckets, non-finite values are
// gaps. Low is low: the smallest value is the lowest block.
std::string Sparkline(const std::vector<double>& values, int width, const Style& style);

struct Series {
  std::string name;
  std::vector<double> x;
  std::vector<double> y;
};
// A braille plot (2 x 4 dots a cell) with axes: `height` rows of plot, one of ticks, one of legend
// when there is more than one series. Several series without colour have a mark each.
// Non-finite points are left out. Empty when nothing can be drawn.
std::vector<std::string> Plot(const std::vector<Series>& series, int width, int height,
                              const Style& style);

// Columns padded to their widest cell and parted by two spaces; the first row is the header.
// Columns named in `right` are aligned to the right. Wider than style.columns, the widest column of words is
// wrapped; where that is not enough each row becomes a few lines of "label value".
std::string Table(const std::vector<std::vector<std::string>>& rows, const Style& style,
                  const std::vector<int>& right = {});

}  // namespace nibble::client

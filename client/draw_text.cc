// What text takes on a terminal, and how numbers are written.
#include <cmath>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/draw.h"

namespace nibble::client {
namespace {

struct Glyph {
  size_t bytes;
  int cells;
};

// The code point at `i`: an invalid byte is one cell by itself.
Glyph GlyphAt(std::string_view text, size_t i) {
  const auto byte = [&](size_t at) { return static_cast<unsigned char>(text[at]); };
  const size_t bytes = byte(i) >= 0xF0 ? 4 : byte(i) >= 0xE0 ? 3 : byte(i) >= 0xC0 ? 2 : 1;
  if (bytes == 1 || i + bytes > text.size()) return {1, 1};
  uint32_t code = byte(i) & (0xFFu >> (bytes + 1));
  for (size_t k = 1; k < bytes; ++k) {
    if ((byte(i + k) & 0xC0) != 0x80) return {1, 1};
    code = code << 6 | (byte(i + k) & 0x3F);
  }
  const auto in = [&](uint32_t low, uint32_t high) { return low <= code && code <= high; };
  // Unicode's East_Asian_Width W and F, by their blocks, and the marks that stand on what is before them.
  const bool wide = in(0x1100, 0x115F) || in(0x2E80, 0xA4CF) || in(0xAC00, 0xD7A3) || in(0xF900, 0xFAFF) ||
                    in(0xFE30, 0xFE6F) || in(0xFF00, 0xFF60) || in(0xFFE0, 0xFFE6) ||
                    in(0x1F300, 0x1FAFF) || in(0x20000, 0x3FFFD);
  const bool none = in(0x0300, 0x036F) || in(0x200B, 0x200F) || in(0xFE00, 0xFE0F) || in(0x20D0, 0x20FF);
  return {bytes, none ? 0 : wide ? 2 : 1};
}

// The end of the escape sequence starting at `i`, or `i` when there is none.
size_t SkipEscape(std::string_view text, size_t i) {
  if (text[i] != '\x1b' || i + 1 >= text.size() || text[i + 1] != '[') return i;
  size_t j = i + 2;
  while (j < text.size() && !(text[j] >= '@' && text[j] <= '~')) ++j;
  return j < text.size() ? j + 1 : j;
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
    const Glyph glyph = GlyphAt(text, i);
    width += glyph.cells;
    i += glyph.bytes;
  }
  return width;
}

std::string Ellipsize(std::string_view text, int width, const Style& style) {
  if (DisplayWidth(text) <= width) return std::string(text);
  if (width <= 0) return "";
  std::string out;
  int used = 0;
  bool cut = false;
  for (size_t i = 0; i < text.size();) {
    if (const size_t next = SkipEscape(text, i); next != i) {
      out.append(text.substr(i, next - i));
      i = next;
      continue;
    }
    const Glyph glyph = GlyphAt(text, i);
    if (!cut && used + glyph.cells <= width - 1) {
      out.append(text.substr(i, glyph.bytes));
      used += glyph.cells;
    } else if (!cut) {
      out += style.unicode ? "…" : ".";
      cut = true;
    }
    i += glyph.bytes;
  }
  return out;
}

std::string Printable(std::string_view bytes) {
  const std::string text = ValidUtf8(bytes);
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const Glyph glyph = GlyphAt(text, i);
    const auto byte = static_cast<unsigned char>(text[i]);
    // C0, DEL and, in two bytes, C1.
    const bool control = byte < 0x20 || byte == 0x7F ||
                         (byte == 0xC2 && glyph.bytes == 2 && static_cast<unsigned char>(text[i + 1]) < 0xA0);
    if (control) {
      out += '?';
    } else {
      out.append(text, i, glyph.bytes);
    }
    i += glyph.bytes;
  }
  return out;
}

std::string ValidUtf8(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const Glyph glyph = GlyphAt(text, i);
    if (glyph.bytes == 1 && static_cast<unsigned char>(text[i]) >= 0x80) {
      out += '?';
    } else {
      out.append(text.substr(i, glyph.bytes));
    }
    i += glyph.bytes;
  }
  return out;
}

}  // namespace nibble::client

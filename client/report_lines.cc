#include "client/report_lines.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace nibble::client {

void Line(std::string& out, std::string_view label, const std::string& value) {
  if (value.empty()) return;
  absl::StrAppend(&out, "  ", absl::StrFormat("%-21s ", std::string(label)), value, "\n");
}

void Heading(std::string& out, const Style& style, std::string_view text) {
  absl::StrAppend(&out, Paint(style, Ink::kBold, text), "\n");
}

std::string Exact(int64_t bytes) {
  return absl::StrCat(FormatBytes(bytes), " (", bytes, " bytes)");
}

}  // namespace nibble::client

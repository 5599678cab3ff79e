#include "base/human_bytes.h"

#include <iterator>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace nibble {

std::string HumanBytes(int64_t bytes) {
  if (bytes < 0) return absl::StrCat("-", HumanBytes(-bytes));
  if (bytes < 1024) return absl::StrCat(bytes, " B");
  constexpr std::string_view kUnits[] = {"KiB", "MiB", "GiB", "TiB", "PiB"};
  int shift = 10;
  size_t unit = 0;
  while ((bytes >> shift) >= 1024 && unit + 1 < std::size(kUnits)) {
    shift += 10;
    ++unit;
  }
  // Hundredths, rounded to nearest, ties to even; as printf would, but many are made in a pass.
  const __int128 scaled = static_cast<__int128>(bytes) * 100;
  auto hundredths = static_cast<int64_t>(scaled >> shift);
  const __int128 rest = (scaled - (static_cast<__int128>(hundredths) << shift)) * 2;
  const __int128 one = static_cast<__int128>(1) << shift;
  if (rest > one || (rest == one && hundredths % 2 != 0)) ++hundredths;
  const int64_t cents = hundredths % 100;
  return absl::StrCat(hundredths / 100, cents < 10 ? ".0" : ".", cents, " ",
                      absl::string_view(kUnits[unit].data(), kUnits[unit].size()));
}

}  // namespace nibble

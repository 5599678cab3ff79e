#include "base/id.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/error.h"
#include "base/random.h"

namespace nibble {

bool IsValidId(std::string_view id) {
  if (id.empty() || id.size() > 63 || id.front() == '-' || id.back() == '-') return false;
  for (char c : id) {
    if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-')) return false;
  }
  return true;
}

std::string NewId(std::string_view prefix) {
  static constexpr std::string_view kAlphabet = "abcdefghijklmnopqrstuvwxyz0123456789";
  std::string id = absl::StrCat(absl::string_view(prefix.data(), prefix.size()), "-");
  uint64_t bits = SystemEntropy();
  for (int i = 0; i < 12; ++i) {
    id += kAlphabet[bits % kAlphabet.size()];
    bits /= kAlphabet.size();
  }
  return id;
}

std::string NewUuid() {
  const uint64_t a = (SystemEntropy() & ~0xF000ull) | 0x4000ull;
  const uint64_t b = (SystemEntropy() & ~(3ull << 62)) | (2ull << 62);
  return absl::StrFormat("%08x-%04x-%04x-%04x-%012x", a >> 32, (a >> 16) & 0xFFFF, a & 0xFFFF,
                         b >> 48, b & 0xFFFFFFFFFFFFull);
}

absl::StatusOr<std::string> ParseName(std::string_view name, std::string_view collection,
                                      std::string_view field) {
  const std::string prefix = std::string(collection) + "/";
  if (name.size() > prefix.size() && name.substr(0, prefix.size()) == prefix &&
      IsValidId(name.substr(prefix.size()))) {
    return std::string(name.substr(prefix.size()));
  }
  return Error::Field(Reason::kNameInvalid, std::string(field),
                      absl::StrCat("must be ", prefix, "{id} with an id of at most 63 characters ",
                                   "[a-z0-9-], got \"", std::string(name.substr(0, 100)), "\""))
      .ToStatus();
}

}  // namespace nibble

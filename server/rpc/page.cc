#include "server/rpc/page.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/error.h"

namespace nibble::server {
namespace {

constexpr size_t kTagChars = 16;

std::string Tag(std::string_view query, std::string_view key) {
  return Sha256Hex(std::string(query).append("\n").append(key)).substr(0, kTagChars);
}

}  // namespace

absl::StatusOr<int32_t> PageSize(int32_t asked) {
  if (asked < 0) {
    return Error::Field(Reason::kSpecInvalid, "page_size",
                        absl::StrCat("is ", asked, "; must be 0 (the default) to ", kMaxPageSize))
        .ToStatus();
  }
  return asked == 0 ? kDefaultPageSize : std::min(asked, kMaxPageSize);
}

std::string PageToken(std::string_view query, std::string_view last_key) {
  return absl::WebSafeBase64Escape(Tag(query, last_key) + std::string(last_key));
}

absl::StatusOr<std::string> PageStart(std::string_view query, std::string_view token) {
  if (token.empty()) return std::string();
  std::string text;
  if (absl::WebSafeBase64Unescape(absl::string_view(token.data(), token.size()), &text) &&
      text.size() > kTagChars && Tag(query, text.substr(kTagChars)) == text.substr(0, kTagChars)) {
    return text.substr(kTagChars);
  }
  return Error::Field(Reason::kPageTokenInvalid, "page_token",
                      "is not one that this query returned; ask for the first page with an empty token "
                      "and the same filter")
      .ToStatus();
}

}  // namespace nibble::server

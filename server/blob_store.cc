#include "server/blob_store.h"

#include <charconv>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/view.h"

namespace nibble::server {
namespace {

constexpr size_t kMaxTagDigits = 64;

}  // namespace

std::string UploadId(std::string_view sha256, int64_t size_bytes, std::string_view tag) {
  return absl::StrCat(View(sha256), "-", size_bytes, tag.empty() ? "" : "-", View(tag));
}

absl::StatusOr<UploadState> ParseUploadId(std::string_view upload_id) {
  UploadState state;
  const size_t dash = upload_id.find('-');
  if (dash != std::string_view::npos && IsSha256Hex(upload_id.substr(0, dash))) {
    const size_t second = upload_id.find('-', dash + 1);
    const std::string_view digits = upload_id.substr(dash + 1, second - dash - 1);
    if (second != std::string_view::npos) state.tag = upload_id.substr(second + 1);
    const char* end = digits.data() + digits.size();
    const auto parsed = std::from_chars(digits.data(), end, state.size_bytes);
    state.sha256 = upload_id.substr(0, dash);
    state.upload_id = upload_id;
    // The round trip refuses "+1", "007" and the like: one upload has one name.
    if (parsed.ec == std::errc() && parsed.ptr == end && state.tag.size() <= kMaxTagDigits &&
        state.tag.find_first_not_of("0123456789abcdef") == std::string::npos &&
        UploadId(state.sha256, state.size_bytes, state.tag) == upload_id && state.size_bytes >= 0) {
      return state;
    }
  }
  return Error(Reason::kUploadNotFound,
               "upload_id is not one that BeginUpload returned; call BeginUpload to start or find the "
               "upload")
      .ToStatus();
}

}  // namespace nibble::server

#include "server/blob_store_checks.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/human_bytes.h"
#include "base/view.h"

namespace nibble::server {
absl::Status CheckUploadRequest(std::string_view sha256, int64_t size_bytes,
                                const BlobStoreOptions& options) {
  if (!IsSha256Hex(sha256)) {
    return Error::Field(Reason::kNameInvalid, "sha256", "must be 64 lower-case hexadecimal digits");
  }
  if (size_bytes < 0 || size_bytes > options.max_blob_bytes) {
    return Error::Field(Reason::kRequestTooLarge, "size_bytes",
                        absl::StrCat("is ", size_bytes, "; must be between 0 and ",
                                     options.max_blob_bytes));
  }
  return absl::OkStatus();
}

absl::Status CheckPresentSize(int64_t present_bytes, int64_t announced_bytes) {
  if (present_bytes == announced_bytes) return absl::OkStatus();
  return Error::Field(Reason::kDigestMismatch, "size_bytes",
                      absl::StrCat("is ", announced_bytes, ", but the bytes of this digest are ",
                                   present_bytes, " long; compute size and sha256 of the same file"));
}

absl::Status CheckUploadCount(int64_t open_uploads, const BlobStoreOptions& options) {
  if (open_uploads < options.max_uploads) return absl::OkStatus();
  return Error(Reason::kQuotaExceeded,
               absl::StrCat(open_uploads, " uploads are unfinished and at most ", options.max_uploads,
                            " may be; finish one or try again later"))
      .With("limit", std::to_string(options.max_uploads))
      .ToStatus();
}

absl::Status CheckFreeSpace(int64_t free_bytes, int64_t promised_bytes,
                            const BlobStoreOptions& options) {
  const int64_t needed = promised_bytes + options.min_free_bytes;
  if (free_bytes >= needed) return absl::OkStatus();
  return Error(Reason::kStorageFull,
               absl::StrCat("needs ", HumanBytes(needed), " free in the server's data directory, for ",
                            "this upload, the unfinished ones and a reserve of ",
                            HumanBytes(options.min_free_bytes), " (--min-free-mb), and ",
                            HumanBytes(free_bytes), " are; remove models, data sets, adapters and jobs ",
                            "that nobody needs, or add space"))
      .With("free_bytes", std::to_string(free_bytes))
      .With("needed_bytes", std::to_string(needed))
      .ToStatus();
}

absl::Status CheckChunk(int64_t offset, int64_t size_bytes, int64_t written_bytes, int64_t total_bytes) {
  if (offset != written_bytes) {
    return Error(Reason::kOffsetMismatch, absl::StrCat("offset is ", offset, ", expected ", written_bytes,
                                                       "; continue there"))
        .With("committed_bytes", std::to_string(written_bytes))
        .ToStatus();
  }
  if (size_bytes > total_bytes - written_bytes) {
    return Error(Reason::kOffsetMismatch,
                 absl::StrCat("data of ", size_bytes, " bytes at offset ", offset,
                              " goes beyond the announced size of ", total_bytes))
        .With("committed_bytes", std::to_string(written_bytes))
        .ToStatus();
  }
  return absl::OkStatus();
}

absl::Status CheckReadOffset(int64_t offset, int64_t size_bytes) {
  if (offset >= 0 && offset <= size_bytes) return absl::OkStatus();
  return Error::Field(Reason::kOffsetMismatch, "offset",
                      absl::StrCat("is ", offset, "; must be between 0 and the size, ", size_bytes));
}

absl::Status UploadNotFound() {
  return Error(Reason::kUploadNotFound,
               "no such upload; call BeginUpload to start or find the upload of these bytes")
      .ToStatus();
}

absl::Status BlobNotFound(std::string_view sha256) {
  return Error(Reason::kBlobNotFound,
               absl::StrCat("no blob ", IsSha256Hex(sha256) ? View(sha256) : "of that digest",
                            " is here; upload it first"))
      .ToStatus();
}

absl::Status DigestMismatch(std::string_view announced, std::string_view found) {
  return Error(Reason::kDigestMismatch,
               absl::StrCat("the bytes have sha256 ", View(found), ", announced was ", View(announced),
                            "; the upload was discarded, begin again"))
      .With("found", std::string(found))
      .ToStatus();
}

}  // namespace nibble::server

// What both blob stores refuse, in the same words. Pure.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/status.h"
#include "server/blob_store.h"

namespace nibble::server {

absl::Status CheckUploadRequest(std::string_view sha256, int64_t size_bytes,
                                const BlobStoreOptions& options);
absl::Status CheckPresentSize(int64_t present_bytes, int64_t announced_bytes);
absl::Status CheckUploadCount(int64_t open_uploads, const BlobStoreOptions& options);
absl::Status CheckFreeSpace(int64_t free_bytes, int64_t promised_bytes,
                            const BlobStoreOptions& options);
absl::Status CheckChunk(int64_t offset, int64_t size_bytes, int64_t written_bytes, int64_t total_bytes);
absl::Status CheckReadOffset(int64_t offset, int64_t size_bytes);
absl::Status UploadNotFound();
absl::Status BlobNotFound(std::string_view sha256);
absl::Status DigestMismatch(std::string_view announced, std::string_view found);

}  // namespace nibble::server

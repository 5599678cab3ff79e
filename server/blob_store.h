// Bytes by digest: uploads that can be cut and resumed, and finished blobs that never change.
//
// An upload is named by what it will become ("<sha256>-<size>", or with "-<tag>" for one whose sender
// has to show the bytes even where they are known), so that beginning it twice finds the first one, also
// after a restart. Bytes are appended at exactly the written offset and hashed on the way. A blob
// becomes visible only when size and digest are verified, the file is synced, renamed into place and the
// directory synced. Every path is made of a verified digest, never of a name given to us.
//
// A blob is kept while it is pinned (for `pin_us` after it was uploaded, found present, or pinned) or
// referenced by the state. Whoever is about to refer to a blob pins it first: either the pin happens
// before the collector removes the blob, and it stays, or the pin reports BLOB_NOT_FOUND.
//
// Calls do disk I/O and may block: never call them on a gRPC thread. Thread-safe; calls on one upload
// are serialized.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"

namespace nibble::server {

struct UploadState {
  std::string upload_id;
  std::string tag;
  std::string sha256;
  int64_t size_bytes = 0;
  int64_t committed_bytes = 0;  // durable
  bool complete = false;

  bool operator==(const UploadState&) const = default;
};

struct BlobStoreOptions {
  int64_t max_blob_bytes = int64_t{1} << 40;
  int64_t min_free_bytes = int64_t{1} << 29;      // no upload begins that would leave less
  int32_t max_uploads = 64;                       // unfinished ones
  int64_t pin_us = int64_t{24} * 3600 * 1'000'000;
  int64_t idle_upload_us =
      int64_t{3600} * 1'000'000;  // one untouched for so long counts for neither bound
  int64_t upload_ttl_us = int64_t{24} * 3600 * 1'000'000;  // an untouched upload is swept after this
};

struct CollectResult {
  int64_t blobs_removed = 0;
  int64_t uploads_removed = 0;
  int64_t bytes_removed = 0;
};

class BlobStore {
 public:
  virtual ~BlobStore() = default;

  // Starts or finds the upload of these bytes; complete at once when the blob is present. With a tag (hex
  // digits) it is an upload of its own and never complete before all bytes were sent to it.
  virtual absl::StatusOr<UploadState> Begin(std::string_view sha256, int64_t size_bytes,
                                            std::string_view tag = "") = 0;
  // `offset` must be what has been written so far, else OFFSET_MISMATCH with the right one in the
  // metadata ("committed_bytes"). STORAGE_FULL leaves the upload resumable. The answer's
  // committed_bytes is what is durable, which may lag behind what is written.
  virtual absl::StatusOr<UploadState> Append(std::string_view upload_id, int64_t offset,
                                             std::string_view data) = 0;
  // Makes what was written durable; publishes the blob when all of it is there. DIGEST_MISMATCH
  // discards the upload: its bytes are not what they were announced to be. After any other error it may be
  // finished once more.
  virtual absl::StatusOr<UploadState> Finish(std::string_view upload_id) = 0;
  // As Finish, but publishes nothing.
  virtual absl::StatusOr<UploadState> Get(std::string_view upload_id) = 0;

  virtual absl::StatusOr<int64_t> SizeBytes(std::string_view sha256) = 0;
  // Up to max_bytes from `offset`; empty at the end.
  virtual absl::StatusOr<std::string> Read(std::string_view sha256, int64_t offset,
                                           int64_t max_bytes) = 0;
  // The file that holds the blob, for readers on this machine; empty when it is not in a file.
  virtual std::string PathOf(std::string_view sha256) const = 0;
  // Keeps the blob for another pin_us.
  virtual absl::Status Pin(std::string_view sha256) = 0;
  // Digests whose pin has run out: the collector asks the state which of them are referenced.
  virtual absl::StatusOr<std::vector<std::string>> Unpinned() = 0;
  // Deletes those of `sha256s` whose pin is still out; one pinned meanwhile stays.
  virtual absl::StatusOr<CollectResult> Remove(const std::vector<std::string>& sha256s) = 0;
  // Deletes uploads nobody has touched for upload_ttl_us.
  virtual absl::StatusOr<CollectResult> SweepUploads() = 0;
  // Bytes in finished blobs, and how many uploads are open.
  virtual int64_t TotalBytes() = 0;
  virtual int64_t OpenUploads() = 0;
};

// "<sha256>-<size>[-<tag>]", and back; UPLOAD_NOT_FOUND for anything else.
std::string UploadId(std::string_view sha256, int64_t size_bytes, std::string_view tag = "");
absl::StatusOr<UploadState> ParseUploadId(std::string_view upload_id);

// Keeps everything under `root`: uploads/<sha256>-<size> and cas/<first two digits>/<sha256>. Sweeps
// what a crash left behind. `clock` must outlive the store; pins are file times, so they survive a restart.
absl::StatusOr<std::unique_ptr<BlobStore>> OpenDirectoryBlobStore(const std::string& root,
                                                                  const BlobStoreOptions& options,
                                                                  const Clock& clock);
// The twin without a disk, for tests.
std::unique_ptr<BlobStore> NewMemoryBlobStore(const BlobStoreOptions& options, const Clock& clock);

}  // namespace nibble::server

// One unfinished upload of the directory blob store: a file that grows, its hash, and how much of it is on
// the disk for good.
//
// Thread rule: `mutex` guards all of it and is held during its I/O; durable_bytes alone may be read without.
// Invariant: durable_bytes <= written_bytes <= size_bytes, and `hash`, where there is one, is of the first
// written_bytes.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "base/digest.h"

namespace nibble::server {

struct BlobUpload {
  BlobUpload(std::string path, int64_t size_bytes) : path(std::move(path)), size_bytes(size_bytes) {}
  ~BlobUpload();

  // Makes the file, which must not exist.
  absl::Status Create();
  // Opens the file again after a restart, or a failed Sync, and hashes what it holds.
  absl::Status Open();
  // Writes behind what there is. What reached the file counts, also when the rest did not. Needs Open.
  absl::Status Append(std::string_view data);
  // Puts on the disk what was written. When that fails, nothing beyond the last good Sync counts any more.
  absl::Status Sync();

  std::mutex mutex;
  const std::string path;
  const int64_t size_bytes;  // as announced
  int fd = -1;
  bool gone = false;  // published or discarded while somebody waited for the mutex
  bool named = false;  // its file has the blob's name, but the disk may not know that yet
  int64_t written_bytes = 0;
  std::atomic<int64_t> durable_bytes = 0;
  std::optional<Sha256> hash;  // none until it was read after a restart
};

}  // namespace nibble::server

// Bytes by digest on the worker's disk: fetched once, verified, shared, bounded.
//
//   blobs/<sha256>              verified, read-only
//   partial/<sha256>            a fetch that was cut; it goes on from its length
//   models/<digest>/<name>      a model directory made of hard links to blobs
//
// What is there is hashed again when it is used for the first time and then once a day: a disk that
// changes bytes costs a fetch, not a result. What an attempt uses is pinned while it runs; beyond
// `max_bytes` beginnings that no attempt waits for go first, then the least recently used model directories
// and blobs nobody links.
// Thread-safe; fetches of one digest wait for each other.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/core/types.h"

namespace nibble::worker {

class BlobCache {
 public:
  // Writes the blob from `offset` on; called with increasing offsets until it returns. Returns when
  // all bytes were handed over or with an error; what was handed over before an error is kept.
  using Write = std::function<absl::Status(std::string_view data)>;
  using Fetch =
      std::function<absl::Status(const std::string& sha256, int64_t offset, const Write& write)>;

  BlobCache(std::string directory, int64_t max_bytes)
      : directory_(std::move(directory)), max_bytes_(max_bytes) {}
  // Makes the directories; removes what is not whole.
  absl::Status Open();

  // Asked while files are read here; true: CANCELLED. Empty: they are read to their ends.
  using Stop = std::function<bool()>;

  // The path of the verified blob, fetched if need be; pinned for `owner` until Unpin.
  absl::StatusOr<std::string> Get(const std::string& owner, const FileRef& file, const Fetch& fetch,
                                  const Stop& stop = nullptr);
  // A directory with these files by name, pinned likewise. `digest` names it.
  absl::StatusOr<std::string> GetModel(const std::string& owner, const std::string& digest,
                                       const std::vector<FileRef>& files, const Fetch& fetch,
                                       const Stop& stop = nullptr);
  // Hard links of the files, by name, in `directory`, which is made.
  absl::Status LinkInto(const std::string& owner, const std::vector<FileRef>& files,
                        const std::string& directory, const Fetch& fetch, const Stop& stop = nullptr);
  void Unpin(const std::string& owner);
  // Removes what is beyond the bound; returns the bytes left.
  int64_t Shrink() { return ShrinkTo(max_bytes_); }
  // The same with another bound: 0 when the disk is full.
  int64_t ShrinkTo(int64_t max_bytes);
  // Notes kept in memory about digests: no more than there are files and fetches.
  size_t notes() const;

 private:
  absl::StatusOr<bool> IsSound(const std::string& path, const FileRef& file, const Stop& stop);
  std::string BlobPath(const std::string& sha256) const;
  absl::Status FetchToFile(const FileRef& file, const Fetch& fetch, const Stop& stop);
  std::shared_ptr<std::mutex> LockFor(const std::string& what);
  void Pin(const std::string& owner, const std::string& what);
  bool MoveAwayUnpinned(const std::string& path, const std::string& to);
  int64_t RemoveFiles(const std::string& folder, int64_t total, int64_t max_bytes);

  const std::string directory_;
  const int64_t max_bytes_;
  mutable std::mutex mutex_;                           // guards the three below
  std::map<std::string, std::set<std::string>> pins_;  // owner -> digests of blobs and models
  std::map<std::string, std::shared_ptr<std::mutex>> fetching_;  // by digest; of those that are fetched now
  std::map<std::string, int64_t> sound_until_us_;                // by digest
  std::mutex shrink_mutex_;  // one eviction at a time
};

// A plain file name: what a manifest from the server may put into a path of ours.
bool IsPlainFileName(std::string_view name);

}  // namespace nibble::worker

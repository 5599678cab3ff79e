// What one attempt needs on this disk, and what it leaves there.
//
//   attempts/<job>/<epoch>-<token8>/    an attempt's own: data/, resume/step-<n>/, checkpoints/,
//   adapter/ cache/                              blobs and model directories, shared (blob_cache.h)
//
// Every attempt has a directory nobody else ever uses, so a zombie cannot touch the next one's
// files. Functions block and are thread-safe.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/blob_cache.h"
#include "worker/core/messages.h"
#include "worker/server_link.h"

namespace nibble::worker {

using IsCancelled = std::function<bool()>;

class AttemptFiles {
 public:
  AttemptFiles(std::string work_dir, bool shares_file_system, BlobCache& cache, ServerLink& link)
      : work_dir_(std::move(work_dir)),
        shares_file_system_(shares_file_system),
        cache_(cache),
        link_(link) {}

  // Removes what earlier processes left: the server gives their attempts away again.
  absl::Status Clean() const;
  std::string DirOf(const AttemptKey& key, const std::string& token) const;
  absl::StatusOr<LocalFiles> Fetch(const Assignment& assignment,
                                   const IsCancelled& cancelled) const;
  // Every file of `directory` as a blob of the server's.
  absl::StatusOr<std::vector<FileRef>> Upload(const AttemptKey& key, const std::string& token,
                                              const std::string& directory,
                                              const IsCancelled& cancelled) const;
  void Forget(const AttemptKey& key, const std::string& token) const;

 private:
  absl::StatusOr<bool> IsAsRegistered(const std::string& path, const FileRef& file,
                                      const IsCancelled& cancelled) const;
  // Where it can be read; "" without a file.
  absl::StatusOr<std::string> DataOf(const Assignment& assignment, const std::optional<FileRef>& file,
                                     const std::string& path, const std::string& folder,
                                     const BlobCache::Fetch& fetch, const IsCancelled& cancelled) const;
  absl::StatusOr<std::string> FetchData(const Assignment& assignment, const FileRef& file,
                                        const std::string& folder,
                                        const BlobCache::Fetch& fetch, const IsCancelled& cancelled) const;
  absl::Status CheckMappedBase(const Assignment& assignment, const IsCancelled& cancelled) const;
  absl::Status FetchCheckpoint(const Assignment& assignment, const std::string& directory,
                               const BlobCache::Fetch& fetch, const IsCancelled& cancelled) const;

  const std::string work_dir_;
  const bool shares_file_system_;
  BlobCache& cache_;
  ServerLink& link_;
};

}  // namespace nibble::worker

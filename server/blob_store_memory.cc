#include <map>
#include <mutex>

#include "base/digest.h"
#include "base/status.h"
#include "server/blob_store.h"
#include "server/blob_store_checks.h"

namespace nibble::server {
namespace {

class MemoryBlobStore : public BlobStore {
 public:
  MemoryBlobStore(const BlobStoreOptions& options, const Clock& clock)
      : options_(options), clock_(clock) {}

  absl::StatusOr<UploadState> Begin(std::string_view sha256, int64_t size_bytes,
                                    std::string_view tag) override {
    RETURN_IF_ERROR(CheckUploadRequest(sha256, size_bytes, options_));
    const std::string id = UploadId(sha256, size_bytes, tag);
    {
      std::lock_guard lock(mutex_);
      if (auto it = blobs_.find(std::string(sha256)); tag.empty() && it != blobs_.end()) {
        RETURN_IF_ERROR(CheckPresentSize(static_cast<int64_t>(it->second.data.size()), size_bytes));
        it->second.time_us = clock_.NowUnixUs();
        return UploadState{id, "", it->first, size_bytes, size_bytes, true};
      }
      if (!uploads_.contains(id)) {
        RETURN_IF_ERROR(CheckUploadCount(static_cast<int64_t>(uploads_.size()), options_));
        uploads_[id].time_us = clock_.NowUnixUs();
      }
    }
    return size_bytes == 0 ? Finish(id) : Get(id);
  }

  absl::StatusOr<UploadState> Append(std::string_view upload_id, int64_t offset,
                                     std::string_view data) override {
    ASSIGN_OR_RETURN(UploadState state, ParseUploadId(upload_id));
    std::lock_guard lock(mutex_);
    const auto it = uploads_.find(state.upload_id);
    if (it == uploads_.end()) return Finished(std::move(state));
    RETURN_IF_ERROR(CheckChunk(offset, static_cast<int64_t>(data.size()),
                               static_cast<int64_t>(it->second.data.size()), state.size_bytes));
    it->second.data.append(data);
    it->second.time_us = clock_.NowUnixUs();
    state.committed_bytes = static_cast<int64_t>(it->second.data.size());
    return state;
  }

  absl::StatusOr<UploadState> Finish(std::string_view upload_id) override {
    ASSIGN_OR_RETURN(UploadState state, ParseUploadId(upload_id));
    std::lock_guard lock(mutex_);
    const auto it = uploads_.find(state.upload_id);
    if (it == uploads_.end()) return Finished(std::move(state));
    state.committed_bytes = static_cast<int64_t>(it->second.data.size());
    if (state.committed_bytes < state.size_bytes) return state;
    const std::string digest = Sha256Hex(it->second.data);
    if (digest != state.sha256) {
      uploads_.erase(it);
      return DigestMismatch(state.sha256, digest);
    }
    blobs_[state.sha256] = {std::move(it->second.data), clock_.NowUnixUs()};
    uploads_.erase(it);
    state.complete = true;
    return state;
  }

  absl::StatusOr<UploadState> Get(std::string_view upload_id) override {
    ASSIGN_OR_RETURN(UploadState state, ParseUploadId(upload_id));
    std::lock_guard lock(mutex_);
    const auto it = uploads_.find(state.upload_id);
    if (it == uploads_.end()) return Finished(std::move(state));
    state.committed_bytes = static_cast<int64_t>(it->second.data.size());
    return state;
  }

  absl::StatusOr<int64_t> SizeBytes(std::string_view sha256) override {
    std::lock_guard lock(mutex_);
    const auto it = blobs_.find(std::string(sha256));
    if (it == blobs_.end()) return BlobNotFound(sha256);
    return static_cast<int64_t>(it->second.data.size());
  }

  absl::StatusOr<std::string> Read(std::string_view sha256, int64_t offset,
                                   int64_t max_bytes) override {
    std::lock_guard lock(mutex_);
    const auto it = blobs_.find(std::string(sha256));
    if (it == blobs_.end()) return BlobNotFound(sha256);
    RETURN_IF_ERROR(CheckReadOffset(offset, static_cast<int64_t>(it->second.data.size())));
    return it->second.data.substr(static_cast<size_t>(offset), static_cast<size_t>(max_bytes));
  }

  std::string PathOf(std::string_view) const override { return ""; }

  absl::Status Pin(std::string_view sha256) override {
    std::lock_guard lock(mutex_);
    const auto it = blobs_.find(std::string(sha256));
    if (it == blobs_.end()) return BlobNotFound(sha256);
    it->second.time_us = clock_.NowUnixUs();
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<std::string>> Unpinned() override {
    std::lock_guard lock(mutex_);
    std::vector<std::string> unpinned;
    for (const auto& [sha256, bytes] : blobs_) {
      if (!IsPinned(bytes)) unpinned.push_back(sha256);
    }
    return unpinned;
  }

  absl::StatusOr<CollectResult> Remove(const std::vector<std::string>& sha256s) override {
    std::lock_guard lock(mutex_);
    CollectResult result;
    for (const std::string& sha256 : sha256s) {
      const auto it = blobs_.find(sha256);
      if (it == blobs_.end() || IsPinned(it->second)) continue;
      ++result.blobs_removed;
      result.bytes_removed += static_cast<int64_t>(it->second.data.size());
      blobs_.erase(it);
    }
    return result;
  }

  absl::StatusOr<CollectResult> SweepUploads() override {
    std::lock_guard lock(mutex_);
    CollectResult result;
    std::erase_if(uploads_, [&](const auto& item) {
      if (item.second.time_us + options_.upload_ttl_us >= clock_.NowUnixUs()) return false;
      ++result.uploads_removed;
      result.bytes_removed += static_cast<int64_t>(item.second.data.size());
      return true;
    });
    return result;
  }

  int64_t TotalBytes() override {
    std::lock_guard lock(mutex_);
    int64_t total = 0;
    for (const auto& [sha256, bytes] : blobs_) total += static_cast<int64_t>(bytes.data.size());
    return total;
  }

  int64_t OpenUploads() override {
    std::lock_guard lock(mutex_);
    return static_cast<int64_t>(uploads_.size());
  }

 private:
  struct Bytes {
    std::string data;
    int64_t time_us = 0;
  };

  bool IsPinned(const Bytes& bytes) const {
    return bytes.time_us + options_.pin_us >= clock_.NowUnixUs();
  }

  // Of an upload that is not open: complete when its blob is present. Needs the mutex.
  absl::StatusOr<UploadState> Finished(UploadState state) {
    const auto it = blobs_.find(state.sha256);
    if (!state.tag.empty() || it == blobs_.end() ||
        static_cast<int64_t>(it->second.data.size()) != state.size_bytes) {
      return UploadNotFound();
    }
    state.committed_bytes = state.size_bytes;
    state.complete = true;
    return state;
  }

  const BlobStoreOptions options_;
  const Clock& clock_;
  std::mutex mutex_;
  std::map<std::string, Bytes> uploads_;  // by upload id
  std::map<std::string, Bytes> blobs_;    // by digest
};

}  // namespace

std::unique_ptr<BlobStore> NewMemoryBlobStore(const BlobStoreOptions& options, const Clock& clock) {
  return std::make_unique<MemoryBlobStore>(options, clock);
}

}  // namespace nibble::server

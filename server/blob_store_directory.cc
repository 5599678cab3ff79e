#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/status.h"
#include "base/view.h"
#include "server/blob_store.h"
#include "server/blob_store_checks.h"
#include "server/blob_upload.h"

namespace nibble::server {
namespace {

constexpr int64_t kSyncEveryBytes = int64_t{8} << 20;

int64_t MtimeUs(const struct stat& info) {
  return int64_t{info.st_mtim.tv_sec} * 1'000'000 + info.st_mtim.tv_nsec / 1000;
}

// Of a blob's file that could not be opened or looked at. Only what is not there is called so: a server
// that is out of descriptors, or whose disk fails for a while, has its blobs, and who believed otherwise
// would give up what it has of them (a worker a checkpoint, a client a data set).
absl::Status NoBlob(int error, std::string_view sha256) {
  if (error == ENOENT || error == ENOTDIR) return BlobNotFound(sha256);
  return ErrnoStatus(error, absl::StrCat("open the blob ", View(sha256)));
}

class DirectoryBlobStore : public BlobStore {
 public:
  DirectoryBlobStore(std::string root, const BlobStoreOptions& options, const Clock& clock)
      : root_(std::move(root)), options_(options), clock_(clock) {}

  absl::Status Start();
  absl::StatusOr<UploadState> Begin(std::string_view sha256, int64_t size_bytes,
                                    std::string_view tag) override;
  absl::StatusOr<UploadState> Append(std::string_view upload_id, int64_t offset,
                                     std::string_view data) override;
  absl::StatusOr<UploadState> Finish(std::string_view upload_id) override;
  absl::StatusOr<UploadState> Get(std::string_view upload_id) override;
  absl::StatusOr<int64_t> SizeBytes(std::string_view sha256) override;
  absl::StatusOr<std::string> Read(std::string_view sha256, int64_t offset,
                                   int64_t max_bytes) override;
  std::string PathOf(std::string_view sha256) const override;
  absl::Status Pin(std::string_view sha256) override;
  absl::StatusOr<std::vector<std::string>> Unpinned() override;
  absl::StatusOr<CollectResult> Remove(const std::vector<std::string>& sha256s) override;
  absl::StatusOr<CollectResult> SweepUploads() override;
  int64_t TotalBytes() override;
  int64_t OpenUploads() override;

 private:
  using UploadPtr = std::shared_ptr<BlobUpload>;

  std::string UploadPath(std::string_view id) const { return JoinPath(JoinPath(root_, "uploads"), id); }
  absl::Status SweepStaleUploads(CollectResult& result);
  bool IsPinned(std::string_view sha256, struct stat* info) const;
  absl::Status CountBlobs();
  absl::StatusOr<UploadPtr> FindUpload(std::string_view upload_id);
  absl::StatusOr<UploadState> NotOpen(UploadState state);
  absl::Status CheckRoom(int64_t size_bytes);
  // Calls use(upload, state), an absl::Status, with the open upload's mutex held; the state afterwards.
  template <typename Use>
  absl::StatusOr<UploadState> With(std::string_view upload_id, Use use);
  absl::Status Publish(BlobUpload& upload, UploadState& state);
  absl::Status Name(BlobUpload& upload, const UploadState& state);
  absl::Status SyncNames(const std::string& directory);
  void DropNamed();
  void Forget(const std::string& upload_id);

  const std::string root_;
  const BlobStoreOptions options_;
  const Clock& clock_;
  std::mutex mutex_;  // guards what is below and pins against the collector
  std::map<std::string, UploadPtr> uploads_;
  std::set<std::string> unsynced_;  // directories with names that a crash may still take away
  int64_t total_bytes_ = 0;
};

absl::Status DirectoryBlobStore::Start() {
  RETURN_IF_ERROR(MakeDirs(JoinPath(root_, "uploads")));
  RETURN_IF_ERROR(MakeDirs(JoinPath(root_, "cas")));
  CollectResult swept;
  RETURN_IF_ERROR(SweepStaleUploads(swept));
  if (swept.uploads_removed > 0) LogInfo("blob.uploads_swept", {{"count", swept.uploads_removed}});
  ASSIGN_OR_RETURN(const auto names, ListDir(JoinPath(root_, "uploads")));
  for (const std::string& name : names) {
    auto parsed = ParseUploadId(name);
    if (!parsed.ok()) continue;
    auto upload = std::make_shared<BlobUpload>(UploadPath(name), parsed->size_bytes);
    ASSIGN_OR_RETURN(const int64_t size, FileSizeBytes(upload->path));
    upload->written_bytes = std::min(size, parsed->size_bytes);
    upload->durable_bytes = upload->written_bytes;
    uploads_[name] = std::move(upload);
  }
  return CountBlobs();
}

absl::Status DirectoryBlobStore::CountBlobs() {
  const std::string cas = JoinPath(root_, "cas");
  ASSIGN_OR_RETURN(const auto prefixes, ListDir(cas));
  for (const std::string& prefix : prefixes) {
    const std::string directory = JoinPath(cas, prefix);
    ASSIGN_OR_RETURN(const auto names, ListDir(directory));
    for (const std::string& name : names) {
      auto size = FileSizeBytes(JoinPath(directory, name));
      if (size.ok() && IsSha256Hex(name)) total_bytes_ += *size;
    }
  }
  return absl::OkStatus();
}

absl::Status DirectoryBlobStore::SweepStaleUploads(CollectResult& result) {
  ASSIGN_OR_RETURN(const auto names, ListDir(JoinPath(root_, "uploads")));
  for (const std::string& name : names) {
    const std::string path = UploadPath(name);
    struct stat info;
    if (stat(path.c_str(), &info) != 0) continue;
    const bool stale = MtimeUs(info) + options_.upload_ttl_us < clock_.NowUnixUs();
    if (!stale && ParseUploadId(name).ok()) continue;
    if (auto it = uploads_.find(name); it != uploads_.end()) {
      std::unique_lock lock(it->second->mutex, std::try_to_lock);
      if (!lock.owns_lock()) continue;  // somebody is writing to it
      it->second->gone = true;
      lock.unlock();
      uploads_.erase(it);
    }
    RETURN_IF_ERROR(RemoveFile(path));
    ++result.uploads_removed;
    result.bytes_removed += info.st_size;
  }
  return absl::OkStatus();
}

// Uploads whose sender has learned otherwise that the blob is there, by beginning anew or from somebody else.
void DirectoryBlobStore::DropNamed() {
  std::erase_if(uploads_, [&](const auto& entry) {
    BlobUpload& upload = *entry.second;
    std::unique_lock lock(upload.mutex, std::try_to_lock);
    if (!lock.owns_lock() || !upload.named) return false;
    const auto id = ParseUploadId(entry.first);
    if (!id.ok() || unsynced_.contains(DirName(PathOf(id->sha256)))) return false;
    return upload.gone = true;
  });
}

std::string DirectoryBlobStore::PathOf(std::string_view sha256) const {
  if (!IsSha256Hex(sha256)) return "";
  return JoinPath(JoinPath(JoinPath(root_, "cas"), sha256.substr(0, 2)), sha256);
}

// What a sender has left lying keeps nobody out: the checkpoints of a fleet come this way, too.
absl::Status DirectoryBlobStore::CheckRoom(int64_t size_bytes) {
  int64_t promised = size_bytes, open = 0;
  for (const auto& [id, upload] : uploads_) {
    struct stat info;
    if (stat(upload->path.c_str(), &info) != 0 ||
        MtimeUs(info) + options_.idle_upload_us < clock_.NowUnixUs())
      continue;
    ++open;
    // Without the upload's mutex: an estimate is enough, and its I/O must not hold us up.
    promised += upload->size_bytes - upload->durable_bytes.load();
  }
  RETURN_IF_ERROR(CheckUploadCount(open, options_));
  ASSIGN_OR_RETURN(const int64_t free, FreeDiskBytes(root_));
  return CheckFreeSpace(free, promised, options_);
}

absl::StatusOr<UploadState> DirectoryBlobStore::Begin(std::string_view sha256, int64_t size_bytes,
                                                      std::string_view tag) {
  RETURN_IF_ERROR(CheckUploadRequest(sha256, size_bytes, options_));
  UploadState state{UploadId(sha256, size_bytes, tag), std::string(tag), std::string(sha256), size_bytes, 0,
                    false};
  if (tag.empty() && Pin(sha256).ok()) {
    ASSIGN_OR_RETURN(const int64_t present, SizeBytes(sha256));
    RETURN_IF_ERROR(CheckPresentSize(present, size_bytes));
    state.committed_bytes = size_bytes;
    state.complete = true;
    return state;
  }
  {
    std::lock_guard lock(mutex_);
    if (!uploads_.contains(state.upload_id)) {
      RETURN_IF_ERROR(CheckRoom(size_bytes));
      auto upload = std::make_shared<BlobUpload>(UploadPath(state.upload_id), size_bytes);
      RETURN_IF_ERROR(upload->Create());
      uploads_[state.upload_id] = std::move(upload);
    }
  }
  return size_bytes == 0 ? Finish(state.upload_id) : Get(state.upload_id);
}

absl::StatusOr<DirectoryBlobStore::UploadPtr> DirectoryBlobStore::FindUpload(
    std::string_view upload_id) {
  std::lock_guard lock(mutex_);
  const auto it = uploads_.find(std::string(upload_id));
  if (it == uploads_.end()) return UploadNotFound();
  return it->second;
}

// Of an upload that is not open, or was closed while we waited for it: complete if its blob is there,
// perhaps because somebody else sent the same bytes.
absl::StatusOr<UploadState> DirectoryBlobStore::NotOpen(UploadState state) {
  const auto present = SizeBytes(state.sha256);
  if (!present.ok() && StatusReason(present.status()) != Reason::kBlobNotFound) return present.status();
  if (present.ok() && state.tag.empty()) RETURN_IF_ERROR(Pin(state.sha256));
  if (!state.tag.empty() || !present.ok() || *present != state.size_bytes) return UploadNotFound();
  state.committed_bytes = state.size_bytes;
  state.complete = true;
  return state;
}

template <typename Use>
absl::StatusOr<UploadState> DirectoryBlobStore::With(std::string_view upload_id, Use use) {
  ASSIGN_OR_RETURN(UploadState state, ParseUploadId(upload_id));
  auto found = FindUpload(upload_id);
  if (!found.ok()) return NotOpen(std::move(state));
  BlobUpload& upload = **found;
  std::lock_guard lock(upload.mutex);
  if (upload.gone) return NotOpen(std::move(state));
  RETURN_IF_ERROR(use(upload, state));
  if (!state.complete) state.committed_bytes = upload.durable_bytes;
  return state;
}

absl::StatusOr<UploadState> DirectoryBlobStore::Append(std::string_view upload_id, int64_t offset,
                                                       std::string_view data) {
  return With(upload_id, [&](BlobUpload& upload, UploadState&) -> absl::Status {
    RETURN_IF_ERROR(upload.Open());
    RETURN_IF_ERROR(CheckChunk(offset, static_cast<int64_t>(data.size()), upload.written_bytes,
                               upload.size_bytes));
    RETURN_IF_ERROR(upload.Append(data));
    if (upload.written_bytes - upload.durable_bytes < kSyncEveryBytes) return absl::OkStatus();
    return upload.Sync();
  });
}

absl::StatusOr<UploadState> DirectoryBlobStore::Get(std::string_view upload_id) {
  return With(upload_id, [](BlobUpload& upload, UploadState&) {
    return upload.fd >= 0 ? upload.Sync() : absl::OkStatus();
  });
}

absl::StatusOr<UploadState> DirectoryBlobStore::Finish(std::string_view upload_id) {
  return With(upload_id, [this](BlobUpload& upload, UploadState& state) -> absl::Status {
    RETURN_IF_ERROR(upload.Open());
    RETURN_IF_ERROR(upload.Sync());
    return upload.written_bytes < upload.size_bytes ? absl::OkStatus() : Publish(upload, state);
  });
}

absl::Status DirectoryBlobStore::Publish(BlobUpload& upload, UploadState& state) {
  const std::string digest = upload.hash->FinishHex();
  upload.hash.reset();
  if (digest != state.sha256) {
    (void)RemoveFile(upload.path);
    upload.gone = true;
    Forget(state.upload_id);
    return DigestMismatch(state.sha256, digest);
  }
  const struct timespec now[2] = {{0, UTIME_OMIT},
                                  {clock_.NowUnixUs() / 1'000'000, clock_.NowUnixUs() % 1'000'000 * 1000}};
  if (fchmod(upload.fd, 0440) != 0 || futimens(upload.fd, now) != 0 || fsync(upload.fd) != 0) {
    return ErrnoStatus(errno, "sync the blob");
  }
  RETURN_IF_ERROR(Name(upload, state));
  upload.gone = true;
  state.committed_bytes = upload.size_bytes;
  state.complete = true;
  return absl::OkStatus();
}

// Gives the file the blob's name, for good. Where only the last of that fails, the upload stays open, and who
// finishes it once more goes on here.
absl::Status DirectoryBlobStore::Name(BlobUpload& upload, const UploadState& state) {
  const std::string path = PathOf(state.sha256);
  const std::string directory = DirName(path);
  std::lock_guard lock(mutex_);
  if (!IsDirectory(directory)) {
    RETURN_IF_ERROR(MakeDirs(directory));
    unsynced_.insert(DirName(directory));
  }
  if (!upload.named) {
    const bool already = FileExists(path);
    if (rename(upload.path.c_str(), path.c_str()) != 0) return ErrnoStatus(errno, "rename to " + path);
    upload.named = true;
    if (!already) total_bytes_ += upload.size_bytes;
    unsynced_.insert(directory);
  }
  RETURN_IF_ERROR(SyncNames(directory));
  uploads_.erase(state.upload_id);
  return absl::OkStatus();
}

// What is in a blob's directory, and the directory itself. With mutex_ held.
absl::Status DirectoryBlobStore::SyncNames(const std::string& directory) {
  for (const std::string& path : {DirName(directory), directory}) {
    if (!unsynced_.contains(path)) continue;
    RETURN_IF_ERROR(SyncDir(path));
    unsynced_.erase(path);
  }
  return absl::OkStatus();
}

void DirectoryBlobStore::Forget(const std::string& upload_id) {
  std::lock_guard lock(mutex_);
  uploads_.erase(upload_id);
}

absl::StatusOr<int64_t> DirectoryBlobStore::SizeBytes(std::string_view sha256) {
  struct stat info;
  const std::string path = PathOf(sha256);
  if (path.empty()) return BlobNotFound(sha256);
  if (lstat(path.c_str(), &info) != 0) return NoBlob(errno, sha256);
  if (!S_ISREG(info.st_mode)) return BlobNotFound(sha256);
  return int64_t{info.st_size};
}

absl::StatusOr<std::string> DirectoryBlobStore::Read(std::string_view sha256, int64_t offset,
                                                     int64_t max_bytes) {
  ASSIGN_OR_RETURN(const int64_t size, SizeBytes(sha256));
  RETURN_IF_ERROR(CheckReadOffset(offset, size));
  const int fd = open(PathOf(sha256).c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return NoBlob(errno, sha256);
  std::string data(static_cast<size_t>(std::min(max_bytes, size - offset)), '\0');
  size_t have = 0;
  while (have < data.size()) {
    const ssize_t got =
        pread(fd, data.data() + have, data.size() - have, offset + static_cast<int64_t>(have));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      const int error = got < 0 ? errno : EIO;
      close(fd);
      return ErrnoStatus(error, "read a blob");
    }
    have += static_cast<size_t>(got);
  }
  close(fd);
  return data;
}

absl::Status DirectoryBlobStore::Pin(std::string_view sha256) {
  const std::string path = PathOf(sha256);
  if (path.empty()) return BlobNotFound(sha256);
  std::lock_guard lock(mutex_);
  const int64_t now = clock_.NowUnixUs();
  const struct timespec times[2] = {{0, UTIME_OMIT}, {now / 1'000'000, now % 1'000'000 * 1000}};
  if (utimensat(AT_FDCWD, path.c_str(), times, AT_SYMLINK_NOFOLLOW) != 0) return NoBlob(errno, sha256);
  return SyncNames(DirName(path));
}

// True also for what is not there: neither is to be removed.
bool DirectoryBlobStore::IsPinned(std::string_view sha256, struct stat* info) const {
  if (stat(PathOf(sha256).c_str(), info) != 0) return true;
  return MtimeUs(*info) + options_.pin_us >= clock_.NowUnixUs();
}

absl::StatusOr<std::vector<std::string>> DirectoryBlobStore::Unpinned() {
  std::vector<std::string> unpinned;
  const std::string cas = JoinPath(root_, "cas");
  ASSIGN_OR_RETURN(const auto prefixes, ListDir(cas));
  for (const std::string& prefix : prefixes) {
    ASSIGN_OR_RETURN(const auto names, ListDir(JoinPath(cas, prefix)));
    for (const std::string& name : names) {
      struct stat info;
      if (IsSha256Hex(name) && !IsPinned(name, &info)) unpinned.push_back(name);
    }
  }
  return unpinned;
}

absl::StatusOr<CollectResult> DirectoryBlobStore::Remove(const std::vector<std::string>& sha256s) {
  CollectResult result;
  for (const std::string& sha256 : sha256s) {
    if (!IsSha256Hex(sha256)) continue;
    std::lock_guard lock(mutex_);
    struct stat info;
    if (IsPinned(sha256, &info)) continue;
    RETURN_IF_ERROR(RemoveFile(PathOf(sha256)));
    ++result.blobs_removed;
    result.bytes_removed += info.st_size;
    total_bytes_ -= info.st_size;
  }
  return result;
}

absl::StatusOr<CollectResult> DirectoryBlobStore::SweepUploads() {
  CollectResult result;
  std::lock_guard lock(mutex_);
  RETURN_IF_ERROR(SweepStaleUploads(result));
  DropNamed();
  return result;
}

int64_t DirectoryBlobStore::TotalBytes() {
  std::lock_guard lock(mutex_);
  return total_bytes_;
}

int64_t DirectoryBlobStore::OpenUploads() {
  std::lock_guard lock(mutex_);
  return static_cast<int64_t>(uploads_.size());
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlobStore>> OpenDirectoryBlobStore(const std::string& root,
                                                                  const BlobStoreOptions& options,
                                                                  const Clock& clock) {
  auto store = std::make_unique<DirectoryBlobStore>(root, options, clock);
  RETURN_IF_ERROR(store->Start());
  return std::unique_ptr<BlobStore>(std::move(store));
}

}  // namespace nibble::server

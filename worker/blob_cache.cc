#include "worker/blob_cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/digest.h"
#include "base/digest_memo.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/partial_file.h"
#include "base/status.h"

namespace nibble::worker {
namespace {

constexpr char kGone[] = ".gone";  // on its way out; no name of a digest
constexpr int64_t kSoundUs = int64_t{86'400} * 1'000'000;

// Used now: what the least-recently-used order goes by.
void Touch(const std::string& path) { utimensat(AT_FDCWD, path.c_str(), nullptr, 0); }

absl::Status LinkOrCopy(const std::string& from, const std::string& to) {
  if (link(from.c_str(), to.c_str()) == 0 || errno == EEXIST) return absl::OkStatus();
  if (errno != EXDEV && errno != EMLINK && errno != EPERM) return ErrnoStatus(errno, "link " + to);
  if (symlink(from.c_str(), to.c_str()) == 0 || errno == EEXIST) return absl::OkStatus();
  return ErrnoStatus(errno, "link " + to);
}

struct Entry {
  std::string name;
  int64_t used_us = 0;
  int64_t bytes = 0;
  bool linked = false;
};

std::vector<Entry> EntriesByAge(const std::string& directory) {
  std::vector<Entry> entries;
  const auto names = ListDir(directory);
  if (!names.ok()) return entries;
  for (const std::string& name : *names) {
    struct stat info {};
    if (stat(JoinPath(directory, name).c_str(), &info) != 0) continue;
    entries.push_back({name, info.st_mtim.tv_sec * 1'000'000 + info.st_mtim.tv_nsec / 1000,
                       static_cast<int64_t>(info.st_size), info.st_nlink > 1});
  }
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.used_us < b.used_us; });
  return entries;
}

}  // namespace

bool IsPlainFileName(std::string_view name) {
  return !name.empty() && name.size() <= 200 && name != "." && name != ".." &&
         name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

absl::Status BlobCache::Open() {
  for (const char* part : {"blobs", "partial", "models"}) {
    RETURN_IF_ERROR(MakeDirs(JoinPath(directory_, part)));
  }
  // A model directory is renamed into place when it is whole; anything else is left from a crash.
  ASSIGN_OR_RETURN(const std::vector<std::string> models, ListDir(JoinPath(directory_, "models")));
  for (const std::string& name : models) {
    if (!IsSha256Hex(name)) RETURN_IF_ERROR(RemoveAll(JoinPath(directory_, "models/" + name)));
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> partials, ListDir(JoinPath(directory_, "partial")));
  for (const std::string& name : partials) {
    if (!IsSha256Hex(name)) RETURN_IF_ERROR(RemoveFile(JoinPath(directory_, "partial/" + name)));
  }
  return absl::OkStatus();
}

std::string BlobCache::BlobPath(const std::string& sha256) const {
  return JoinPath(directory_, "blobs/" + sha256);
}

std::shared_ptr<std::mutex> BlobCache::LockFor(const std::string& what) {
  std::lock_guard lock(mutex_);
  std::erase_if(fetching_, [](const auto& entry) { return entry.second.use_count() == 1; });
  auto& known = fetching_[what];
  if (!known) known = std::make_shared<std::mutex>();
  return known;
}

size_t BlobCache::notes() const {
  std::lock_guard lock(mutex_);
  return fetching_.size() + sound_until_us_.size();
}

void BlobCache::Pin(const std::string& owner, const std::string& what) {
  std::lock_guard lock(mutex_);
  pins_[owner].insert(what);
}

// One step under the lock: whoever pins afterwards finds it gone and fetches it again.
bool BlobCache::MoveAwayUnpinned(const std::string& path, const std::string& to) {
  std::lock_guard lock(mutex_);
  const std::string what = BaseName(path);
  const bool pinned = std::any_of(pins_.begin(), pins_.end(),
                                  [&](const auto& pin) { return pin.second.contains(what); });
  if (pinned || rename(path.c_str(), to.c_str()) != 0) return false;
  sound_until_us_.erase(what);
  return true;
}

void BlobCache::Unpin(const std::string& owner) {
  std::lock_guard lock(mutex_);
  pins_.erase(owner);
}

absl::Status BlobCache::FetchToFile(const FileRef& file, const Fetch& fetch, const Stop& stop) {
  const std::string partial = JoinPath(directory_, "partial/" + file.sha256);
  ASSIGN_OR_RETURN(PartialFile out, PartialFile::Open(partial, file.size_bytes, stop));
  if (!out.IsWhole()) {
    RETURN_IF_ERROR(fetch(file.sha256, out.offset(),
                          [&](std::string_view data) { return out.Append(data); }));
  }
  if (!out.IsWhole()) {
    return absl::UnavailableError(
        absl::StrCat(file.name, ": ", out.offset(), " of ", file.size_bytes, " bytes came"));
  }
  return out.Finish(file.sha256, BlobPath(file.sha256), 0444);
}

// Whether `path` holds the bytes of the file. Bytes that came over the wire were hashed on the way,
// not on the disk.
absl::StatusOr<bool> BlobCache::IsSound(const std::string& path, const FileRef& file, const Stop& stop) {
  const auto size = FileSizeBytes(path);
  if (!size.ok() || *size != file.size_bytes) return false;
  const int64_t now_us = RealClock::Get().NowMonotonicUs();
  {
    std::lock_guard lock(mutex_);
    const auto known = sound_until_us_.find(file.sha256);
    if (known != sound_until_us_.end() && now_us < known->second) return true;
  }
  const auto digest = Sha256HexOfFile(path, stop);
  if (absl::IsCancelled(digest.status())) return digest.status();
  if (!digest.ok() || *digest != file.sha256) {
    LogError("cache.damaged", {{"path", path}, {"sha256", file.sha256}});
    return false;
  }
  std::lock_guard lock(mutex_);
  sound_until_us_[file.sha256] = now_us + kSoundUs;
  return true;
}

absl::StatusOr<std::string> BlobCache::Get(const std::string& owner, const FileRef& file,
                                           const Fetch& fetch, const Stop& stop) {
  if (!IsSha256Hex(file.sha256)) {
    return Error(Reason::kInternal, absl::StrCat(file.name, " has no digest to fetch it by"))
        .ToStatus();
  }
  Pin(owner, file.sha256);
  const auto fetching = LockFor(file.sha256);
  std::lock_guard lock(*fetching);
  const std::string path = BlobPath(file.sha256);
  ASSIGN_OR_RETURN(const bool sound, IsSound(path, file, stop));
  if (sound) {
    Touch(path);
    return path;
  }
  RETURN_IF_ERROR(FetchToFile(file, fetch, stop));
  return path;
}

absl::Status BlobCache::LinkInto(const std::string& owner, const std::vector<FileRef>& files,
                                 const std::string& directory, const Fetch& fetch, const Stop& stop) {
  RETURN_IF_ERROR(MakeDirs(directory));
  for (const FileRef& file : files) {
    if (!IsPlainFileName(file.name)) {
      return Error(Reason::kNameInvalid,
                   absl::StrCat("the file name \"", file.name.substr(0, 100), "\" is not plain"))
          .ToStatus();
    }
    ASSIGN_OR_RETURN(const std::string blob, Get(owner, file, fetch, stop));
    RETURN_IF_ERROR(LinkOrCopy(blob, JoinPath(directory, file.name)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> BlobCache::GetModel(const std::string& owner, const std::string& digest,
                                                const std::vector<FileRef>& files,
                                                const Fetch& fetch, const Stop& stop) {
  if (!IsSha256Hex(digest)) return Error(Reason::kInternal, "a model without a digest").ToStatus();
  Pin(owner, digest);
  const std::string path = JoinPath(directory_, "models/" + digest);
  const auto fetching = LockFor("model " + digest);
  std::lock_guard model_lock(*fetching);
  if (IsDirectory(path)) {
    bool sound = true;
    for (const FileRef& file : files) {
      if (sound) sound = IsPlainFileName(file.name);
      if (!sound) break;
      ASSIGN_OR_RETURN(sound, IsSound(JoinPath(path, file.name), file, stop));
    }
    if (sound) {
      Touch(path);
      return path;
    }
    RETURN_IF_ERROR(RemoveAll(path));
  }
  const std::string building = path + ".building";
  RETURN_IF_ERROR(RemoveAll(building));
  const absl::Status linked = LinkInto(owner, files, building, fetch, stop);
  if (!linked.ok()) {
    (void)RemoveAll(building);  // while it has links to them, blobs do not go
    return linked;
  }
  RETURN_IF_ERROR(Rename(building, path));
  return path;
}

int64_t BlobCache::RemoveFiles(const std::string& folder, int64_t total, int64_t max_bytes) {
  const std::string from = JoinPath(directory_, folder);
  for (const Entry& file : EntriesByAge(from)) {
    if (total <= max_bytes) break;
    if (file.linked || !IsSha256Hex(file.name)) continue;
    const std::string gone = JoinPath(directory_, "partial/" + file.name + kGone);
    if (!MoveAwayUnpinned(JoinPath(from, file.name), gone)) continue;
    if (RemoveFile(gone).ok()) total -= file.bytes;
  }
  return total;
}

int64_t BlobCache::ShrinkTo(int64_t max_bytes) {
  std::lock_guard lock(shrink_mutex_);
  const std::string models = JoinPath(directory_, "models");
  int64_t total = 0;
  for (const char* folder : {"blobs", "partial"}) {
    for (const Entry& entry : EntriesByAge(JoinPath(directory_, folder))) total += entry.bytes;
  }
  // Beginnings first: of no use but to a fetch that nobody waits for.
  total = RemoveFiles("partial", total, max_bytes);
  if (total <= max_bytes) return total;
  // Model directories hold links: only without them do their blobs' bytes come back.
  for (const Entry& entry : EntriesByAge(models)) {
    if (total <= max_bytes) break;
    if (!IsSha256Hex(entry.name)) continue;
    const std::string gone = JoinPath(models, entry.name + kGone);
    if (!MoveAwayUnpinned(JoinPath(models, entry.name), gone) || !RemoveAll(gone).ok()) continue;
    total = RemoveFiles("blobs", total, max_bytes);
  }
  return RemoveFiles("blobs", total, max_bytes);
}

}  // namespace nibble::worker

#include "base/partial_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"

namespace nibble {
namespace {

// Also one that has its final mode already, of a Finish that was cut or failed behind that.
int OpenToWrite(const std::string& path) {
  constexpr int kFlags = O_RDWR | O_CREAT | O_CLOEXEC;
  const int fd = open(path.c_str(), kFlags, 0644);
  if (fd >= 0 || errno != EACCES || chmod(path.c_str(), 0644) != 0) return fd;
  return open(path.c_str(), kFlags, 0644);
}

}  // namespace

absl::StatusOr<PartialFile> PartialFile::Open(const std::string& path, int64_t size_bytes,
                                              const std::function<bool()>& stop) {
  const int fd = OpenToWrite(path);
  if (fd < 0) return ErrnoStatus(errno, "create " + path);
  PartialFile file(path, fd, size_bytes);
  std::string buffer(size_t{1} << 20, '\0');
  while (true) {
    if (stop && stop()) return absl::CancelledError("reading " + BaseName(path) + " was stopped");
    const ssize_t got = pread(fd, buffer.data(), buffer.size(), file.offset_);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, "read " + path);
    if (got == 0) break;
    file.hash_.Update(buffer.data(), static_cast<size_t>(got));
    file.offset_ += got;
  }
  if (file.offset_ > size_bytes) {
    if (ftruncate(fd, 0) != 0) return ErrnoStatus(errno, "truncate " + path);
    file.hash_ = Sha256();
    file.offset_ = 0;
  }
  return file;
}

PartialFile::PartialFile(PartialFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      size_bytes_(other.size_bytes_),
      offset_(other.offset_),
      hash_(std::move(other.hash_)) {}

PartialFile::~PartialFile() {
  if (fd_ >= 0) close(fd_);
}

absl::Status PartialFile::Append(std::string_view data) {
  if (offset_ + static_cast<int64_t>(data.size()) > size_bytes_) {
    return Error(Reason::kDigestMismatch,
                 absl::StrCat(BaseName(path_), " is longer than its manifest says"));
  }
  hash_.Update(data);
  while (!data.empty()) {
    const ssize_t wrote = pwrite(fd_, data.data(), data.size(), offset_);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return ErrnoStatus(errno, "write " + path_);
    data.remove_prefix(static_cast<size_t>(wrote));
    offset_ += wrote;
  }
  return absl::OkStatus();
}

absl::Status PartialFile::Finish(const std::string& sha256, const std::string& target,
                                 mode_t mode) {
  CHECK(IsWhole());
  if (hash_.FinishHex() != sha256) {
    RETURN_IF_ERROR(RemoveFile(path_));
    return Error(Reason::kDigestMismatch,
                 absl::StrCat(target, ": the bytes received are not those of the manifest"));
  }
  if (fchmod(fd_, mode) != 0 || fsync(fd_) != 0) return ErrnoStatus(errno, "sync " + path_);
  return Rename(path_, target);
}

}  // namespace nibble

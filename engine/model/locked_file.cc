#include "engine/model/locked_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "engine/text/text.h"

namespace nibble::engine {

LockedFile::~LockedFile() {
  if (fd_ < 0) return;
  if (!committed_) ::unlink(path_.c_str());
  ::close(fd_);
}

absl::StatusOr<std::unique_ptr<LockedFile>> LockedFile::Open(const std::string& path,
                                                             const std::function<bool()>& stop) {
  auto file = std::make_unique<LockedFile>();
  file->path_ = path;
  for (;;) {
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) return ErrnoStatus(errno, absl::StrCat("create ", path));
    while (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
      const int error = errno;
      if (error == EINTR) continue;
      const bool held = error == EWOULDBLOCK;
      if (held && !(stop && stop())) {
        std::this_thread::sleep_for(std::chrono::milliseconds(kPollMs));
        continue;
      }
      ::close(fd);
      if (held) return absl::CancelledError(absl::StrCat("waiting for ", path, " was stopped"));
      return ErrnoStatus(error, absl::StrCat("lock ", path));
    }
    // Renamed or unlinked while we waited: the lock is on a file of another name.
    struct stat ours = {}, named = {};
    if (::fstat(fd, &ours) == 0 && ::stat(path.c_str(), &named) == 0 && ours.st_ino == named.st_ino) {
      file->fd_ = fd;
      return file;
    }
    ::close(fd);
  }
}

absl::Status LockedFile::Resize(int64_t bytes) {
  if (::ftruncate(fd_, 0) != 0 || ::ftruncate(fd_, bytes) != 0) return Failed("resize");
  // So that a full disk is found now, not in the middle.
  const int error = ::posix_fallocate(fd_, 0, bytes);
  if (error != 0 && error != EOPNOTSUPP && error != EINVAL) {
    return ErrnoStatus(error, absl::StrCat("allocate ", bytes, " bytes for ", path_));
  }
  return absl::OkStatus();
}

absl::Status LockedFile::Write(int64_t offset, const void* data, int64_t size) {
  const auto* from = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t n = ::pwrite(fd_, from, static_cast<size_t>(size), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Failed("write");
    from += n;
    offset += n;
    size -= n;
  }
  return absl::OkStatus();
}

absl::Status LockedFile::Commit(const std::string& to) {
  if (::fsync(fd_) != 0) return Failed("fsync");
  RETURN_IF_ERROR(Rename(path_, to));
  committed_ = true;
  return absl::OkStatus();
}

absl::Status LockedFile::Failed(std::string_view what) const {
  return ErrnoStatus(errno, absl::StrCat(View(what), " ", path_));
}

}  // namespace nibble::engine

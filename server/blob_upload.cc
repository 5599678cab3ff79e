#include "server/blob_upload.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/file.h"
#include "base/status.h"

namespace nibble::server {
namespace {

constexpr size_t kReadBytes = size_t{1} << 20;

// Also one that is read-only already: it was to be published when the server ended.
int OpenToWrite(const std::string& path) {
  constexpr int kFlags = O_RDWR | O_CLOEXEC | O_NOFOLLOW;
  const int fd = open(path.c_str(), kFlags);
  if (fd >= 0 || errno != EACCES || chmod(path.c_str(), 0600) != 0) return fd;
  return open(path.c_str(), kFlags);
}

}  // namespace

BlobUpload::~BlobUpload() {
  if (fd >= 0) close(fd);
}

absl::Status BlobUpload::Create() {
  fd = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return ErrnoStatus(errno, "create the upload " + path);
  hash.emplace();
  return absl::OkStatus();
}

absl::Status BlobUpload::Open() {
  if (fd < 0) {
    fd = OpenToWrite(path);
    if (fd < 0) return ErrnoStatus(errno, "open the upload " + path);
  }
  if (hash) return absl::OkStatus();
  Sha256 read;
  std::string chunk(kReadBytes, '\0');
  for (int64_t at = 0; at < written_bytes;) {
    const size_t want = std::min<size_t>(chunk.size(), static_cast<size_t>(written_bytes - at));
    const ssize_t got = pread(fd, chunk.data(), want, at);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return ErrnoStatus(got < 0 ? errno : EIO, "read back the upload " + path);
    read.Update(chunk.data(), static_cast<size_t>(got));
    at += got;
  }
  hash = std::move(read);
  return absl::OkStatus();
}

absl::Status BlobUpload::Append(std::string_view data) {
  while (!data.empty()) {
    const ssize_t wrote = pwrite(fd, data.data(), data.size(), written_bytes);
    if (wrote < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, "write the upload " + path);
    }
    hash->Update(data.substr(0, static_cast<size_t>(wrote)));
    data.remove_prefix(static_cast<size_t>(wrote));
    written_bytes += wrote;
  }
  return absl::OkStatus();
}

absl::Status BlobUpload::Sync() {
  if (durable_bytes == written_bytes) return absl::OkStatus();
  if (fdatasync(fd) != 0) {
    // The kernel may have dropped the dirty pages, and the descriptor is not to be trusted.
    const absl::Status status = ErrnoStatus(errno, "sync the upload " + path);
    close(fd);
    fd = -1;
    written_bytes = durable_bytes.load();
    hash.reset();
    return status;
  }
  durable_bytes = written_bytes;
  return absl::OkStatus();
}

}  // namespace nibble::server

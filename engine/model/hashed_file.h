// A file written piece by piece, hashed on the way and fsynced at the end: what is large never stands in
// memory as a whole. One thread.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/status.h"

namespace nibble::engine {

class HashedFile {
 public:
  explicit HashedFile(std::string path) : path_(std::move(path)) {}
  ~HashedFile() {
    if (fd_ >= 0) close(fd_);
  }
  absl::Status Open() {
    fd_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    return fd_ >= 0 ? absl::OkStatus() : ErrnoStatus(errno, "create " + path_);
  }
  absl::Status Write(const void* data, int64_t size) {
    const char* at = static_cast<const char*>(data);
    constexpr int64_t kChunk = int64_t{1} << 20;
    while (size > 0) {
      const ssize_t written = write(fd_, at, static_cast<size_t>(std::min(size, kChunk)));
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return ErrnoStatus(errno, "write " + path_);
      sha_.Update(at, static_cast<size_t>(written));
      at += written;
      size -= written;
      bytes_ += written;
    }
    return absl::OkStatus();
  }
  absl::Status Finish() {
    if (fsync(fd_) != 0) return ErrnoStatus(errno, "fsync " + path_);
    const int fd = fd_;
    fd_ = -1;
    if (close(fd) != 0) return ErrnoStatus(errno, "close " + path_);
    digest_ = sha_.FinishHex();
    return absl::OkStatus();
  }
  int64_t bytes() const { return bytes_; }
  const std::string& digest() const { return digest_; }

 private:
  std::string path_;
  int fd_ = -1;
  Sha256 sha_;
  int64_t bytes_ = 0;
  std::string digest_;
};

}  // namespace nibble::engine

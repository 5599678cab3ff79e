#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/human_bytes.h"
#include "base/status.h"

namespace nibble {
namespace fs = std::filesystem;
namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

absl::Status WriteAll(int fd, std::string_view data, const std::string& path) {
  while (!data.empty()) {
    const ssize_t wrote = write(fd, data.data(), data.size());
    if (wrote < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, "write " + path);
    }
    data.remove_prefix(static_cast<size_t>(wrote));
  }
  return absl::OkStatus();
}

// Adds " (4.10 GiB free)" of the volume that the path at the end of `what` is on, when there is one.
Error WithFree(const std::string& what, std::string message) {
  const size_t begin = what.rfind(" /");
  struct statvfs info;
  if (begin == std::string::npos || statvfs(DirName(what.substr(begin + 1)).c_str(), &info) != 0)
    return Error(Reason::kStorageFull, std::move(message));
  const int64_t free_bytes = static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
  const bool no_inode = info.f_files > 0 && info.f_favail == 0;
  absl::StrAppend(&message, " (", HumanBytes(free_bytes), " free", no_inode ? ", no inode" : "", ")");
  return Error(Reason::kStorageFull, std::move(message)).With("free_bytes", absl::StrCat(free_bytes));
}

absl::Status FromCode(const std::error_code& code, const std::string& what) {
  return code ? ErrnoStatus(code.value(), what) : absl::OkStatus();
}

absl::Status SyncPath(const std::string& path, int flags) {
  Descriptor fd(open(path.c_str(), flags | O_CLOEXEC));
  if (fd.get() < 0) return ErrnoStatus(errno, "open " + path);
  if (fsync(fd.get()) != 0) return ErrnoStatus(errno, "fsync " + path);
  return absl::OkStatus();
}

}  // namespace

absl::Status ErrnoStatus(int error, std::string_view what) {
  const std::string text(what);
  // A file beyond the size that the process or the file system allows is as full as a full disk.
  const char* how = error == ENOSPC   ? "no space left on the device; free some space"
                    : error == EDQUOT ? "the quota is used up; free some space or raise it"
                    : error == EFBIG  ? "no file may grow so large; raise the limit"
                    : error == EROFS  ? "the file system is read-only; mount it for writing"
                                      : nullptr;
  if (how == nullptr) return absl::ErrnoToStatus(error, text);
  return WithFree(text, absl::StrCat(text, ": ", how, " and try again")).ToStatus();
}

absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes) {
  Descriptor fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return ErrnoStatus(errno, "open " + path);
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, "stat " + path);
  if (info.st_size > max_bytes) {
    return Error(Reason::kRequestTooLarge, absl::StrCat(path, " has ", info.st_size,
                                                        " bytes; at most ", max_bytes,
                                                        " are accepted"))
        .ToStatus();
  }
  std::string data;
  data.reserve(static_cast<size_t>(info.st_size));
  char chunk[1 << 16];
  for (;;) {
    const ssize_t got = read(fd.get(), chunk, sizeof chunk);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, "read " + path);
    if (got == 0) return data;
    data.append(chunk, static_cast<size_t>(got));
    if (static_cast<int64_t>(data.size()) > max_bytes) {
      return Error(Reason::kRequestTooLarge, absl::StrCat(path, " has more than ", max_bytes, " bytes"))
          .ToStatus();
    }
  }
}

absl::Status WriteFileAtomic(const std::string& path, std::string_view data) {
  static std::atomic<uint64_t> counter{0};
  const std::string temporary = absl::StrCat(path, ".tmp", getpid(), "-", counter++);
  absl::Status status;
  {
    Descriptor fd(open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
    if (fd.get() < 0) return ErrnoStatus(errno, "create " + temporary);
    status = WriteAll(fd.get(), data, temporary);
    if (status.ok() && fsync(fd.get()) != 0) status = ErrnoStatus(errno, "fsync " + temporary);
  }
  if (status.ok()) status = Rename(temporary, path);
  if (!status.ok()) unlink(temporary.c_str());
  return status;
}

absl::Status MakeDirs(const std::string& path) {
  std::error_code code;
  fs::create_directories(path, code);
  return FromCode(code, "mkdir " + path);
}

absl::Status RemoveAll(const std::string& path) {
  std::error_code code;
  fs::remove_all(path, code);
  return FromCode(code, "remove " + path);
}

absl::Status RemoveFile(const std::string& path) {
  if (unlink(path.c_str()) != 0) return ErrnoStatus(errno, "unlink " + path);
  return absl::OkStatus();
}

absl::Status Rename(const std::string& from, const std::string& to) {
  if (rename(from.c_str(), to.c_str()) != 0) return ErrnoStatus(errno, "rename to " + to);
  return SyncDir(DirName(to));
}

absl::Status SyncDir(const std::string& path) { return SyncPath(path, O_RDONLY | O_DIRECTORY); }
absl::Status SyncFile(const std::string& path) { return SyncPath(path, O_RDONLY); }

bool FileExists(const std::string& path) {
  std::error_code code;
  return fs::exists(path, code);
}

bool IsDirectory(const std::string& path) {
  std::error_code code;
  return fs::is_directory(path, code);
}

absl::StatusOr<int64_t> FileSizeBytes(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, "stat " + path);
  return int64_t{info.st_size};
}

absl::StatusOr<int64_t> FreeDiskBytes(const std::string& path) {
  struct statvfs info;
  if (statvfs(path.c_str(), &info) != 0) return ErrnoStatus(errno, "statvfs " + path);
  return static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
}

absl::StatusOr<std::vector<std::string>> ListDir(const std::string& path) {
  std::error_code code;
  std::vector<std::string> names;
  for (fs::directory_iterator it(path, code), end; !code && it != end; it.increment(code)) {
    names.push_back(it->path().filename().string());
  }
  if (code) return ErrnoStatus(code.value(), "list " + path);
  std::sort(names.begin(), names.end());
  return names;
}

std::string JoinPath(std::string_view directory, std::string_view name) {
  std::string path(directory);
  if (!path.empty() && path.back() != '/') path += '/';
  return path.append(name);
}

std::string BaseName(std::string_view path) {
  const size_t slash = path.rfind('/');
  return std::string(slash == std::string_view::npos ? path : path.substr(slash + 1));
}

std::string DirName(std::string_view path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string_view::npos) return ".";
  return slash == 0 ? "/" : std::string(path.substr(0, slash));
}

absl::StatusOr<std::string> RealPath(const std::string& path) {
  char* resolved = realpath(path.c_str(), nullptr);
  if (!resolved) return ErrnoStatus(errno, "resolve " + path);
  std::string real(resolved);
  std::free(resolved);
  return real;
}

bool IsBelow(std::string_view path, std::string_view root) {
  if (root == "/") return true;
  if (path.size() < root.size() || path.substr(0, root.size()) != root) return false;
  return path.size() == root.size() || path[root.size()] == '/';
}

MappedFile::~MappedFile() {
  if (data_) munmap(const_cast<uint8_t*>(data_), size_);
}
MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }
MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  Descriptor fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return ErrnoStatus(errno, "open " + path);
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, "stat " + path);
  MappedFile file;
  if (info.st_size == 0) return file;
  void* data = mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_SHARED, fd.get(), 0);
  if (data == MAP_FAILED) return ErrnoStatus(errno, "map " + path);
  // Large pages where the system gives them to files: fewer misses of address translation. Not needed.
  madvise(data, static_cast<size_t>(info.st_size), MADV_HUGEPAGE);
  file.data_ = static_cast<const uint8_t*>(data);
  file.size_ = static_cast<size_t>(info.st_size);
  return file;
}

TempDir::TempDir() {
  const char* root = std::getenv("TMPDIR");
  std::string pattern = JoinPath(root ? root : "/tmp", "nibble-XXXXXX");
  CHECK(mkdtemp(pattern.data()) != nullptr);
  path_ = pattern;
}
TempDir::~TempDir() { (void)RemoveAll(path_); }

}  // namespace nibble

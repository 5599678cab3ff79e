// The door to the file system: whole-file reads with a bound, atomic durable writes, mappings.
//
// Rule of durability: bytes written, file fsynced, renamed, directory fsynced, and only then does
// anybody hear of it. A failed fsync is never retried on the same descriptor. Functions are
// thread-safe; a MappedFile is immutable.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble {

// The whole file; INVALID_ARGUMENT (REQUEST_TOO_LARGE) beyond max_bytes.
absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes = int64_t{1} << 30);
// Writes to a temporary name in the same directory, fsyncs, renames, fsyncs the directory.
// Disk full is STORAGE_FULL; whatever stood under `path` before is untouched on any error.
absl::Status WriteFileAtomic(const std::string& path, std::string_view data);
absl::Status MakeDirs(const std::string& path);
absl::Status RemoveAll(const std::string& path);
absl::Status RemoveFile(const std::string& path);
absl::Status Rename(const std::string& from, const std::string& to);  // and fsync of to's directory
absl::Status SyncDir(const std::string& path);
absl::Status SyncFile(const std::string& path);
bool FileExists(const std::string& path);
bool IsDirectory(const std::string& path);
absl::StatusOr<int64_t> FileSizeBytes(const std::string& path);
absl::StatusOr<int64_t> FreeDiskBytes(const std::string& path);
// Names without directories, sorted; "." and ".." left out.
absl::StatusOr<std::vector<std::string>> ListDir(const std::string& path);
std::string JoinPath(std::string_view directory, std::string_view name);
std::string BaseName(std::string_view path);
std::string DirName(std::string_view path);
// Absolute, symbolic links resolved; fails when it does not exist.
absl::StatusOr<std::string> RealPath(const std::string& path);
// True when real path `path` is `root` or below it.
bool IsBelow(std::string_view path, std::string_view root);

// An errno as a status that names what was being done; ENOSPC and EDQUOT become STORAGE_FULL.
absl::Status ErrnoStatus(int error, std::string_view what);

// A file mapped read-only; unmapped on destruction.
class MappedFile {
 public:
  MappedFile() = default;
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  std::string_view view() const { return {reinterpret_cast<const char*>(data_), size_}; }

 private:
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// A directory that is removed with all its content on destruction; for tests and scratch.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }
  std::string Join(std::string_view name) const { return JoinPath(path_, name); }

 private:
  std::string path_;
};

}  // namespace nibble

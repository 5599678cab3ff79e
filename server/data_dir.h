// The data directory: one server at a time, its secret, and where a running one can be found.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble::server {

// An exclusive lock, held until destroyed, and dropped by the kernel when the process dies.
class DataDirLock {
 public:
  // Makes the directory (mode 0700). RESOURCE_IN_USE when another server has it; PATH_NOT_ALLOWED on a
  // network file system, where neither locks nor SQLite can be trusted.
  static absl::StatusOr<std::unique_ptr<DataDirLock>> Acquire(const std::string& data_dir);
  ~DataDirLock();
  DataDirLock(const DataDirLock&) = delete;
  DataDirLock& operator=(const DataDirLock&) = delete;

 private:
  explicit DataDirLock(int fd) : fd_(fd) {}
  const int fd_;
};

// 64 hex digits, made at the first start; the key of attempt tokens.
absl::StatusOr<std::string> LoadOrMakeSecret(const std::string& data_dir);

// run/server.json: {"listen", "http_listen", "host", "port", "http_port", "pid"}, whole or not there at all.
// What a client is to be given: "host:port" or "unix:/path"; of a socket host is empty and port 0.
absl::Status WriteServerInfo(const std::string& data_dir, const std::string& listen,
                             const std::string& http_listen);
void RemoveServerInfo(const std::string& data_dir);

// What a restore leaves for the next start: it must begin a new timeline.
bool WasRestored(const std::string& data_dir);
absl::Status MarkRestored(const std::string& data_dir);
// A restore was cut before it was done: it is to be run again, and nothing to start on.
bool IsHalfRestored(const std::string& data_dir);
void ClearRestored(const std::string& data_dir);

// STORE_UNAVAILABLE when there are blobs but no state.db, or an empty one: a server that began anew there
// would know no job, and take the files of all for ones that nobody needs.
absl::Status CheckDatabaseIsThere(const std::string& data_dir);

}  // namespace nibble::server

#include "server/data_dir.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <cerrno>

#include <nlohmann/json.hpp>
#include <string_view>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "base/status.h"

namespace nibble::server {
namespace {

// Of linux/magic.h and its neighbours; spelled out because the header lacks some.
bool IsNetworkFileSystem(const std::string& path) {
  struct statfs info;
  if (statfs(path.c_str(), &info) != 0) return false;
  switch (static_cast<uint32_t>(info.f_type)) {
    case 0x6969:      // NFS
    case 0x517B:      // SMB
    case 0xFF534D42:  // CIFS
    case 0xFE534D42:  // SMB2
    case 0x00C36400:  // CEPH
    case 0x5346414F:  // AFS
      return true;
    default:
      return false;
  }
}

std::string InfoPath(const std::string& data_dir) { return JoinPath(data_dir, "run/server.json"); }
std::string RestoredPath(const std::string& data_dir) { return JoinPath(data_dir, "restored"); }

}  // namespace

absl::StatusOr<std::unique_ptr<DataDirLock>> DataDirLock::Acquire(const std::string& data_dir) {
  RETURN_IF_ERROR(MakeDirs(data_dir));
  if (chmod(data_dir.c_str(), 0700) != 0) return ErrnoStatus(errno, "chmod " + data_dir);
  if (IsNetworkFileSystem(data_dir)) {
    return Error::Field(Reason::kPathNotAllowed, "--data-dir",
                        absl::StrCat(data_dir, " is on a network file system; use a local disk"))
        .ToStatus();
  }
  const std::string path = JoinPath(data_dir, "lock");
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return ErrnoStatus(errno, "open " + path);
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  if (fcntl(fd, F_OFD_SETLK, &lock) != 0) {
    const int error = errno;
    close(fd);
    if (error != EAGAIN && error != EACCES) return ErrnoStatus(error, "lock " + path);
    return Error(Reason::kResourceInUse,
                 absl::StrCat("another nibble-server runs on ", data_dir,
                              "; stop it, or give this one a --data-dir of its own"))
        .ToStatus();
  }
  return std::unique_ptr<DataDirLock>(new DataDirLock(fd));
}

DataDirLock::~DataDirLock() { close(fd_); }

absl::StatusOr<std::string> LoadOrMakeSecret(const std::string& data_dir) {
  const std::string path = JoinPath(data_dir, "secret");
  if (!FileExists(path)) {
    std::string secret;
    for (int i = 0; i < 4; ++i) absl::StrAppend(&secret, absl::Hex(SystemEntropy(), absl::kZeroPad16));
    RETURN_IF_ERROR(WriteFileAtomic(path, secret));
    if (chmod(path.c_str(), 0600) != 0) return ErrnoStatus(errno, "chmod " + path);
  }
  return ReadFile(path, 4096);
}

absl::Status WriteServerInfo(const std::string& data_dir, const std::string& listen,
                             const std::string& http_listen) {
  RETURN_IF_ERROR(MakeDirs(JoinPath(data_dir, "run")));
  const auto port_of = [](const std::string& address) {
    int port = 0;
    const size_t colon = address.rfind(':');
    const bool socket = address.starts_with("unix:") || colon == std::string::npos;
    return !socket && absl::SimpleAtoi(address.substr(colon + 1), &port) ? port : 0;
  };
  const int port = port_of(listen);
  const nlohmann::ordered_json info = {{"listen", listen},
                                       {"http_listen", http_listen},
                                       {"host", port > 0 ? listen.substr(0, listen.rfind(':')) : ""},
                                       {"port", port},
                                       {"http_port", port_of(http_listen)},
                                       {"pid", getpid()}};
  const std::string text = info.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  return WriteFileAtomic(InfoPath(data_dir), text + "\n");
}

void RemoveServerInfo(const std::string& data_dir) { (void)RemoveFile(InfoPath(data_dir)); }

bool WasRestored(const std::string& data_dir) { return FileExists(RestoredPath(data_dir)); }
bool IsHalfRestored(const std::string& data_dir) {
  return WasRestored(data_dir) && !FileExists(JoinPath(data_dir, "state.db"));
}
absl::Status MarkRestored(const std::string& data_dir) {
  return WriteFileAtomic(RestoredPath(data_dir), "1\n");
}
void ClearRestored(const std::string& data_dir) { (void)RemoveFile(RestoredPath(data_dir)); }

absl::Status CheckDatabaseIsThere(const std::string& data_dir) {
  const std::string path = JoinPath(data_dir, "state.db"), cas = JoinPath(data_dir, "blobs/cas");
  const bool there = FileExists(path);
  if (there && FileSizeBytes(path).value_or(1) > 0) return absl::OkStatus();
  if (!IsDirectory(cas)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::vector<std::string> prefixes, ListDir(cas));
  for (const std::string& prefix : prefixes) {
    ASSIGN_OR_RETURN(const std::vector<std::string> blobs, ListDir(JoinPath(cas, prefix)));
    if (blobs.empty()) continue;
    return Error(Reason::kStoreUnavailable,
                 absl::StrCat(path, there ? " is empty" : " is missing", ", but ", cas,
                              " holds files of its jobs, which a new database would not know and remove; put "
                              "state.db back, or move ", data_dir,
                              " away and restore a backup into an empty directory"))
        .ToStatus();
  }
  return absl::OkStatus();
}

}  // namespace nibble::server

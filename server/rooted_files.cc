#include "server/rooted_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"

namespace nibble::server {
namespace {

constexpr int64_t kPieceBytes = int64_t{1} << 20;

}  // namespace

absl::StatusOr<RootedFile> OpenBelowRoot(const std::string& root, const std::string& path,
                                         std::string_view field) {
  if (root.empty()) {
    return Error::Field(Reason::kPathNotAllowed, std::string(field),
                        "is refused: this server was started without --model-root; upload the files instead")
        .ToStatus();
  }
  const auto refused = [&] {
    return Error::Field(Reason::kPathNotAllowed, std::string(field),
                        absl::StrCat("must name a file or directory below the server's --model-root ", root))
        .ToStatus();
  };
  ASSIGN_OR_RETURN(const std::string real_root, RealPath(root));
  const auto real = RealPath(path.starts_with("/") ? path : JoinPath(real_root, path));
  if (!real.ok() || !IsBelow(*real, real_root)) return refused();
  struct stat info;
  if (stat(real->c_str(), &info) != 0) return refused();
  if (!S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode)) return refused();
  return RootedFile{*real, S_ISDIR(info.st_mode), S_ISREG(info.st_mode) ? info.st_size : 0};
}

ReadPiece RootedReader(std::string path) {
  return [path = std::move(path)](int64_t offset, int64_t max_bytes) -> absl::StatusOr<std::string> {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return ErrnoStatus(errno, "open " + path);
    std::string data(static_cast<size_t>(max_bytes), '\0');
    size_t have = 0;
    while (have < data.size()) {
      const ssize_t got =
          pread(fd, data.data() + have, data.size() - have, offset + static_cast<int64_t>(have));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) {
        const int error = errno;
        close(fd);
        return ErrnoStatus(error, "read " + path);
      }
      if (got == 0) break;
      have += static_cast<size_t>(got);
    }
    close(fd);
    data.resize(have);
    return data;
  };
}

ReadPiece WhileWanted(ReadPiece read, std::function<bool()> unwanted) {
  return [read = std::move(read), unwanted = std::move(unwanted)](
             int64_t offset, int64_t max_bytes) -> absl::StatusOr<std::string> {
    if (unwanted()) return absl::CancelledError("nobody waits for it any more");
    return read(offset, max_bytes);
  };
}

absl::StatusOr<std::string> Sha256HexOf(const ReadPiece& read) {
  Sha256 hash;
  for (int64_t offset = 0;;) {
    ASSIGN_OR_RETURN(const std::string piece, read(offset, kPieceBytes));
    if (piece.empty()) return hash.FinishHex();
    hash.Update(piece);
    offset += static_cast<int64_t>(piece.size());
  }
}

}  // namespace nibble::server

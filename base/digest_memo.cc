#include "base/digest_memo.h"

#include <sys/stat.h>

#include <cerrno>
#include <fstream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/file.h"
#include "base/status.h"

namespace nibble {

absl::StatusOr<std::string> Sha256HexOfFile(const std::string& path, const std::function<bool()>& stop) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return ErrnoStatus(errno, "open " + path);
  std::vector<char> chunk(size_t{1} << 20);  // small beside what an engine plans for
  Sha256 hash;
  do {
    if (stop && stop()) return absl::CancelledError("reading " + BaseName(path) + " was stopped");
    file.read(chunk.data(), static_cast<std::streamsize>(chunk.size()));
    hash.Update(chunk.data(), static_cast<size_t>(file.gcount()));
  } while (file);
  if (file.bad()) return absl::DataLossError("read " + path);
  return hash.FinishHex();
}

absl::StatusOr<std::string> RememberedSha256HexOfFile(const std::string& path, const std::string& memo_dir,
                                                      const std::function<bool()>& stop) {
  ASSIGN_OR_RETURN(const std::string real, RealPath(path));
  struct stat info = {};
  if (::stat(real.c_str(), &info) != 0) return ErrnoStatus(errno, "stat " + real);
  const std::string key = Sha256Hex(
      absl::StrCat(real, "\n", info.st_size, " ", info.st_ino, " ", info.st_mtim.tv_sec, ".",
                   info.st_mtim.tv_nsec, " ", info.st_ctim.tv_sec, ".", info.st_ctim.tv_nsec));
  const std::string memo = JoinPath(memo_dir, absl::StrCat("digest-", key));
  if (FileExists(memo)) {
    ASSIGN_OR_RETURN(const std::string known, ReadFile(memo, 64));
    if (IsSha256Hex(known)) return known;
  }
  ASSIGN_OR_RETURN(const std::string digest, Sha256HexOfFile(real, stop));
  RETURN_IF_ERROR(WriteFileAtomic(memo, digest));
  return digest;
}

}  // namespace nibble

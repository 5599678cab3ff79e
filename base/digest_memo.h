// Digests of large files, remembered: gigabytes are hashed once per machine, and again when a file
// was written to. Thread-safe; processes may share a directory.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"

namespace nibble {

// As Sha256HexOfFile (base/digest.h). `stop` is asked every megabyte; true: CANCELLED.
absl::StatusOr<std::string> Sha256HexOfFile(const std::string& path, const std::function<bool()>& stop);

// The same, kept in `memo_dir` under the file's real name, size, inode and times.
absl::StatusOr<std::string> RememberedSha256HexOfFile(const std::string& path, const std::string& memo_dir,
                                                      const std::function<bool()>& stop = nullptr);

}  // namespace nibble

// Files a user names by path: only below the root an operator opened, wherever links lead.
//
// The path is resolved and compared with the root's real path, and what is used afterwards is the
// resolved one. Pure but for the file system; thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace nibble::server {

struct RootedFile {
  std::string path;                  // real
  bool is_directory = false;
  int64_t size_bytes = 0;
};

// PATH_NOT_ALLOWED when `root` is empty, when the path leaves it, and, so that nobody can probe what
// exists, in the same words when there is nothing there. A relative path is taken from the root.
absl::StatusOr<RootedFile> OpenBelowRoot(const std::string& root, const std::string& path,
                                         std::string_view field);

// Reads a file piece by piece; empty at its end.
using ReadPiece = std::function<absl::StatusOr<std::string>(int64_t offset, int64_t max_bytes)>;
ReadPiece RootedReader(std::string path);
// As `read`, but CANCELLED once `unwanted` says so: a file may take an hour.
ReadPiece WhileWanted(ReadPiece read, std::function<bool()> unwanted);
// Of all that is read.
absl::StatusOr<std::string> Sha256HexOf(const ReadPiece& read);

}  // namespace nibble::server

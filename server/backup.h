// A copy of a data directory that can be started from, and back.
//
// Databases first, then blobs: every reference in the copied database has its blob in the copy, because
// blobs stay at least a pin's time after the last reference to them is gone. Blobs never change, so they
// are linked where the file system can, else copied. Tokens and the secret are copied too.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace nibble::server {

// Also while a server runs. `to` must be empty or not there.
absl::Status Backup(const std::string& data_dir, const std::string& to);
// Into a directory that holds no database. The next start begins a new timeline, so that what workers of
// the old one still say is refused.
absl::Status Restore(const std::string& from, const std::string& data_dir);

}  // namespace nibble::server

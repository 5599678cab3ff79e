// A copy of a data directory that can be started from, and back.
//
// Blobs, databases, blobs again: what the copied database refers to was there before it was copied, and is
// in the first pass whatever the collector does meanwhile, or came during that pass, is pinned for a day,
// and is in the second. Blobs never change, so they are linked where the file system can, else copied.
// Tokens, the secret and what a server needs of tls/ are copied too (tls_files.h); keys of clients are not.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"

namespace nibble::server {

// Also while a server runs. `to` must be empty or not there.
// `copied` is called once the databases are copied; for tests.
absl::Status Backup(const std::string& data_dir, const std::string& to,
                    const std::function<void()>& copied = [] {});
// Into a directory that holds no database, nor anything else that the backup has, too. The next start begins
// a new timeline, so that what workers of the old one still say is refused. One that was cut is done again:
// blobs that are there stay, what else it has copied is replaced (IsHalfRestored).
absl::Status Restore(const std::string& from, const std::string& data_dir);
// In words, for who made or restored a backup.
std::string WhatIsIn(const std::string& directory);

}  // namespace nibble::server

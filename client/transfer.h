// Bytes up and down, resumable both ways and verified by digest.
//
// Upload: hash first, ask what the server has, send what is missing in chunks at exactly the
// committed offset; a cut stream goes on where the server stands. Download: into ".name.part"
// beside the target, from the length already there; verified, fsynced, renamed, so a file under its
// own name is whole.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/client.h"

namespace nibble::client {

// Bytes done of all, for drawing; called from the calling thread.
using OnBytes = std::function<void(int64_t done, int64_t total)>;

// The digest under which the server now has the file. It is read once (`on_read`), then sent (`on_bytes`).
absl::StatusOr<std::string> UploadFile(Client& client, const std::string& path, const OnBytes& on_read,
                                       const OnBytes& on_bytes);

// One file of an adapter into `directory`. A complete file with the right digest is left alone.
absl::Status DownloadAdapterFile(Client& client, const std::string& adapter,
                                 const v1::AdapterFile& file, const std::string& directory,
                                 const OnBytes& on_bytes);
// All files of an adapter; `directory` is made.
absl::Status DownloadAdapter(Client& client, const v1::Adapter& adapter,
                             const std::string& directory, const OnBytes& on_bytes);

}  // namespace nibble::client

// Whether the blobs of a data directory, or of a backup, still have the bytes they are named after, and
// whether the certificates there can be served with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace nibble::server {

struct DamagedBlob {
  std::string sha256;
  bool missing = false;              // else it has other bytes
  std::vector<std::string> used_by;  // "models/x", "jobs/y" (a checkpoint), ...
};
struct VerifyReport {
  int64_t blobs = 0;
  int64_t bytes = 0;
  std::vector<DamagedBlob> damaged;
  std::vector<std::string> tls_problems;  // TlsProblems of tls/
};

// Reads everything there is, also while a server runs. What has other bytes is moved to
// blobs/damaged/, so that the next upload of it is not told that it is there already.
// STORE_UNAVAILABLE when the database cannot be read.
absl::StatusOr<VerifyReport> VerifyBlobs(const std::string& data_dir);

}  // namespace nibble::server

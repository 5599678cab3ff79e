#include "server/verify.h"

#include <set>

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "server/store/sqlite_store.h"
#include "server/tls_files.h"

namespace nibble::server {
namespace {

// Reads the files of one directory of blobs/cas.
absl::Status VerifyDirectory(const std::string& directory, const std::string& aside,
                             std::set<std::string>& sound, VerifyReport& report) {
  ASSIGN_OR_RETURN(const auto names, ListDir(directory));
  for (const std::string& name : names) {
    if (!IsSha256Hex(name)) continue;
    const std::string path = JoinPath(directory, name);
    const auto size = FileSizeBytes(path);
    const auto digest = Sha256HexOfFile(path);
    if (!FileExists(path)) continue;  // collected while we looked
    ++report.blobs;
    report.bytes += size.value_or(0);
    if (digest.ok() && *digest == name) {
      sound.insert(name);
      continue;
    }
    RETURN_IF_ERROR(MakeDirs(aside));
    RETURN_IF_ERROR(Rename(path, JoinPath(aside, name)));
    report.damaged.push_back({name, false, {}});
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<VerifyReport> VerifyBlobs(const std::string& data_dir) {
  if (!FileExists(JoinPath(data_dir, "state.db")))
    return Error::Field(Reason::kSpecInvalid, "--data-dir", "holds no database").ToStatus();
  VerifyReport report;
  report.tls_problems = TlsProblems(JoinPath(data_dir, "tls"));
  // Before the files: what is recorded after this was written after it.
  ASSIGN_OR_RETURN(const std::vector<std::string> known, store::KnownBlobs(data_dir));
  const std::string cas = JoinPath(data_dir, "blobs/cas");
  std::set<std::string> sound;
  if (IsDirectory(cas)) {
    ASSIGN_OR_RETURN(const auto prefixes, ListDir(cas));
    for (const std::string& prefix : prefixes) {
      RETURN_IF_ERROR(VerifyDirectory(JoinPath(cas, prefix), JoinPath(data_dir, "blobs/damaged"),
                                      sound, report));
    }
  }
  std::set<std::string> damaged;
  for (const DamagedBlob& blob : report.damaged) damaged.insert(blob.sha256);
  for (const std::string& sha256 : known) {
    if (!sound.contains(sha256) && !damaged.contains(sha256))
      report.damaged.push_back({sha256, true, {}});
  }
  for (DamagedBlob& blob : report.damaged) {
    ASSIGN_OR_RETURN(blob.used_by, store::ResourcesWith(data_dir, blob.sha256));
  }
  return report;
}

}  // namespace nibble::server

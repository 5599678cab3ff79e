#include "server/backup.h"

#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/human_bytes.h"
#include "base/status.h"
#include "server/data_dir.h"
#include "server/store/sqlite_store.h"
#include "server/tls_files.h"

namespace nibble::server {
namespace {

namespace fs = std::filesystem;

absl::Status FromCode(const std::error_code& code, const std::string& what) {
  return code ? ErrnoStatus(code.value(), what) : absl::OkStatus();
}

// A file that has its name is whole: a copy that was cut has another one, and is begun anew.
absl::Status CopyFile(const std::string& from, const std::string& to) {
  if (!FileExists(from)) return absl::OkStatus();
  const std::string partial = to + ".partial";
  std::error_code code;
  fs::copy_file(from, partial, fs::copy_options::overwrite_existing, code);
  // A full disk is EIO to copy_file.
  const int64_t free_bytes = FreeDiskBytes(DirName(to)).value_or(0);
  RETURN_IF_ERROR(FromCode(code, absl::StrCat("copy to ", partial, " (", HumanBytes(free_bytes), " free)")));
  RETURN_IF_ERROR(SyncFile(partial));
  fs::rename(partial, to, code);
  return FromCode(code, "rename to " + to);
}

absl::Status CopyBlobs(const std::string& from, const std::string& to) {
  RETURN_IF_ERROR(MakeDirs(to));
  if (!IsDirectory(from)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const auto prefixes, ListDir(from));
  for (const std::string& prefix : prefixes) {
    const std::string source = JoinPath(from, prefix), target = JoinPath(to, prefix);
    RETURN_IF_ERROR(MakeDirs(target));
    ASSIGN_OR_RETURN(const auto names, ListDir(source));
    for (const std::string& name : names) {
      if (!IsSha256Hex(name)) continue;
      const std::string copy = JoinPath(target, name);
      if (FileExists(copy)) {
        // Of the pass before, or of a restore that was cut; by a version that copied in place it may be half.
        const auto have = FileSizeBytes(copy), all = FileSizeBytes(JoinPath(source, name));
        if (have.ok() && all.ok() && *have == *all) continue;
        RETURN_IF_ERROR(RemoveFile(copy));
      }
      std::error_code code;
      fs::create_hard_link(JoinPath(source, name), copy, code);
      if (!code) continue;
      RETURN_IF_ERROR(CopyFile(JoinPath(source, name), copy));
    }
    RETURN_IF_ERROR(SyncDir(target));
  }
  return SyncDir(to);
}

// Keys are for their owner alone, whatever they were.
absl::Status CopyTls(const std::string& from, const std::string& to) {
  const std::vector<std::string> files = ServerTlsFiles(from);
  if (files.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(MakeDirs(to));
  if (chmod(to.c_str(), 0700) != 0) return ErrnoStatus(errno, "chmod " + to);
  for (const std::string& name : files) {
    const std::string copy = JoinPath(to, name);
    RETURN_IF_ERROR(CopyFile(JoinPath(from, name), copy));
    if (chmod(copy.c_str(), name.ends_with(".key") ? 0600 : 0644) != 0)
      return ErrnoStatus(errno, "chmod " + copy);
  }
  return SyncDir(to);
}

absl::Status CopyRest(const std::string& from, const std::string& to) {
  for (const char* name : {"secret", "tokens.json"}) {
    RETURN_IF_ERROR(CopyFile(JoinPath(from, name), JoinPath(to, name)));
  }
  RETURN_IF_ERROR(CopyTls(JoinPath(from, "tls"), JoinPath(to, "tls")));
  RETURN_IF_ERROR(CopyBlobs(JoinPath(from, "blobs/cas"), JoinPath(to, "blobs/cas")));
  return SyncDir(to);
}

absl::Status Missing(const char* flag, const char* what) {
  return Error::Field(Reason::kSpecInvalid, flag, what);
}

// What is not a database, but no restore may replace either; and what an old database left would be taken for
// the new one's.
absl::Status CheckFree(const std::string& from, const std::string& data_dir) {
  const auto refuse = [](const std::string& what) {
    return Error::Field(Reason::kSpecInvalid, "--data-dir", what).ToStatus();
  };
  for (const char* name : {"state.db-wal", "metrics.db", "metrics.db-wal"}) {
    if (FileExists(JoinPath(data_dir, name)))
      return refuse(absl::StrCat("holds ", name, " of another database; restore into an empty directory"));
  }
  for (const char* name : {"secret", "tokens.json"}) {
    if (FileExists(JoinPath(from, name)) && FileExists(JoinPath(data_dir, name)))
      return refuse(absl::StrCat("has a ", name, " already, and so has the backup; move one of them away"));
  }
  if (!ServerTlsFiles(JoinPath(from, "tls")).empty() && !ServerTlsFiles(JoinPath(data_dir, "tls")).empty())
    return refuse("has a tls/ already, and so has the backup; move one of the two away");
  return absl::OkStatus();
}

// What a restore that was cut has copied: it may have been one of another backup. Blobs are what their names
// say, whoever copied them.
absl::Status RemoveCopied(const std::string& data_dir) {
  std::vector<std::string> copied = {"secret", "tokens.json", "metrics.db"};
  for (const std::string& name : ServerTlsFiles(JoinPath(data_dir, "tls"))) copied.push_back("tls/" + name);
  for (const std::string& name : copied) {
    const std::string path = JoinPath(data_dir, name);
    if (FileExists(path)) RETURN_IF_ERROR(RemoveFile(path));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Backup(const std::string& data_dir, const std::string& to,
                    const std::function<void()>& copied) {
  if (to.empty()) return Missing("--to", "must name the directory to write");
  if (!FileExists(JoinPath(data_dir, "state.db"))) return Missing("--data-dir", "holds no database");
  if (FileExists(to)) {
    ASSIGN_OR_RETURN(const auto names, ListDir(to));
    if (!names.empty()) return Missing("--to", "is not empty; every backup gets a directory of its own");
  }
  RETURN_IF_ERROR(MakeDirs(to));
  // Data sets and the key of attempt tokens are in it: as with the data directory itself, nobody
  // else looks.
  if (chmod(to.c_str(), 0700) != 0) return ErrnoStatus(errno, "chmod " + to);
  RETURN_IF_ERROR(CopyBlobs(JoinPath(data_dir, "blobs/cas"), JoinPath(to, "blobs/cas")));
  RETURN_IF_ERROR(store::BackupDatabases(data_dir, to));
  copied();
  return CopyRest(data_dir, to);
}

absl::Status Restore(const std::string& from, const std::string& data_dir) {
  if (from.empty() || !FileExists(JoinPath(from, "state.db"))) {
    return Missing("--from", "must name a directory that `backup` wrote");
  }
  ASSIGN_OR_RETURN(const auto lock, DataDirLock::Acquire(data_dir));
  if (FileExists(JoinPath(data_dir, "state.db"))) {
    return Missing("--data-dir", "holds a database already; restore into an empty directory");
  }
  RETURN_IF_ERROR(IsHalfRestored(data_dir) ? RemoveCopied(data_dir) : CheckFree(from, data_dir));
  // First, and the database last: a restore that was cut is known as one, and no server starts on it.
  RETURN_IF_ERROR(MarkRestored(data_dir));
  RETURN_IF_ERROR(CopyRest(from, data_dir));
  RETURN_IF_ERROR(CopyFile(JoinPath(from, "metrics.db"), JoinPath(data_dir, "metrics.db")));
  RETURN_IF_ERROR(CopyFile(JoinPath(from, "state.db"), JoinPath(data_dir, "state.db")));
  return SyncDir(data_dir);
}

std::string WhatIsIn(const std::string& directory) {
  std::vector<std::string> parts = {"the databases", "blobs"};
  for (const char* name : {"tokens.json", "secret"}) {
    if (FileExists(JoinPath(directory, name))) parts.push_back(name);
  }
  const std::vector<std::string> tls = ServerTlsFiles(JoinPath(directory, "tls"));
  if (!tls.empty()) parts.push_back(absl::StrCat("of tls/ ", absl::StrJoin(tls, ", ")));
  return absl::StrCat("it has ", absl::StrJoin(parts, ", "),
                      tls.empty() ? "; no certificates, there are none in tls/" : "");
}

}  // namespace nibble::server

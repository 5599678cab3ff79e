// What is asked of the databases beside a server: copies, and who refers to which bytes.
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "server/store/sqlite.h"
#include "server/store/sqlite_store.h"

namespace nibble::store {

absl::Status BackupDatabases(const std::string& data_dir, const std::string& target_dir) {
  RETURN_IF_ERROR(MakeDirs(target_dir));
  for (const char* name : {"state.db", "metrics.db"}) {
    const std::string source = JoinPath(data_dir, name);
    const std::string target = JoinPath(target_dir, name);
    if (!FileExists(source)) continue;
    if (FileExists(target)) {
      return Error(Reason::kPathNotAllowed,
                   absl::StrCat(target, " exists; choose an empty directory"))
          .ToStatus();
    }
    ASSIGN_OR_RETURN(Database db, Database::Open(source, Database::Mode::kReadOnly));
    RETURN_IF_ERROR(db.BackupTo(target));
    RETURN_IF_ERROR(SyncFile(target));
  }
  return SyncDir(target_dir);
}

namespace {

absl::StatusOr<std::vector<std::string>> QueryTexts(const std::string& data_dir,
                                                    std::string_view sql,
                                                    std::string_view parameter) {
  ASSIGN_OR_RETURN(Database db,
                   Database::Open(JoinPath(data_dir, "state.db"), Database::Mode::kReadOnly));
  ASSIGN_OR_RETURN(Statement statement, db.Prepare(sql));
  if (!parameter.empty()) statement.Bind(1, parameter);
  std::vector<std::string> texts;
  ASSIGN_OR_RETURN(bool row, statement.Step());
  while (row) {
    texts.push_back(statement.Text(0));
    ASSIGN_OR_RETURN(row, statement.Step());
  }
  return texts;
}

}  // namespace

absl::StatusOr<std::vector<std::string>> KnownBlobs(const std::string& data_dir) {
  return QueryTexts(data_dir, "SELECT sha256 FROM blobs", "");
}

absl::StatusOr<std::vector<std::string>> ResourcesWith(const std::string& data_dir,
                                                       const std::string& sha256) {
  return QueryTexts(data_dir,
                    "SELECT 'models/' || id FROM models WHERE instr(body, ?1) UNION ALL "
                    "SELECT 'datasets/' || id FROM datasets WHERE sha256 = ?1 UNION ALL "
                    "SELECT 'adapters/' || id FROM adapters WHERE instr(body, ?1) UNION ALL "
                    "SELECT 'jobs/' || id FROM jobs WHERE instr(body, ?1)",
                    sha256);
}

}  // namespace nibble::store

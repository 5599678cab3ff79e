#include "server/store/sqlite.h"

#include <sqlite3.h>

#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/human_bytes.h"
#include "base/status.h"

namespace nibble::store {

absl::Status SqliteError(sqlite3* db, std::string_view what) {
  const int code = sqlite3_errcode(db);
  const char* name = sqlite3_db_filename(db, "main");
  const std::string file = name != nullptr ? name : "";
  const std::string text = absl::StrCat(std::string(what), ": ", sqlite3_errmsg(db), " (",
                                        sqlite3_extended_errcode(db), ")");
  switch (code & 0xff) {
    case SQLITE_FULL: {
      const auto free = FreeDiskBytes(DirName(file));
      return Error(Reason::kStorageFull,
                   absl::StrCat("the server's disk is full (", HumanBytes(free.value_or(0)), " free for ",
                                file, "); free some space: ", text));
    }
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB: {
      const char* remedy =
          BaseName(file) == "metrics.db"
              ? "; move it away, and the loss curves of before are all that is lost: "
              : "; restore a backup (nibble-server restore): ";
      return Error(Reason::kStoreUnavailable, absl::StrCat(file, " is damaged", remedy, text));
    }
    default:
      return Error(Reason::kStoreUnavailable, absl::StrCat(file, file.empty() ? "" : ": ", text));
  }
}

Statement::~Statement() { sqlite3_finalize(stmt_); }
Statement::Statement(Statement&& other) noexcept : stmt_(std::exchange(other.stmt_, nullptr)) {}
Statement& Statement::operator=(Statement&& other) noexcept {
  std::swap(stmt_, other.stmt_);
  return *this;
}

Statement& Statement::Bind(int index, std::string_view text) {
  CHECK(sqlite3_bind_text64(stmt_, index, text.data() != nullptr ? text.data() : "", text.size(),
                            SQLITE_TRANSIENT, SQLITE_UTF8) == SQLITE_OK);
  return *this;
}
Statement& Statement::Bind(int index, int64_t value) {
  CHECK(sqlite3_bind_int64(stmt_, index, value) == SQLITE_OK);
  return *this;
}
Statement& Statement::Bind(int index, double value) {
  CHECK(sqlite3_bind_double(stmt_, index, value) == SQLITE_OK);
  return *this;
}
Statement& Statement::BindNull(int index) {
  CHECK(sqlite3_bind_null(stmt_, index) == SQLITE_OK);
  return *this;
}
Statement& Statement::BindBlob(int index, std::string_view bytes) {
  CHECK(sqlite3_bind_blob64(stmt_, index, bytes.data() != nullptr ? bytes.data() : "", bytes.size(),
                            SQLITE_TRANSIENT) == SQLITE_OK);
  return *this;
}

absl::StatusOr<bool> Statement::Step() {
  const int code = sqlite3_step(stmt_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) {
    Reset();
    return false;
  }
  absl::Status error = SqliteError(sqlite3_db_handle(stmt_), sqlite3_sql(stmt_));
  Reset();
  return error;
}

absl::Status Statement::Run() {
  ASSIGN_OR_RETURN(bool row, Step());
  while (row) {
    ASSIGN_OR_RETURN(row, Step());
  }
  return absl::OkStatus();
}

void Statement::Reset() {
  sqlite3_reset(stmt_);
  sqlite3_clear_bindings(stmt_);
}

std::string Statement::Text(int column) const {
  // Bytes and length work for text and blobs alike.
  const void* data = sqlite3_column_blob(stmt_, column);
  const int size = sqlite3_column_bytes(stmt_, column);
  return data == nullptr ? std::string()
                         : std::string(static_cast<const char*>(data), static_cast<size_t>(size));
}
int64_t Statement::Int(int column) const { return sqlite3_column_int64(stmt_, column); }
double Statement::Real(int column) const {
  return IsNull(column) ? std::numeric_limits<double>::quiet_NaN()
                        : sqlite3_column_double(stmt_, column);
}
bool Statement::IsNull(int column) const {
  return sqlite3_column_type(stmt_, column) == SQLITE_NULL;
}

Database::~Database() { sqlite3_close_v2(db_); }
Database::Database(Database&& other) noexcept : db_(std::exchange(other.db_, nullptr)) {}
Database& Database::operator=(Database&& other) noexcept {
  std::swap(db_, other.db_);
  return *this;
}

absl::StatusOr<Database> Database::Open(const std::string& path, Mode mode) {
  sqlite3* raw = nullptr;
  const int flags =
      mode == Mode::kReadWrite ? SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE : SQLITE_OPEN_READONLY;
  const int code = sqlite3_open_v2(path.c_str(), &raw, flags | SQLITE_OPEN_NOMUTEX, nullptr);
  Database db(raw);
  if (code != SQLITE_OK) return SqliteError(raw, absl::StrCat("cannot open ", path));
  sqlite3_db_config(raw, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
  sqlite3_busy_timeout(raw, 5'000);
  RETURN_IF_ERROR(
      db.Execute("PRAGMA foreign_keys=ON; PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON; "
                 "PRAGMA mmap_size=0;"));
  if (mode == Mode::kReadOnly) RETURN_IF_ERROR(db.Execute("PRAGMA query_only=ON;"));
  return db;
}

absl::Status Database::Execute(std::string_view sql) {
  const std::string text(sql);
  if (sqlite3_exec(db_, text.c_str(), nullptr, nullptr, nullptr) == SQLITE_OK)
    return absl::OkStatus();
  return SqliteError(db_, text.substr(0, 80));
}

absl::StatusOr<Statement> Database::Prepare(std::string_view sql) {
  sqlite3_stmt* stmt = nullptr;
  if (sqlite3_prepare_v3(db_, sql.data(), static_cast<int>(sql.size()), SQLITE_PREPARE_PERSISTENT,
                         &stmt, nullptr) != SQLITE_OK) {
    return SqliteError(db_, sql);
  }
  return Statement(stmt);
}

absl::StatusOr<int64_t> Database::QueryInt(std::string_view sql) {
  ASSIGN_OR_RETURN(Statement statement, Prepare(sql));
  ASSIGN_OR_RETURN(const bool row, statement.Step());
  return row ? statement.Int(0) : 0;
}

absl::StatusOr<std::string> Database::QueryText(std::string_view sql) {
  ASSIGN_OR_RETURN(Statement statement, Prepare(sql));
  ASSIGN_OR_RETURN(const bool row, statement.Step());
  return row ? statement.Text(0) : std::string();
}

absl::Status Database::BackupTo(const std::string& path) {
  ASSIGN_OR_RETURN(Database target, Open(path, Mode::kReadWrite));
  sqlite3_backup* backup = sqlite3_backup_init(target.db_, "main", db_, "main");
  if (backup == nullptr) return SqliteError(target.db_, absl::StrCat("cannot copy to ", path));
  int code = SQLITE_OK;
  do {
    // All at once: what another process commits between two pieces would begin the copy anew, for ever on
    // a busy server. In WAL mode readers hold up no writer.
    code = sqlite3_backup_step(backup, -1);
    if (code == SQLITE_BUSY || code == SQLITE_LOCKED) sqlite3_sleep(10);
  } while (code == SQLITE_OK || code == SQLITE_BUSY || code == SQLITE_LOCKED);
  sqlite3_backup_finish(backup);
  if (code != SQLITE_DONE) return SqliteError(target.db_, absl::StrCat("cannot copy to ", path));
  return absl::OkStatus();
}

absl::StatusOr<Transaction> Transaction::Begin(Database* db) {
  RETURN_IF_ERROR(db->Execute("BEGIN IMMEDIATE"));
  return Transaction(db);
}

Transaction::~Transaction() {
  // After an error SQLite may have rolled back by itself; then this one fails, which is fine.
  if (db_ != nullptr) static_cast<void>(db_->Execute("ROLLBACK"));
}

absl::Status Transaction::Commit() {
  RETURN_IF_ERROR(db_->Execute("COMMIT"));
  db_ = nullptr;
  return absl::OkStatus();
}

}  // namespace nibble::store

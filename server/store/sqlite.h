// A little RAII over sqlite3: a connection, a statement, a transaction.
//
// Not thread-safe: a connection and its statements belong to one thread at a time. Errors become
// STORAGE_FULL (the disk) or STORE_UNAVAILABLE (anything else).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct sqlite3;
struct sqlite3_stmt;

namespace nibble::store {

class Statement {
 public:
  Statement() = default;
  explicit Statement(sqlite3_stmt* stmt) : stmt_(stmt) {}
  ~Statement();
  Statement(Statement&& other) noexcept;
  Statement& operator=(Statement&& other) noexcept;

  // Parameters from 1; reset by Run and by the end of a Step loop.
  Statement& Bind(int index, std::string_view text);
  Statement& Bind(int index, int64_t value);
  Statement& Bind(int index, double value);  // not a number becomes NULL
  Statement& BindNull(int index);
  Statement& BindBlob(int index, std::string_view bytes);
  // One that returns no rows.
  absl::Status Run();
  // True while there is a row; false at the end.
  absl::StatusOr<bool> Step();
  void Reset();

  // Columns from 0, of the current row.
  std::string Text(int column) const;
  int64_t Int(int column) const;
  double Real(int column) const;  // NULL becomes not a number
  bool IsNull(int column) const;

 private:
  sqlite3_stmt* stmt_ = nullptr;
};

class Database {
 public:
  enum class Mode { kReadWrite, kReadOnly };
  Database() = default;
  ~Database();
  Database(Database&& other) noexcept;
  Database& operator=(Database&& other) noexcept;

  static absl::StatusOr<Database> Open(const std::string& path, Mode mode);
  absl::Status Execute(std::string_view sql);  // any number of statements
  absl::StatusOr<Statement> Prepare(std::string_view sql);
  absl::StatusOr<int64_t> QueryInt(std::string_view sql);
  absl::StatusOr<std::string> QueryText(std::string_view sql);
  // A consistent copy into a new file.
  absl::Status BackupTo(const std::string& path);
  sqlite3* handle() const { return db_; }

 private:
  explicit Database(sqlite3* db) : db_(db) {}
  sqlite3* db_ = nullptr;
};

// BEGIN IMMEDIATE; rolled back unless committed.
class Transaction {
 public:
  static absl::StatusOr<Transaction> Begin(Database* db);
  ~Transaction();
  Transaction(Transaction&& other) noexcept : db_(other.db_) { other.db_ = nullptr; }
  absl::Status Commit();

 private:
  explicit Transaction(Database* db) : db_(db) {}
  Database* db_;
};

absl::Status SqliteError(sqlite3* db, std::string_view what);

}  // namespace nibble::store

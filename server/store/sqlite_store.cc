#include "server/store/sqlite_store.h"

#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "server/store/event_rows.h"
#include "server/store/schema.h"
#include "server/store/sqlite.h"
#include "server/store/state_read.h"
#include "server/store/state_write.h"

namespace nibble::store {
namespace {

class SqliteStore : public Store {
 public:
  explicit SqliteStore(Database db) : db_(std::move(db)) {}

  absl::Status Prepare() { return writer_.Prepare(db_); }
  absl::StatusOr<core::State> Load() override;
  absl::Status Reread(core::State& state) override;
  absl::Status Commit(const core::State& state,
                      const std::vector<core::EventRecord>& records) override;
  absl::StatusOr<std::vector<core::EventRecord>> ReadEvents(std::string_view job_id,
                                                            int64_t after_sequence,
                                                            int64_t limit) override {
    return ReadJobEvents(db_, job_id, after_sequence, limit);
  }
  absl::StatusOr<int64_t> PruneEvents(int64_t before_unix_us, int64_t limit) override {
    return writer_.PruneEvents(before_unix_us, limit);
  }

 private:
  Database db_;
  StateWriter writer_;
};

absl::StatusOr<core::State> SqliteStore::Load() {
  core::State state;
  RETURN_IF_ERROR(ReadState(db_, state));
  writer_.Knows(state);
  state.BuildIndexes();
  return state;
}

absl::Status SqliteStore::Reread(core::State& state) {
  core::Touched touched = std::exchange(state.touched, {});
  for (const core::AttemptKey& key : touched.attempts) touched.jobs.insert(key.first);
  const absl::Status read = ReadTouched(db_, touched, state);
  writer_.Knows(state, touched.jobs);
  return read;
}

absl::Status SqliteStore::Commit(const core::State& state,
                                 const std::vector<core::EventRecord>& records) {
  ASSIGN_OR_RETURN(Transaction transaction, Transaction::Begin(&db_));
  RETURN_IF_ERROR(writer_.Write(state, records));
  return transaction.Commit();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Store>> OpenSqliteStore(const std::string& data_dir) {
  const std::string path = JoinPath(data_dir, "state.db");
  ASSIGN_OR_RETURN(Database db, Database::Open(path, Database::Mode::kReadWrite));
  RETURN_IF_ERROR(db.Execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;"));
  ASSIGN_OR_RETURN(const std::string check, db.QueryText("PRAGMA quick_check(1)"));
  if (check != "ok") {
    return Error(Reason::kStoreUnavailable,
                 absl::StrCat(path, " is damaged: ", check, "; restore a backup"))
        .ToStatus();
  }
  RETURN_IF_ERROR(Migrate(db, path, StateSchema()));
  auto store = std::make_unique<SqliteStore>(std::move(db));
  RETURN_IF_ERROR(store->Prepare());
  return store;
}

}  // namespace nibble::store

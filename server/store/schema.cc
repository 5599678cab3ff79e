#include "server/store/schema.h"

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"

namespace nibble::store {
namespace {

// Columns are what is looked up or must be unique; `body` is the rest of the row as JSON. The
// indexes repeat promises of the core where SQLite can hold them too: one ACTIVE attempt, one
// result, one job per request, dense sequences.
constexpr std::string_view kState1 = R"sql(
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE jobs (
  id TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE, tenant TEXT NOT NULL, state TEXT NOT NULL,
  epoch INTEGER NOT NULL, user_spec BLOB NOT NULL, body TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE attempts (
  job_id TEXT NOT NULL REFERENCES jobs(id) DEFERRABLE INITIALLY DEFERRED, epoch INTEGER NOT NULL,
  worker_id TEXT NOT NULL, incarnation TEXT NOT NULL, state TEXT NOT NULL, body TEXT NOT NULL,
  PRIMARY KEY (job_id, epoch)) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX attempts_active ON attempts(job_id) WHERE state = 'ACTIVE';
CREATE TABLE workers (id TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE datasets (
  id TEXT PRIMARY KEY, sha256 TEXT NOT NULL, body TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE models (
  id TEXT PRIMARY KEY, digest TEXT NOT NULL, body TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE adapters (
  id TEXT PRIMARY KEY, job_id TEXT NOT NULL UNIQUE, body TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE blobs (sha256 TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE requests (
  tenant TEXT NOT NULL, request_id TEXT NOT NULL, job_id TEXT NOT NULL, body_sha256 TEXT NOT NULL,
  create_unix_us INTEGER NOT NULL, PRIMARY KEY (tenant, request_id)) STRICT, WITHOUT ROWID;
CREATE TABLE events (
  number INTEGER PRIMARY KEY, job_id TEXT NOT NULL, sequence INTEGER NOT NULL,
  unix_us INTEGER NOT NULL,
  type TEXT NOT NULL, message TEXT NOT NULL, state TEXT NOT NULL, fields TEXT NOT NULL) STRICT;
CREATE UNIQUE INDEX events_of_job ON events(job_id, sequence) WHERE job_id <> '';
)sql";

// What a job was created with, apart from what changes with every event. Rows of before
// keep it in `body` too; it is not read there.
constexpr std::string_view kState2 = R"sql(
CREATE TABLE job_specs (
  job_id TEXT PRIMARY KEY REFERENCES jobs(id) DEFERRABLE INITIALLY DEFERRED,
  user_spec BLOB NOT NULL, body TEXT NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO job_specs SELECT id, user_spec, body FROM jobs;
ALTER TABLE jobs DROP COLUMN user_spec;
)sql";

// Who has sent the bytes: names of projects, parted by spaces.
constexpr std::string_view kState3 = R"sql(
ALTER TABLE blobs ADD COLUMN projects TEXT NOT NULL DEFAULT '';
)sql";

// No row of `uploads` was ever written: an upload's file says how far it has come.
constexpr std::string_view kMetrics1 = R"sql(
CREATE TABLE step_metrics (
  job_id TEXT NOT NULL, step INTEGER NOT NULL, epoch INTEGER NOT NULL, loss REAL,
  gradient_norm REAL, learning_rate REAL, tokens INTEGER NOT NULL, target_tokens INTEGER NOT NULL,
  step_time_us INTEGER NOT NULL, time_unix_us INTEGER NOT NULL, eval_loss REAL,
  has_eval INTEGER NOT NULL, used_bytes INTEGER NOT NULL, epoch_fraction REAL,
  PRIMARY KEY (job_id, step, epoch)) STRICT, WITHOUT ROWID;
CREATE TABLE uploads (
  id TEXT PRIMARY KEY, sha256 TEXT NOT NULL, size_bytes INTEGER NOT NULL,
  committed_bytes INTEGER NOT NULL, create_unix_us INTEGER NOT NULL) STRICT, WITHOUT ROWID;
)sql";

// Microseconds by spec::StepPhase, parted by spaces; empty = not measured.
constexpr std::string_view kMetrics2 = R"sql(
ALTER TABLE step_metrics ADD COLUMN phase_us TEXT NOT NULL DEFAULT '';
)sql";

}  // namespace

const Schema& StateSchema() {
  static const auto* schema = new Schema{"state", 0x4e69624c, {kState1, kState2, kState3}};
  return *schema;
}

const Schema& MetricsSchema() {
  static const auto* schema = new Schema{"metrics", 0x4e69624d, {kMetrics1, kMetrics2}};
  return *schema;
}

absl::Status Migrate(Database& db, const std::string& path, const Schema& schema) {
  ASSIGN_OR_RETURN(const int64_t application, db.QueryInt("PRAGMA application_id"));
  ASSIGN_OR_RETURN(const int64_t version, db.QueryInt("PRAGMA user_version"));
  ASSIGN_OR_RETURN(const int64_t tables, db.QueryInt("SELECT count(*) FROM sqlite_schema"));
  const auto newest = static_cast<int64_t>(schema.migrations.size());
  if (tables > 0 && application != schema.application_id) {
    return Error(Reason::kStoreUnavailable,
                 absl::StrCat(path, " is not a ", std::string(schema.name), " database of Nibble"));
  }
  if (version > newest) {
    return Error(Reason::kStoreUnavailable,
                 absl::StrCat(path, " is of version ", version, "; this server knows up to ",
                              newest, ": start the newer one"));
  }
  if (version < newest && version > 0) {
    const std::string copy = absl::StrCat(path, ".v", version);
    if (FileExists(copy)) RETURN_IF_ERROR(RemoveFile(copy));
    RETURN_IF_ERROR(db.BackupTo(copy));
  }
  for (int64_t v = version; v < newest; ++v) {
    ASSIGN_OR_RETURN(Transaction transaction, Transaction::Begin(&db));
    RETURN_IF_ERROR(db.Execute(schema.migrations[static_cast<size_t>(v)]));
    RETURN_IF_ERROR(db.Execute(absl::StrCat("PRAGMA user_version=", v + 1,
                                            "; PRAGMA application_id=", schema.application_id)));
    RETURN_IF_ERROR(transaction.Commit());
  }
  return absl::OkStatus();
}

}  // namespace nibble::store

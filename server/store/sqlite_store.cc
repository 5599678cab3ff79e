#include "server/store/sqlite_store.h"

#include <set>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "server/store/codec.h"
#include "server/store/event_rows.h"
#include "server/store/schema.h"
#include "server/store/sqlite.h"

namespace nibble::store {
namespace {

// The statements of a commit, prepared once.
struct Statements {
  Statement put_meta, generation;
  Statement put_job, put_created, delete_job, delete_created;
  Statement delete_job_attempts, delete_job_events;
  Statement put_attempt, delete_attempt;
  Statement put_worker, delete_worker, put_dataset, delete_dataset, put_model, delete_model;
  Statement put_adapter, delete_adapter, put_blob, delete_blob, put_request, delete_request;
  Statement put_event, prune_events, changes;
};

absl::Status ReadNumber(const std::string& text, const std::string& key, int64_t& number) {
  if (absl::SimpleAtoi(text, &number)) return absl::OkStatus();
  return Error(Reason::kStoreUnavailable, absl::StrCat("meta ", key, " is no number: ", text));
}

constexpr char kSelectBlobs[] = "SELECT sha256, size_bytes, projects FROM blobs";
core::Blob BlobOf(const Statement& row) {
  const std::vector<std::string> projects = absl::StrSplit(row.Text(2), ' ', absl::SkipEmpty());
  return {row.Text(0), row.Int(1), 0, {projects.begin(), projects.end()}};
}

constexpr char kSelectRequests[] =
    "SELECT tenant, request_id, job_id, body_sha256, create_unix_us FROM requests";
core::RequestRecord RequestOf(const Statement& row) {
  return {row.Text(0), row.Text(1), row.Text(2), row.Text(3), row.Int(4)};
}

constexpr char kSelectJobs[] =
    "SELECT s.body, s.user_spec, j.body FROM jobs j JOIN job_specs s ON s.job_id = j.id";
absl::StatusOr<core::Job> JobOf(const Statement& row) {
  ASSIGN_OR_RETURN(core::Job job, DecodeJob(row.Text(0), row.Text(2)));
  job.user_spec = row.Text(1);
  return job;
}

class SqliteStore : public Store {
 public:
  explicit SqliteStore(Database db) : db_(std::move(db)) {}

  absl::Status Prepare();
  absl::StatusOr<core::State> Load() override;
  absl::Status Reread(core::State& state) override;
  absl::Status Commit(const core::State& state,
                      const std::vector<core::EventRecord>& records) override;
  absl::StatusOr<std::vector<core::EventRecord>> ReadEvents(std::string_view job_id,
                                                            int64_t after_sequence,
                                                            int64_t limit) override {
    return ReadJobEvents(db_, job_id, after_sequence, limit);
  }
  absl::StatusOr<int64_t> PruneEvents(int64_t before_unix_us, int64_t limit) override;

 private:
  absl::Status LoadMeta(core::State& state);
  absl::Status LoadJobs(core::State& state);
  absl::Status LoadThings(core::State& state);
  absl::Status RereadJobs(const std::set<std::string>& ids, core::State& state);
  absl::Status RereadBlobs(const std::set<std::string>& digests, core::State& state);
  absl::Status RereadRequests(const std::set<core::RequestKey>& keys, core::State& state);
  absl::Status CheckGeneration(const core::State& state);
  absl::Status WriteMeta(const core::State& state);
  absl::Status DropReplaced(const core::State& state);
  absl::Status WriteJobs(const core::State& state);
  absl::Status WriteAttempts(const core::State& state);
  absl::Status WriteThings(const core::State& state);
  absl::Status WriteEvents(const std::vector<core::EventRecord>& records);

  Database db_;
  Statements s_;
  // Jobs whose job_specs row is written, by id: their numbers, since an id may be used again. (The row of one
  // in touched.specs is written again.) After a
  // failed Commit it may be wrong, until Load or Reread.
  std::unordered_map<std::string, int64_t> created_;
};

absl::Status SqliteStore::Prepare() {
  const auto prepare = [this](Statement& statement, std::string_view sql) -> absl::Status {
    ASSIGN_OR_RETURN(statement, db_.Prepare(sql));
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(prepare(
      s_.put_meta, "INSERT INTO meta VALUES(?1,?2) ON CONFLICT(key) DO UPDATE SET value=?2"));
  RETURN_IF_ERROR(prepare(s_.generation, "SELECT value FROM meta WHERE key='generation'"));
  RETURN_IF_ERROR(
      prepare(s_.put_job,
              "INSERT INTO jobs VALUES(?1,?2,?3,?4,?5,?6) ON CONFLICT(id) DO UPDATE SET "
              "number=?2, tenant=?3, state=?4, epoch=?5, body=?6"));
  RETURN_IF_ERROR(prepare(s_.put_created,
                          "INSERT INTO job_specs VALUES(?1,?2,?3) ON CONFLICT(job_id) DO UPDATE SET "
                          "user_spec=?2, body=?3"));
  RETURN_IF_ERROR(prepare(s_.delete_created, "DELETE FROM job_specs WHERE job_id=?1"));
  RETURN_IF_ERROR(prepare(s_.delete_job, "DELETE FROM jobs WHERE id=?1"));
  RETURN_IF_ERROR(prepare(s_.delete_job_attempts, "DELETE FROM attempts WHERE job_id=?1"));
  RETURN_IF_ERROR(prepare(s_.delete_job_events, "DELETE FROM events WHERE job_id=?1"));
  RETURN_IF_ERROR(prepare(
      s_.put_attempt,
      "INSERT INTO attempts VALUES(?1,?2,?3,?4,?5,?6) ON CONFLICT(job_id,epoch) DO UPDATE SET "
      "state=?5, body=?6"));
  RETURN_IF_ERROR(prepare(
      s_.put_worker, "INSERT INTO workers VALUES(?1,?2) ON CONFLICT(id) DO UPDATE SET body=?2"));
  RETURN_IF_ERROR(prepare(s_.delete_worker, "DELETE FROM workers WHERE id=?1"));
  RETURN_IF_ERROR(prepare(
      s_.put_dataset,
      "INSERT INTO datasets VALUES(?1,?2,?3) ON CONFLICT(id) DO UPDATE SET sha256=?2, body=?3"));
  RETURN_IF_ERROR(prepare(s_.delete_dataset, "DELETE FROM datasets WHERE id=?1"));
  RETURN_IF_ERROR(prepare(
      s_.put_model,
      "INSERT INTO models VALUES(?1,?2,?3) ON CONFLICT(id) DO UPDATE SET digest=?2, body=?3"));
  RETURN_IF_ERROR(prepare(s_.delete_model, "DELETE FROM models WHERE id=?1"));
  RETURN_IF_ERROR(
      prepare(s_.put_adapter,
              "INSERT INTO adapters VALUES(?1,?2,?3) ON CONFLICT(id) DO UPDATE SET body=?3"));
  RETURN_IF_ERROR(prepare(s_.delete_adapter, "DELETE FROM adapters WHERE id=?1"));
  RETURN_IF_ERROR(
      prepare(s_.put_blob, "INSERT INTO blobs VALUES(?1,?2,?3) "
                            "ON CONFLICT(sha256) DO UPDATE SET projects=excluded.projects"));
  RETURN_IF_ERROR(prepare(s_.delete_blob, "DELETE FROM blobs WHERE sha256=?1"));
  RETURN_IF_ERROR(prepare(s_.put_request, "INSERT INTO requests VALUES(?1,?2,?3,?4,?5)"));
  RETURN_IF_ERROR(
      prepare(s_.delete_request, "DELETE FROM requests WHERE tenant=?1 AND request_id=?2"));
  RETURN_IF_ERROR(prepare(s_.put_event, "INSERT INTO events VALUES(?1,?2,?3,?4,?5,?6,?7,?8)"));
  // Numbers follow the clock but for its jumps, so the oldest are looked at and no index is needed.
  RETURN_IF_ERROR(prepare(
      s_.prune_events,
      "DELETE FROM events WHERE unix_us < ?1 AND number <= (SELECT max(number) FROM "
      "(SELECT number, unix_us FROM events ORDER BY number LIMIT ?2) WHERE unix_us < ?1)"));
  return prepare(s_.changes, "SELECT changes()");
}

// ---- Load --------------------------------------------------------------------------------------

absl::Status SqliteStore::LoadMeta(core::State& state) {
  ASSIGN_OR_RETURN(Statement rows, db_.Prepare("SELECT key, value FROM meta"));
  ASSIGN_OR_RETURN(bool row, rows.Step());
  while (row) {
    const std::string key = rows.Text(0);
    if (key == "timeline") state.timeline = rows.Text(1);
    for (auto& [name, number] :
         {std::pair<std::string_view, int64_t*>{"generation", &state.generation},
          {"last_job_number", &state.last_job_number},
          {"last_event_number", &state.last_event_number}}) {
      if (key == name) RETURN_IF_ERROR(ReadNumber(rows.Text(1), key, *number));
    }
    ASSIGN_OR_RETURN(row, rows.Step());
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::LoadJobs(core::State& state) {
  ASSIGN_OR_RETURN(Statement jobs, db_.Prepare(kSelectJobs));
  created_.clear();
  ASSIGN_OR_RETURN(bool row, jobs.Step());
  while (row) {
    ASSIGN_OR_RETURN(core::Job job, JobOf(jobs));
    created_[job.id] = job.number;
    state.jobs[job.id] = std::move(job);
    ASSIGN_OR_RETURN(row, jobs.Step());
  }
  ASSIGN_OR_RETURN(Statement attempts, db_.Prepare("SELECT body FROM attempts"));
  ASSIGN_OR_RETURN(row, attempts.Step());
  while (row) {
    ASSIGN_OR_RETURN(core::Attempt attempt, DecodeAttempt(attempts.Text(0)));
    const auto job = state.jobs.find(attempt.job_id);
    if (job == state.jobs.end()) {
      return Error(Reason::kStoreUnavailable,
                   absl::StrCat("an attempt of a missing job: ", attempt.job_id))
          .ToStatus();
    }
    job->second.attempts[attempt.epoch] = std::move(attempt);
    ASSIGN_OR_RETURN(row, attempts.Step());
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::LoadThings(core::State& state) {
  const auto load = [this](std::string_view sql, const auto& decode, auto& rows) -> absl::Status {
    ASSIGN_OR_RETURN(Statement statement, db_.Prepare(sql));
    ASSIGN_OR_RETURN(bool row, statement.Step());
    while (row) {
      ASSIGN_OR_RETURN(auto thing, decode(statement.Text(0)));
      const std::string id = thing.id;
      rows[id] = std::move(thing);
      ASSIGN_OR_RETURN(row, statement.Step());
    }
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(load("SELECT body FROM workers", DecodeWorker, state.workers));
  RETURN_IF_ERROR(load("SELECT body FROM datasets", DecodeDataset, state.datasets));
  RETURN_IF_ERROR(load("SELECT body FROM models", DecodeModel, state.models));
  RETURN_IF_ERROR(load("SELECT body FROM adapters", DecodeAdapter, state.adapters));
  ASSIGN_OR_RETURN(Statement blobs, db_.Prepare(kSelectBlobs));
  ASSIGN_OR_RETURN(bool row, blobs.Step());
  while (row) {
    state.blobs[blobs.Text(0)] = BlobOf(blobs);
    ASSIGN_OR_RETURN(row, blobs.Step());
  }
  ASSIGN_OR_RETURN(Statement requests, db_.Prepare(kSelectRequests));
  ASSIGN_OR_RETURN(row, requests.Step());
  while (row) {
    state.requests[{requests.Text(0), requests.Text(1)}] = RequestOf(requests);
    ASSIGN_OR_RETURN(row, requests.Step());
  }
  return absl::OkStatus();
}

absl::StatusOr<core::State> SqliteStore::Load() {
  core::State state;
  RETURN_IF_ERROR(LoadMeta(state));
  RETURN_IF_ERROR(LoadJobs(state));
  RETURN_IF_ERROR(LoadThings(state));
  state.BuildIndexes();
  return state;
}

absl::Status SqliteStore::RereadJobs(const std::set<std::string>& ids, core::State& state) {
  ASSIGN_OR_RETURN(Statement jobs, db_.Prepare(absl::StrCat(kSelectJobs, " WHERE j.id=?1")));
  ASSIGN_OR_RETURN(Statement attempts, db_.Prepare("SELECT body FROM attempts WHERE job_id=?1"));
  for (const std::string& id : ids) {
    state.jobs.erase(id);
    created_.erase(id);
    ASSIGN_OR_RETURN(bool row, jobs.Bind(1, id).Step());
    if (row) {
      ASSIGN_OR_RETURN(core::Job job, JobOf(jobs));
      ASSIGN_OR_RETURN(row, attempts.Bind(1, id).Step());
      while (row) {
        ASSIGN_OR_RETURN(core::Attempt attempt, DecodeAttempt(attempts.Text(0)));
        job.attempts[attempt.epoch] = std::move(attempt);
        ASSIGN_OR_RETURN(row, attempts.Step());
      }
      created_[id] = job.number;
      state.jobs[id] = std::move(job);
    }
    jobs.Reset();
    attempts.Reset();
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::RereadBlobs(const std::set<std::string>& digests, core::State& state) {
  ASSIGN_OR_RETURN(Statement blobs, db_.Prepare(absl::StrCat(kSelectBlobs, " WHERE sha256=?1")));
  for (const std::string& digest : digests) {
    state.blobs.erase(digest);
    ASSIGN_OR_RETURN(const bool row, blobs.Bind(1, digest).Step());
    if (row) state.blobs[digest] = BlobOf(blobs);
    blobs.Reset();
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::RereadRequests(const std::set<core::RequestKey>& keys, core::State& state) {
  ASSIGN_OR_RETURN(Statement requests,
                   db_.Prepare(absl::StrCat(kSelectRequests, " WHERE tenant=?1 AND request_id=?2")));
  for (const core::RequestKey& key : keys) {
    state.requests.erase(key);
    ASSIGN_OR_RETURN(const bool row, requests.Bind(1, key.first).Bind(2, key.second).Step());
    if (row) state.requests[key] = RequestOf(requests);
    requests.Reset();
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::Reread(core::State& state) {
  core::Touched touched = std::exchange(state.touched, {});
  for (const core::AttemptKey& key : touched.attempts) touched.jobs.insert(key.first);
  RETURN_IF_ERROR(LoadMeta(state));
  RETURN_IF_ERROR(RereadJobs(touched.jobs, state));
  const auto reread = [this](const char* table, const std::set<std::string>& ids, const auto& decode,
                             auto& rows) -> absl::Status {
    ASSIGN_OR_RETURN(Statement statement,
                     db_.Prepare(absl::StrCat("SELECT body FROM ", table, " WHERE id=?1")));
    for (const std::string& id : ids) {
      rows.erase(id);
      ASSIGN_OR_RETURN(const bool row, statement.Bind(1, id).Step());
      if (row) {
        ASSIGN_OR_RETURN(rows[id], decode(statement.Text(0)));
      }
      statement.Reset();
    }
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(reread("workers", touched.workers, DecodeWorker, state.workers));
  RETURN_IF_ERROR(reread("datasets", touched.datasets, DecodeDataset, state.datasets));
  RETURN_IF_ERROR(reread("models", touched.models, DecodeModel, state.models));
  RETURN_IF_ERROR(reread("adapters", touched.adapters, DecodeAdapter, state.adapters));
  RETURN_IF_ERROR(RereadBlobs(touched.blobs, state));
  return RereadRequests(touched.requests, state);
}

// ---- Commit ------------------------------------------------------------------------------------

absl::Status SqliteStore::CheckGeneration(const core::State& state) {
  ASSIGN_OR_RETURN(const bool row, s_.generation.Step());
  int64_t generation = 0;
  if (row) RETURN_IF_ERROR(ReadNumber(s_.generation.Text(0), "generation", generation));
  s_.generation.Reset();
  if (generation <= state.generation) return absl::OkStatus();
  return Error(Reason::kStoreUnavailable, absl::StrCat("another server of generation ", generation,
                                                       " writes to this database; this one is of ",
                                                       state.generation, " and must stop"));
}

absl::Status SqliteStore::WriteMeta(const core::State& state) {
  if (!state.touched.meta) return absl::OkStatus();
  const auto put = [this](std::string_view key, const std::string& value) {
    return s_.put_meta.Bind(1, key).Bind(2, value).Run();
  };
  RETURN_IF_ERROR(put("timeline", state.timeline));
  RETURN_IF_ERROR(put("generation", absl::StrCat(state.generation)));
  RETURN_IF_ERROR(put("last_job_number", absl::StrCat(state.last_job_number)));
  return put("last_event_number", absl::StrCat(state.last_event_number));
}

// An id that was deleted and taken again in one turn: what is there is of the job before.
absl::Status SqliteStore::DropReplaced(const core::State& state) {
  for (const std::string& id : state.touched.jobs) {
    const core::Job* job = state.FindJob(id);
    const auto known = created_.find(id);
    if (job == nullptr || known == created_.end() || known->second == job->number) continue;
    RETURN_IF_ERROR(s_.delete_job_attempts.Bind(1, id).Run());
    RETURN_IF_ERROR(s_.delete_job_events.Bind(1, id).Run());
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::WriteJobs(const core::State& state) {
  for (const std::string& id : state.touched.jobs) {
    const core::Job* job = state.FindJob(id);
    if (job == nullptr) {
      RETURN_IF_ERROR(s_.delete_job_attempts.Bind(1, id).Run());
      RETURN_IF_ERROR(s_.delete_job_events.Bind(1, id).Run());
      RETURN_IF_ERROR(s_.delete_created.Bind(1, id).Run());
      RETURN_IF_ERROR(s_.delete_job.Bind(1, id).Run());
      created_.erase(id);
      continue;
    }
    s_.put_job.Bind(1, id)
        .Bind(2, job->number)
        .Bind(3, job->tenant)
        .Bind(4, core::JobStateName(job->state));
    RETURN_IF_ERROR(s_.put_job.Bind(5, job->epoch).Bind(6, EncodeJob(*job)).Run());
    int64_t& number = created_[id];
    if (number == job->number && state.touched.specs.count(id) == 0) continue;
    number = job->number;
    s_.put_created.Bind(1, id).BindBlob(2, job->user_spec);
    RETURN_IF_ERROR(s_.put_created.Bind(3, EncodeCreated(*job)).Run());
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::WriteAttempts(const core::State& state) {
  // Those that ended before those that began, so that no job has two ACTIVE ones on the way.
  for (const bool active : {false, true}) {
    for (const core::AttemptKey& key : state.touched.attempts) {
      const core::Attempt* attempt = state.FindAttempt(key);
      if (attempt == nullptr || (attempt->state == core::AttemptState::kActive) != active) continue;
      s_.put_attempt.Bind(1, key.first)
          .Bind(2, key.second)
          .Bind(3, attempt->worker_id)
          .Bind(4, attempt->incarnation);
      s_.put_attempt.Bind(5, core::AttemptStateName(attempt->state));
      RETURN_IF_ERROR(s_.put_attempt.Bind(6, EncodeAttempt(*attempt)).Run());
    }
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::WriteThings(const core::State& state) {
  for (const std::string& id : state.touched.workers) {
    const auto it = state.workers.find(id);
    RETURN_IF_ERROR(it == state.workers.end()
                        ? s_.delete_worker.Bind(1, id).Run()
                        : s_.put_worker.Bind(1, id).Bind(2, EncodeWorker(it->second)).Run());
  }
  for (const std::string& id : state.touched.datasets) {
    const auto it = state.datasets.find(id);
    RETURN_IF_ERROR(it == state.datasets.end() ? s_.delete_dataset.Bind(1, id).Run()
                                               : s_.put_dataset.Bind(1, id)
                                                     .Bind(2, it->second.sha256)
                                                     .Bind(3, EncodeDataset(it->second))
                                                     .Run());
  }
  for (const std::string& id : state.touched.models) {
    const auto it = state.models.find(id);
    RETURN_IF_ERROR(it == state.models.end() ? s_.delete_model.Bind(1, id).Run()
                                             : s_.put_model.Bind(1, id)
                                                   .Bind(2, it->second.digest)
                                                   .Bind(3, EncodeModel(it->second))
                                                   .Run());
  }
  for (const std::string& id : state.touched.adapters) {
    const auto it = state.adapters.find(id);
    RETURN_IF_ERROR(it == state.adapters.end() ? s_.delete_adapter.Bind(1, id).Run()
                                               : s_.put_adapter.Bind(1, id)
                                                     .Bind(2, it->second.job_id)
                                                     .Bind(3, EncodeAdapter(it->second))
                                                     .Run());
  }
  for (const std::string& sha256 : state.touched.blobs) {
    const auto it = state.blobs.find(sha256);
    RETURN_IF_ERROR(it == state.blobs.end()
                        ? s_.delete_blob.Bind(1, sha256).Run()
                        : s_.put_blob.Bind(1, sha256)
                              .Bind(2, it->second.size_bytes)
                              .Bind(3, absl::StrJoin(it->second.projects, " "))
                              .Run());
  }
  for (const core::RequestKey& key : state.touched.requests) {
    RETURN_IF_ERROR(s_.delete_request.Bind(1, key.first).Bind(2, key.second).Run());
    const auto it = state.requests.find(key);
    if (it == state.requests.end()) continue;
    const core::RequestRecord& r = it->second;
    s_.put_request.Bind(1, r.tenant).Bind(2, r.request_id).Bind(3, r.job_id).Bind(4, r.body_sha256);
    RETURN_IF_ERROR(s_.put_request.Bind(5, r.create_unix_us).Run());
  }
  return absl::OkStatus();
}

absl::Status SqliteStore::WriteEvents(const std::vector<core::EventRecord>& records) {
  const std::vector<bool> of_dead = OfReplacedJobs(records);
  for (size_t i = 0; i < records.size(); ++i) {
    if (of_dead[i]) continue;
    const core::EventRecord& r = records[i];
    s_.put_event.Bind(1, r.number)
        .Bind(2, r.job_id)
        .Bind(3, r.sequence)
        .Bind(4, r.unix_us)
        .Bind(5, r.type);
    s_.put_event.Bind(6, r.message)
        .Bind(7, core::JobStateName(r.state))
        .Bind(8, EncodeFields(r.fields));
    RETURN_IF_ERROR(s_.put_event.Run());
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> SqliteStore::PruneEvents(int64_t before_unix_us, int64_t limit) {
  RETURN_IF_ERROR(s_.prune_events.Bind(1, before_unix_us).Bind(2, limit).Run());
  ASSIGN_OR_RETURN(const bool row, s_.changes.Step());
  const int64_t removed = row ? s_.changes.Int(0) : 0;
  s_.changes.Reset();
  return removed;
}

absl::Status SqliteStore::Commit(const core::State& state,
                                 const std::vector<core::EventRecord>& records) {
  ASSIGN_OR_RETURN(Transaction transaction, Transaction::Begin(&db_));
  RETURN_IF_ERROR(CheckGeneration(state));
  RETURN_IF_ERROR(WriteMeta(state));
  RETURN_IF_ERROR(DropReplaced(state));
  RETURN_IF_ERROR(WriteEvents(records));
  RETURN_IF_ERROR(WriteJobs(state));
  RETURN_IF_ERROR(WriteAttempts(state));
  RETURN_IF_ERROR(WriteThings(state));
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

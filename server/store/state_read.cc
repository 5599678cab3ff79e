#include "server/store/state_read.h"

#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/error.h"
#include "base/status.h"
#include "server/store/codec.h"

namespace nibble::store {
namespace {

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

absl::Status LoadMeta(Database& db, core::State& state) {
  ASSIGN_OR_RETURN(Statement rows, db.Prepare("SELECT key, value FROM meta"));
  ASSIGN_OR_RETURN(bool row, rows.Step());
  while (row) {
    const std::string key = rows.Text(0);
    if (key == "timeline") state.timeline = rows.Text(1);
    for (auto& [name, number] :
         {std::pair<std::string_view, int64_t*>{"generation", &state.generation},
          {"last_job_number", &state.last_job_number},
          {"last_event_number", &state.last_event_number}}) {
      if (key == name) RETURN_IF_ERROR(ReadMetaNumber(rows.Text(1), key, *number));
    }
    ASSIGN_OR_RETURN(row, rows.Step());
  }
  return absl::OkStatus();
}

absl::Status LoadJobs(Database& db, core::State& state) {
  ASSIGN_OR_RETURN(Statement jobs, db.Prepare(kSelectJobs));
  ASSIGN_OR_RETURN(bool row, jobs.Step());
  while (row) {
    ASSIGN_OR_RETURN(core::Job job, JobOf(jobs));
    state.jobs[job.id] = std::move(job);
    ASSIGN_OR_RETURN(row, jobs.Step());
  }
  ASSIGN_OR_RETURN(Statement attempts, db.Prepare("SELECT body FROM attempts"));
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

absl::Status LoadThings(Database& db, core::State& state) {
  const auto load = [&db](std::string_view sql, const auto& decode, auto& rows) -> absl::Status {
    ASSIGN_OR_RETURN(Statement statement, db.Prepare(sql));
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
  ASSIGN_OR_RETURN(Statement blobs, db.Prepare(kSelectBlobs));
  ASSIGN_OR_RETURN(bool row, blobs.Step());
  while (row) {
    state.blobs[blobs.Text(0)] = BlobOf(blobs);
    ASSIGN_OR_RETURN(row, blobs.Step());
  }
  ASSIGN_OR_RETURN(Statement requests, db.Prepare(kSelectRequests));
  ASSIGN_OR_RETURN(row, requests.Step());
  while (row) {
    state.requests[{requests.Text(0), requests.Text(1)}] = RequestOf(requests);
    ASSIGN_OR_RETURN(row, requests.Step());
  }
  return absl::OkStatus();
}

absl::Status RereadJobs(Database& db, const std::set<std::string>& ids, core::State& state) {
  ASSIGN_OR_RETURN(Statement jobs, db.Prepare(absl::StrCat(kSelectJobs, " WHERE j.id=?1")));
  ASSIGN_OR_RETURN(Statement attempts, db.Prepare("SELECT body FROM attempts WHERE job_id=?1"));
  for (const std::string& id : ids) {
    state.jobs.erase(id);
    ASSIGN_OR_RETURN(bool row, jobs.Bind(1, id).Step());
    if (row) {
      ASSIGN_OR_RETURN(core::Job job, JobOf(jobs));
      ASSIGN_OR_RETURN(row, attempts.Bind(1, id).Step());
      while (row) {
        ASSIGN_OR_RETURN(core::Attempt attempt, DecodeAttempt(attempts.Text(0)));
        job.attempts[attempt.epoch] = std::move(attempt);
        ASSIGN_OR_RETURN(row, attempts.Step());
      }
      state.jobs[id] = std::move(job);
    }
    jobs.Reset();
    attempts.Reset();
  }
  return absl::OkStatus();
}

absl::Status RereadBlobs(Database& db, const std::set<std::string>& digests, core::State& state) {
  ASSIGN_OR_RETURN(Statement blobs, db.Prepare(absl::StrCat(kSelectBlobs, " WHERE sha256=?1")));
  for (const std::string& digest : digests) {
    state.blobs.erase(digest);
    ASSIGN_OR_RETURN(const bool row, blobs.Bind(1, digest).Step());
    if (row) state.blobs[digest] = BlobOf(blobs);
    blobs.Reset();
  }
  return absl::OkStatus();
}

absl::Status RereadRequests(Database& db, const std::set<core::RequestKey>& keys, core::State& state) {
  ASSIGN_OR_RETURN(Statement requests,
                   db.Prepare(absl::StrCat(kSelectRequests, " WHERE tenant=?1 AND request_id=?2")));
  for (const core::RequestKey& key : keys) {
    state.requests.erase(key);
    ASSIGN_OR_RETURN(const bool row, requests.Bind(1, key.first).Bind(2, key.second).Step());
    if (row) state.requests[key] = RequestOf(requests);
    requests.Reset();
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadMetaNumber(const std::string& text, const std::string& key, int64_t& number) {
  if (absl::SimpleAtoi(text, &number)) return absl::OkStatus();
  return Error(Reason::kStoreUnavailable, absl::StrCat("meta ", key, " is no number: ", text));
}

absl::Status ReadState(Database& db, core::State& state) {
  RETURN_IF_ERROR(LoadMeta(db, state));
  RETURN_IF_ERROR(LoadJobs(db, state));
  return LoadThings(db, state);
}

absl::Status ReadTouched(Database& db, const core::Touched& touched, core::State& state) {
  RETURN_IF_ERROR(LoadMeta(db, state));
  RETURN_IF_ERROR(RereadJobs(db, touched.jobs, state));
  const auto reread = [&db](const char* table, const std::set<std::string>& ids, const auto& decode,
                             auto& rows) -> absl::Status {
    ASSIGN_OR_RETURN(Statement statement,
                     db.Prepare(absl::StrCat("SELECT body FROM ", table, " WHERE id=?1")));
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
  RETURN_IF_ERROR(RereadBlobs(db, touched.blobs, state));
  return RereadRequests(db, touched.requests, state);
}

}  // namespace nibble::store

#include "server/store/state_write.h"

#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/error.h"
#include "base/status.h"
#include "server/store/codec.h"
#include "server/store/event_rows.h"
#include "server/store/state_read.h"
#include "server/store/store.h"

namespace nibble::store {

absl::Status StateWriter::Prepare(Database& db) {
  const auto prepare = [&db](Statement& statement, std::string_view sql) -> absl::Status {
    ASSIGN_OR_RETURN(statement, db.Prepare(sql));
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

void StateWriter::Knows(const core::State& state) {
  created_.clear();
  for (const auto& [id, job] : state.jobs) created_[id] = job.number;
}

void StateWriter::Knows(const core::State& state, const std::set<std::string>& jobs) {
  for (const std::string& id : jobs) {
    created_.erase(id);
    if (const core::Job* job = state.FindJob(id)) created_[id] = job->number;
  }
}

absl::Status StateWriter::CheckGeneration(const core::State& state) {
  ASSIGN_OR_RETURN(const bool row, s_.generation.Step());
  int64_t generation = 0;
  if (row) RETURN_IF_ERROR(ReadMetaNumber(s_.generation.Text(0), "generation", generation));
  s_.generation.Reset();
  if (generation <= state.generation) return absl::OkStatus();
  return Error(Reason::kStoreUnavailable, absl::StrCat("another server of generation ", generation,
                                                       " writes to this database; this one is of ",
                                                       state.generation, " and must stop"));
}

absl::Status StateWriter::WriteMeta(const core::State& state) {
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
absl::Status StateWriter::DropReplaced(const core::State& state) {
  for (const std::string& id : state.touched.jobs) {
    const core::Job* job = state.FindJob(id);
    const auto known = created_.find(id);
    if (job == nullptr || known == created_.end() || known->second == job->number) continue;
    RETURN_IF_ERROR(s_.delete_job_attempts.Bind(1, id).Run());
    RETURN_IF_ERROR(s_.delete_job_events.Bind(1, id).Run());
  }
  return absl::OkStatus();
}

absl::Status StateWriter::WriteJobs(const core::State& state) {
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

absl::Status StateWriter::WriteAttempts(const core::State& state) {
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

absl::Status StateWriter::WriteThings(const core::State& state) {
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

absl::Status StateWriter::WriteEvents(const std::vector<core::EventRecord>& records) {
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

absl::StatusOr<int64_t> StateWriter::PruneEvents(int64_t before_unix_us, int64_t limit) {
  RETURN_IF_ERROR(s_.prune_events.Bind(1, before_unix_us).Bind(2, limit).Run());
  ASSIGN_OR_RETURN(const bool row, s_.changes.Step());
  const int64_t removed = row ? s_.changes.Int(0) : 0;
  s_.changes.Reset();
  return removed;
}

absl::Status StateWriter::Write(const core::State& state, const std::vector<core::EventRecord>& records) {
  RETURN_IF_ERROR(CheckGeneration(state));
  RETURN_IF_ERROR(WriteMeta(state));
  RETURN_IF_ERROR(DropReplaced(state));
  RETURN_IF_ERROR(WriteEvents(records));
  RETURN_IF_ERROR(WriteJobs(state));
  RETURN_IF_ERROR(WriteAttempts(state));
  return WriteThings(state);
}

}  // namespace nibble::store

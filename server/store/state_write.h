// The rows of state.db, from a state: what one commit changes. One thread.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/core/event_record.h"
#include "server/core/state.h"
#include "server/store/sqlite.h"

namespace nibble::store {

class StateWriter {
 public:
  // The statements, once, over a database that outlives this.
  absl::Status Prepare(Database& db);
  // What the disk holds now: of all jobs, or of those, as after a commit that failed.
  void Knows(const core::State& state);
  void Knows(const core::State& state, const std::set<std::string>& jobs);

  // Inside a transaction: `records` and the rows that state.touched names. STORE_UNAVAILABLE when a server of
  // a later generation writes to this database.
  absl::Status Write(const core::State& state, const std::vector<core::EventRecord>& records);
  // As Store has it.
  absl::StatusOr<int64_t> PruneEvents(int64_t before_unix_us, int64_t limit);

 private:
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

  absl::Status CheckGeneration(const core::State& state);
  absl::Status WriteMeta(const core::State& state);
  absl::Status DropReplaced(const core::State& state);
  absl::Status WriteJobs(const core::State& state);
  absl::Status WriteAttempts(const core::State& state);
  absl::Status WriteThings(const core::State& state);
  absl::Status WriteEvents(const std::vector<core::EventRecord>& records);

  Statements s_;
  // Jobs whose job_specs row is written, by id: their numbers, since an id may be used again. (The row of one
  // in touched.specs is written again.)
  std::unordered_map<std::string, int64_t> created_;
};

}  // namespace nibble::store

// The real store: state.db and metrics.db in one data directory, which the caller has locked.
//
// state.db: WAL, synchronous FULL, one writing connection, one transaction per Commit. metrics.db:
// WAL, synchronous NORMAL, its own thread. Both keep user_version and application_id; migrations
// run at open, one transaction per version, after a copy of the file was made. One writing
// connection per file is a rule, not a habit: SQLite before 3.51.3 can lose a WAL reset under two.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/store/store.h"

namespace nibble::store {

absl::StatusOr<std::unique_ptr<Store>> OpenSqliteStore(const std::string& data_dir);
absl::StatusOr<std::unique_ptr<MetricStore>> OpenSqliteMetricStore(const std::string& data_dir);

// A consistent copy of state.db and metrics.db into `target_dir` (which must not hold any), by
// SQLite's backup API; for `nibble-server backup`, also while a server runs.
absl::Status BackupDatabases(const std::string& data_dir, const std::string& target_dir);

// Of a database that a server may have open: the digests it knows, and the names of the models,
// data sets, adapters and jobs (for their checkpoints) that refer to one.
absl::StatusOr<std::vector<std::string>> KnownBlobs(const std::string& data_dir);
absl::StatusOr<std::vector<std::string>> ResourcesWith(const std::string& data_dir,
                                                       const std::string& sha256);

}  // namespace nibble::store

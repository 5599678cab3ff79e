// The tables, as migrations in order: entry i brings a file from user_version i to i + 1. Never
// edit an entry that was released; add one.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "server/store/sqlite.h"

namespace nibble::store {

struct Schema {
  std::string_view name;  // "state"
  int32_t application_id = 0;
  std::vector<std::string_view> migrations;
};
const Schema& StateSchema();
const Schema& MetricsSchema();

// Brings a file that was opened for writing up to date: one transaction per version, after a copy
// "<path>.v<n>" was made of a file that had rows. Refuses files that are not ours or of a later
// version.
absl::Status Migrate(Database& db, const std::string& path, const Schema& schema);

}  // namespace nibble::store

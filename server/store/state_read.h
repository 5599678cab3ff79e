// The rows of state.db, into a state. Volatile fields are at their defaults; indexes are not built.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "server/core/state.h"
#include "server/store/sqlite.h"

namespace nibble::store {

// A number of the table meta; STORE_UNAVAILABLE when it is none.
absl::Status ReadMetaNumber(const std::string& text, const std::string& key, int64_t& number);
// Into an empty state.
absl::Status ReadState(Database& db, core::State& state);
// What is touched, as it is on the disk, or gone from the state where it is not there. Of a touched attempt
// the job must be touched too.
absl::Status ReadTouched(Database& db, const core::Touched& touched, core::State& state);

}  // namespace nibble::store

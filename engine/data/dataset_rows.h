// A data file as a stream of JSON texts: the lines of JSON lines, or the elements of one JSON
// array.
//
// Bounded: at most one row and one chunk are in memory (engine/spec/row_splitter.h).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace nibble::engine {

// Calls on_row(row from 0, text) for every row; blank lines are no rows. Stops at the first error
// of on_row. `label` names the rows in errors: "rows", or "eval_rows".
absl::Status ForEachRow(const std::string& path, std::string_view label,
                        const std::function<absl::Status(int64_t, std::string_view)>& on_row);

}  // namespace nibble::engine

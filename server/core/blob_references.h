// What rows refer to blobs: all of them in one go, or a few rows at a time, so that a long history holds
// nobody up. Pure; one thread at a time.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

#include "server/core/state.h"

namespace nibble::core {

class BlobReferences {
 public:
  // Rows of a part: a millisecond or so of the loop's time.
  static constexpr size_t kRowsAtOnce = 1'000;
  using Use = std::function<void(const std::string& sha256)>;

  // Calls `use` with each digest that the next rows refer to; true once there are no more. Of rows that come
  // or change between two parts, some are missed.
  bool Next(const State& state, const Use& use, size_t rows = kRowsAtOnce);

 private:
  enum class Part { kDatasets, kModels, kAdapters, kCheckpoints, kDone };
  template <typename Rows, typename Tell>
  bool Walk(const Rows& table, Tell tell, size_t rows, size_t& done);

  Part part_ = Part::kDatasets;
  std::string after_;  // key of the last row of the part that was told
};

}  // namespace nibble::core

// Token ids and labels of examples, on the disk: in memory is only where each example begins.
//
// A file without a name in a directory of the caller's: four bytes a token, the top bit saying that the
// token is trained, that is, the label of the position before it. So hundreds of millions of tokens train
// within a small share of the host's memory; the system's page cache keeps what is read often. Read,
// never mapped, so that a full or broken disk is an error and not a signal. First Add, then Flush, then
// reads, which are thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble::engine {

inline constexpr int32_t kNoLabel = -1;

// Labels are next-token aligned: labels[i] is ids[i + 1] where position i is trained on, else kNoLabel; the
// last is always kNoLabel.
struct Example {
  std::vector<int32_t> ids;
  std::vector<int32_t> labels;  // as long as ids

  bool operator==(const Example&) const = default;
};

class TokenStore {
 public:
  // `directory` "" is the system's for temporary files.
  static absl::StatusOr<TokenStore> Create(const std::string& directory);
  TokenStore() = default;
  ~TokenStore();
  TokenStore(TokenStore&& other) noexcept;
  TokenStore& operator=(TokenStore&& other) noexcept;

  absl::Status Add(const Example& example);
  // What was added can be read from now on; nothing is added any more.
  absl::Status Flush();

  int64_t count() const { return static_cast<int64_t>(starts_.size()) - 1; }
  int32_t Length(int64_t example) const {
    return static_cast<int32_t>(starts_[static_cast<size_t>(example) + 1] -
                                starts_[static_cast<size_t>(example)]);
  }
  // `out` is overwritten.
  absl::Status Read(int64_t example, Example& out) const;

 private:
  absl::Status WriteBuffer();

  int fd_ = -1;
  std::vector<int64_t> starts_{0};  // tokens before each example, and all of them
  std::vector<uint32_t> buffer_;    // not yet written
};

}  // namespace nibble::engine

// A file that arrives in pieces and may be cut at any of them: what is already there counts, and
// only the right digest makes it whole.
//
// Values that move; used by one thread at a time.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/digest.h"

namespace nibble {

class PartialFile {
 public:
  // Opens or creates `path` and hashes what is there. More than `size_bytes` cannot be the beginning
  // of the file wanted, and is dropped. `stop` is asked every megabyte; true: CANCELLED.
  static absl::StatusOr<PartialFile> Open(const std::string& path, int64_t size_bytes,
                                          const std::function<bool()>& stop = nullptr);
  ~PartialFile();
  PartialFile(PartialFile&& other) noexcept;
  PartialFile& operator=(PartialFile&&) = delete;

  int64_t offset() const { return offset_; }  // bytes that are there
  bool IsWhole() const { return offset_ == size_bytes_; }
  // Refuses (DIGEST_MISMATCH) what would make the file longer than it is to be.
  absl::Status Append(std::string_view data);
  // The file is whole: checks its digest, syncs it and gives it `mode` and its name. With another
  // digest (DIGEST_MISMATCH) it is removed, so that the next Open starts anew.
  absl::Status Finish(const std::string& sha256, const std::string& target, mode_t mode);

 private:
  PartialFile(std::string path, int fd, int64_t size_bytes)
      : path_(std::move(path)), fd_(fd), size_bytes_(size_bytes) {}

  std::string path_;
  int fd_;
  int64_t size_bytes_;
  int64_t offset_ = 0;
  Sha256 hash_;
};

}  // namespace nibble

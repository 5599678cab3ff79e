// A file in the making: locked against other makers of the same one, renamed when its bytes are durable.
//
// One thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble::engine {

// Unlinked again unless Commit succeeds. Of a maker that died the file may be there: it is overwritten.
class LockedFile {
 public:
  ~LockedFile();
  // Waits for another maker of the same file. `stop` is asked every kPollMs meanwhile and may be empty; true:
  // it is given up, with an error of no reason.
  static constexpr int kPollMs = 50;
  static absl::StatusOr<std::unique_ptr<LockedFile>> Open(const std::string& path,
                                                          const std::function<bool()>& stop);
  // To this many bytes of zero; STORAGE_FULL when the disk has no room for them.
  absl::Status Resize(int64_t bytes);
  absl::Status Write(int64_t offset, const void* data, int64_t size);
  // Durable, and under its own name.
  absl::Status Commit(const std::string& to);

 private:
  absl::Status Failed(std::string_view what) const;

  std::string path_;
  int fd_ = -1;
  bool committed_ = false;
};

}  // namespace nibble::engine

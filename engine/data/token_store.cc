#include "engine/data/token_store.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"

namespace nibble::engine {
namespace {

constexpr uint32_t kTrained = uint32_t{1} << 31;
constexpr size_t kBufferTokens = size_t{256} << 10;

std::string TemporaryDirectory() {
  const char* named = std::getenv("TMPDIR");
  return named != nullptr && *named != '\0' ? named : "/tmp";
}

// A file that nobody else finds and that is gone with its descriptor.
absl::StatusOr<int> OpenNameless(const std::string& directory) {
  int fd = ::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd >= 0) return fd;
  if (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL) {
    return ErrnoStatus(errno, absl::StrCat("make a token file in ", directory));
  }
  std::string path = JoinPath(directory, "tokens-XXXXXX");
  fd = ::mkostemp(path.data(), O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, absl::StrCat("make ", path));
  ::unlink(path.c_str());
  return fd;
}

}  // namespace

absl::StatusOr<TokenStore> TokenStore::Create(const std::string& directory) {
  const std::string where = directory.empty() ? TemporaryDirectory() : directory;
  RETURN_IF_ERROR(MakeDirs(where));
  TokenStore store;
  ASSIGN_OR_RETURN(store.fd_, OpenNameless(where));
  return store;
}

TokenStore::~TokenStore() {
  if (fd_ >= 0) ::close(fd_);
}

TokenStore::TokenStore(TokenStore&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      starts_(std::move(other.starts_)),
      buffer_(std::move(other.buffer_)) {}

TokenStore& TokenStore::operator=(TokenStore&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(starts_, other.starts_);
  std::swap(buffer_, other.buffer_);
  return *this;
}

absl::Status TokenStore::Add(const Example& example) {
  CHECK(fd_ >= 0 && !example.ids.empty() && example.ids.size() == example.labels.size());
  for (size_t i = 0; i < example.ids.size(); ++i) {
    const bool trained = i > 0 && example.labels[i - 1] != kNoLabel;
    CHECK(example.ids[i] >= 0 && (!trained || example.labels[i - 1] == example.ids[i]));
    buffer_.push_back(static_cast<uint32_t>(example.ids[i]) | (trained ? kTrained : 0));
  }
  CHECK(example.labels.back() == kNoLabel);
  starts_.push_back(starts_.back() + static_cast<int64_t>(example.ids.size()));
  return buffer_.size() < kBufferTokens ? absl::OkStatus() : WriteBuffer();
}

absl::Status TokenStore::WriteBuffer() {
  const auto* from = reinterpret_cast<const char*>(buffer_.data());
  for (size_t left = buffer_.size() * sizeof(uint32_t); left > 0;) {
    const ssize_t n = ::write(fd_, from, left);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "write the tokens of a data set");
    from += n;
    left -= static_cast<size_t>(n);
  }
  buffer_.clear();
  return absl::OkStatus();
}

absl::Status TokenStore::Flush() {
  RETURN_IF_ERROR(WriteBuffer());
  buffer_ = {};
  starts_.shrink_to_fit();
  return absl::OkStatus();
}

absl::Status TokenStore::Read(int64_t example, Example& out) const {
  CHECK(example >= 0 && example < count());
  const auto length = static_cast<size_t>(Length(example));
  out.ids.resize(length);
  auto* to = reinterpret_cast<char*>(out.ids.data());
  int64_t at = starts_[static_cast<size_t>(example)] * static_cast<int64_t>(sizeof(uint32_t));
  for (size_t left = length * sizeof(uint32_t); left > 0;) {
    const ssize_t n = ::pread(fd_, to, left, at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "read the tokens of a data set");
    if (n == 0) return Error(Reason::kInternal, "the file of a data set's tokens was cut short");
    to += n;
    at += n;
    left -= static_cast<size_t>(n);
  }
  out.labels.assign(length, kNoLabel);
  for (size_t i = 0; i < length; ++i) {
    const auto word = static_cast<uint32_t>(out.ids[i]);
    out.ids[i] = static_cast<int32_t>(word & ~kTrained);
    if ((word & kTrained) != 0) out.labels[i - 1] = out.ids[i];
  }
  return absl::OkStatus();
}

}  // namespace nibble::engine

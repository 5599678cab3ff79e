// SHA-256, the name of bytes. A Sha256 is used by one thread; the functions are thread-safe.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace nibble {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  void Update(const void* data, size_t size);
  void Update(std::string_view data) { Update(data.data(), data.size()); }
  // 64 lower-case hex digits; the object is done afterwards.
  std::string FinishHex();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

std::string Sha256Hex(std::string_view data);
// Of a whole file, read in chunks.
absl::StatusOr<std::string> Sha256HexOfFile(const std::string& path);
// 64 hex digits of HMAC-SHA256.
std::string HmacSha256Hex(std::string_view key, std::string_view data);
// True for 64 lower-case hex digits: the only form a digest may have before it becomes part of a path.
bool IsSha256Hex(std::string_view text);

}  // namespace nibble

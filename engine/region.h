// A piece of memory that exists only as long as a plan says so.
//
// Address space is reserved once and kept without memory behind it; Map puts exactly the planned
// bytes at its start, Unmap gives them back to the system. Nothing else lies in the reservation, so
// a write behind the plan faults at once. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace nibble::engine {

class Region {
 public:
  Region() = default;
  ~Region();
  Region(Region&& other) noexcept;
  Region& operator=(Region&& other) noexcept;

  // Room for at most `capacity_bytes`, and a guard page behind.
  static absl::StatusOr<Region> Reserve(int64_t capacity_bytes);

  // Zeroed memory of this many bytes (rounded up to pages) in place of what was mapped before.
  absl::Status Map(int64_t bytes);
  void Unmap();

  std::byte* data() const { return data_; }
  int64_t mapped_bytes() const { return mapped_bytes_; }
  int64_t capacity_bytes() const { return capacity_bytes_; }
  // Bytes of the first `limit` mapped bytes that have memory behind them because someone touched
  // them. Asks the kernel, not the plan.
  int64_t TouchedBytes(int64_t limit) const;
  int64_t TouchedBytes() const { return TouchedBytes(mapped_bytes_); }

 private:
  std::byte* data_ = nullptr;
  int64_t capacity_bytes_ = 0;
  int64_t mapped_bytes_ = 0;
};

}  // namespace nibble::engine

// A piece of a backend's memory that exists only as long as a plan says so.
//
// On the host, address space is reserved once and kept without memory behind it; Map puts exactly the
// planned bytes at its start, Unmap gives them back to the system. Nothing else lies in the reservation,
// so a write behind the plan faults at once. On a device, Map allocates exactly the planned bytes, and
// data() is a device pointer, another one after every Map. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace nibble::engine {

class Region {
 public:
  Region() = default;
  ~Region();
  Region(Region&& other) noexcept;
  Region& operator=(Region&& other) noexcept;

  // On the host: room for at most `capacity_bytes`, and a guard page behind.
  static absl::StatusOr<Region> Reserve(int64_t capacity_bytes);
  // Of this backend's memory; it must outlive the region.
  static absl::StatusOr<Region> On(kernels::Backend& backend, int64_t capacity_bytes);

  // Memory of this many bytes in place of what was mapped before: on the host zeroed and rounded up to
  // pages, on a device with whatever it holds. OUT_OF_MEMORY when a device has no more.
  absl::Status Map(int64_t bytes);
  void Unmap();
  // On the host: gives back what is behind the first `bytes`, which keep what they hold.
  void Shrink(int64_t bytes);

  std::byte* data() const { return data_; }
  int64_t mapped_bytes() const { return mapped_bytes_; }
  int64_t capacity_bytes() const { return capacity_bytes_; }
  // Bytes of the first `limit` mapped bytes that have memory behind them: on a device all of them, on
  // the host those that someone touched. Asks the kernel, not the plan.
  int64_t TouchedBytes(int64_t limit) const;
  int64_t TouchedBytes() const { return TouchedBytes(mapped_bytes_); }

 private:
  absl::Status MapOnDevice(int64_t bytes);

  kernels::Backend* backend_ = nullptr;  // null on the host
  std::byte* data_ = nullptr;
  int64_t capacity_bytes_ = 0;
  int64_t mapped_bytes_ = 0;
};

}  // namespace nibble::engine

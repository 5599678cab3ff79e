#include "engine/region.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"

namespace nibble::engine {
namespace {

int64_t PageBytes() {
  static const int64_t bytes = sysconf(_SC_PAGESIZE);
  return bytes;
}
int64_t RoundUpToPage(int64_t bytes) {
  return (bytes + PageBytes() - 1) / PageBytes() * PageBytes();
}

}  // namespace

Region::~Region() {
  if (backend_ != nullptr) {
    Unmap();
  } else if (data_ != nullptr) {
    munmap(data_, static_cast<size_t>(capacity_bytes_ + PageBytes()));
  }
}

Region::Region(Region&& other) noexcept { *this = std::move(other); }

Region& Region::operator=(Region&& other) noexcept {
  std::swap(backend_, other.backend_);
  std::swap(data_, other.data_);
  std::swap(capacity_bytes_, other.capacity_bytes_);
  std::swap(mapped_bytes_, other.mapped_bytes_);
  return *this;
}

absl::StatusOr<Region> Region::Reserve(int64_t capacity_bytes) {
  Region region;
  region.capacity_bytes_ = RoundUpToPage(std::max<int64_t>(1, capacity_bytes));
  void* address = mmap(nullptr, static_cast<size_t>(region.capacity_bytes_ + PageBytes()),
                       PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) {
    return Error(Reason::kOutOfMemory,
                 absl::StrCat("cannot reserve ", capacity_bytes,
                              " bytes of address space: ", std::strerror(errno)));
  }
  region.data_ = static_cast<std::byte*>(address);
  return region;
}

absl::StatusOr<Region> Region::On(kernels::Backend& backend, int64_t capacity_bytes) {
  if (backend.is_host()) return Reserve(capacity_bytes);
  Region region;
  region.backend_ = &backend;
  region.capacity_bytes_ = capacity_bytes;
  return region;
}

absl::Status Region::MapOnDevice(int64_t bytes) {
  if (bytes == 0) return absl::OkStatus();
  void* address = backend_->Allocate(bytes);
  if (address == nullptr) {
    const char* why = backend_->error();
    return Error(Reason::kOutOfMemory,
                 absl::StrCat("the device has no ", bytes, " bytes left, ", backend_->free_bytes(),
                              " are free", why == nullptr ? "" : absl::StrCat(": ", why),
                              "; is another process using it?"));
  }
  data_ = static_cast<std::byte*>(address);
  mapped_bytes_ = bytes;
  return absl::OkStatus();
}

absl::Status Region::Map(int64_t bytes) {
  CHECK(bytes >= 0 && bytes <= capacity_bytes_);
  Unmap();
  if (backend_ != nullptr) return MapOnDevice(bytes);
  const int64_t size = RoundUpToPage(bytes);
  if (size == 0) return absl::OkStatus();
  void* address = mmap(data_, static_cast<size_t>(size), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  if (address == MAP_FAILED) {
    return Error(Reason::kOutOfMemory,
                 absl::StrCat("cannot map ", size, " bytes: ", std::strerror(errno)));
  }
  // Large pages where the system gives them: fewer misses of address translation. Not needed.
  madvise(address, static_cast<size_t>(size), MADV_HUGEPAGE);
  mapped_bytes_ = size;
  return absl::OkStatus();
}

void Region::Unmap() {
  if (mapped_bytes_ == 0) return;
  if (backend_ != nullptr) {
    backend_->Release(data_);
    data_ = nullptr;
    mapped_bytes_ = 0;
    return;
  }
  CHECK(mmap(data_, static_cast<size_t>(mapped_bytes_), PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == data_);
  mapped_bytes_ = 0;
}

void Region::Shrink(int64_t bytes) {
  CHECK(backend_ == nullptr && bytes >= 0);
  const int64_t size = RoundUpToPage(bytes);
  if (size >= mapped_bytes_) return;
  CHECK(mmap(data_ + size, static_cast<size_t>(mapped_bytes_ - size), PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == data_ + size);
  mapped_bytes_ = size;
}

int64_t Region::TouchedBytes(int64_t limit) const {
  if (backend_ != nullptr) return std::min(limit, mapped_bytes_);
  std::array<unsigned char, 4096> resident;  // one byte a page; no allocation inside a turn
  const int64_t window = static_cast<int64_t>(resident.size()) * PageBytes();
  const int64_t end = std::min(RoundUpToPage(limit), mapped_bytes_);
  int64_t pages = 0;
  for (int64_t at = 0; at < end; at += window) {
    const int64_t size = std::min(window, end - at);
    CHECK(mincore(data_ + at, static_cast<size_t>(size), resident.data()) == 0);
    for (int64_t i = 0; i < size / PageBytes(); ++i) pages += resident[static_cast<size_t>(i)] & 1;
  }
  return pages * PageBytes();
}

}  // namespace nibble::engine

#include "tests/kernels/guarded.h"

#include <sys/mman.h>

#include <cstring>

#include "kernels/check.h"

namespace nibble::kernels::check {
namespace {
constexpr int64_t kPage = 4096;
constexpr int64_t kFront = 512;
constexpr uint8_t kPattern = 0xA5;
}  // namespace

Guarded::Guarded(int64_t bytes, int64_t alignment) : bytes_(bytes) {
  const int64_t inner = (bytes + kFront + alignment + kPage - 1) / kPage * kPage;
  mapped_ = inner + kPage;
  void* map = mmap(nullptr, static_cast<size_t>(mapped_), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  KERNEL_CHECK(map != MAP_FAILED);
  map_ = static_cast<uint8_t*>(map);
  page_ = map_ + inner;
  KERNEL_CHECK(mprotect(page_, kPage, PROT_NONE) == 0);
  std::memset(map_, kPattern, static_cast<size_t>(inner));
  data_ = map_ + (inner - bytes) / alignment * alignment;
}

Guarded::~Guarded() { munmap(map_, static_cast<size_t>(mapped_)); }

bool Guarded::Intact() const {
  for (const uint8_t* at = map_; at != data_; ++at)
    if (*at != kPattern) return false;
  for (const uint8_t* at = data_ + bytes_; at != page_; ++at)
    if (*at != kPattern) return false;
  return true;
}

}  // namespace nibble::kernels::check

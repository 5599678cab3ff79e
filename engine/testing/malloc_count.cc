#include "engine/testing/malloc_count.h"

#include <malloc.h>

#include <atomic>

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define NIBBLE_COUNTS_ALLOCATIONS 1
#endif

namespace {

std::atomic<bool> counting = false;
std::atomic<int64_t> calls = 0;

#ifdef NIBBLE_COUNTS_ALLOCATIONS
void Count() {
  if (counting.load(std::memory_order_relaxed)) calls.fetch_add(1);
}
#endif

}  // namespace

#ifdef NIBBLE_COUNTS_ALLOCATIONS
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t size) {
  Count();
  return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
  Count();
  return __libc_calloc(count, size);
}
void* realloc(void* old, size_t size) {
  Count();
  return __libc_realloc(old, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  Count();
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** out, size_t alignment, size_t size) {
  Count();
  *out = __libc_memalign(alignment, size);
  return *out == nullptr ? 12 : 0;
}
}
#endif

namespace nibble::engine::testing {

bool MallocCountWorks() {
#ifdef NIBBLE_COUNTS_ALLOCATIONS
  return true;
#else
  return false;
#endif
}

void StartMallocCount() {
  calls = 0;
  counting = true;
}

int64_t StopMallocCount() {
  counting = false;
  return calls;
}

}  // namespace nibble::engine::testing

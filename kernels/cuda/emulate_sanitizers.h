// What the address and thread sanitizers must be told when a fiber (emulate.cc) changes stacks: they keep
// bounds and a call stack per stack and would mistake the new one for damage to the old. Without a sanitizer
// every function here is empty.
//
// Each call comes right before or right after the switch it is named for, on the thread that makes it.
//
// The thread sanitizer sees a block's threads as a GPU has them: nothing orders two of them but what the
// programming guide says does (HandOver and TakeOver, at a block's begin and end, __syncthreads and
// __syncwarp), though one host thread runs them in turn. So it reports every pair of accesses to shared or
// global memory that a barrier should be between, whatever order they happened to run in. What the emulation
// itself keeps is NIBBLE_UNSEEN.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

// Of a function whose own accesses to memory the thread sanitizer must not see.
#if defined(__SANITIZE_THREAD__)
#define NIBBLE_UNSEEN __attribute__((no_sanitize("thread")))
#else
#define NIBBLE_UNSEEN
#endif

namespace nibble::kernels::cuda_emulated {

#if defined(__SANITIZE_ADDRESS__)

class FiberSanitizer {
 public:
  FiberSanitizer(void* stack, size_t bytes) : stack_(stack), bytes_(bytes) {}
  // Memory mapped anew may lie where an ended fiber's frames were; the marks around those are still there.
  ~FiberSanitizer() { __asan_unpoison_memory_region(stack_, bytes_); }
  void BeforeResume() { __sanitizer_start_switch_fiber(&caller_fake_, stack_, bytes_); }
  void AfterResume() { __sanitizer_finish_switch_fiber(caller_fake_, nullptr, nullptr); }
  void BeforeSuspend() { __sanitizer_start_switch_fiber(&fiber_fake_, caller_, caller_bytes_); }
  // Also the first thing a fiber does.
  void AfterSuspend() { __sanitizer_finish_switch_fiber(fiber_fake_, &caller_, &caller_bytes_); }

 private:
  void* stack_;
  size_t bytes_;
  const void* caller_ = nullptr;
  size_t caller_bytes_ = 0;
  void* caller_fake_ = nullptr;
  void* fiber_fake_ = nullptr;
};

#elif defined(__SANITIZE_THREAD__)

// The two switches are always inlined: a call would be entered on one call stack and left on the other.
class FiberSanitizer {
 public:
  FiberSanitizer(void*, size_t) : fiber_(__tsan_create_fiber(0)) {}
  ~FiberSanitizer() { __tsan_destroy_fiber(fiber_); }
  [[gnu::always_inline]] void BeforeResume() {
    caller_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fiber_, __tsan_switch_to_fiber_no_sync);
  }
  void AfterResume() {}
  [[gnu::always_inline]] void BeforeSuspend() {
    __tsan_switch_to_fiber(caller_, __tsan_switch_to_fiber_no_sync);
  }
  void AfterSuspend() {}

 private:
  void* fiber_;
  void* caller_ = nullptr;
};

#else

class FiberSanitizer {
 public:
  FiberSanitizer(void*, size_t) {}
  void BeforeResume() {}
  void AfterResume() {}
  void BeforeSuspend() {}
  void AfterSuspend() {}
};

#endif

// All that was done before HandOver(x) comes before all that is done after a later TakeOver(x).
#if defined(__SANITIZE_THREAD__)
inline void HandOver(void* at) { __tsan_release(at); }
inline void TakeOver(void* at) { __tsan_acquire(at); }
#else
inline void HandOver(void*) {}
inline void TakeOver(void*) {}
#endif

}  // namespace nibble::kernels::cuda_emulated

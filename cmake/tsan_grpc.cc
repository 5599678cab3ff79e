// Linked into everything that runs under the thread sanitizer. Debian's gRPC and Abseil are not built with
// it: their locks are futexes and their queues atomics of their own, so the sanitizer does not see that these
// order anything; and gRPC hands every call from thread to thread by them. What is defined here comes before
// the libraries' functions of the same names, in the libraries too: it calls those and tells the sanitizer.
//
// Only what gRPC needs. Our own code locks with std::mutex. What must be seen all the same is planted in
// tests/sanitizers.
#include <dlfcn.h>
#include <grpc/grpc.h>
#include <grpcpp/support/server_callback.h>
#include <sanitizer/tsan_interface.h>

#include "absl/synchronization/mutex.h"

#if ABSL_LTS_RELEASE_VERSION != 20220623
#error "the functions below are Abseil 20220623's: run the thread sanitizer on Debian 12"
#endif

namespace {

// The library's own function. A method takes its object first, as x86-64 and AArch64 call it.
template <typename Function>
Function Next(const char* symbol) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, symbol));
}

// Around a wait: the lock is given up, and held again afterwards.
template <typename Wait>
auto Waiting(void* mutex, const Wait& wait) {
  struct Held {
    explicit Held(void* m) : mutex(m) { __tsan_release(mutex); }
    ~Held() { __tsan_acquire(mutex); }
    void* mutex;
  } held(mutex);
  return wait();
}

}  // namespace

// --- Operations of a call: what came before one is asked for, and what the thread did that ended it, comes
// before what is done at its end. A call itself begins as the end of one: the thread that finds it on the
// wire makes its objects, another runs it and lets go of them. ---

extern "C" {

grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* ops, size_t count, void* tag,
                                      void* reserved) {
  static const auto next = Next<decltype(&grpc_call_start_batch)>("grpc_call_start_batch");
  __tsan_release(tag);
  return next(call, ops, count, tag, reserved);
}

// Puts the tag into a queue without a lock. Of C++ in the library; a status is passed by its address.
#define NIBBLE_END_OP \
  "_Z14grpc_cq_end_opP21grpc_completion_queuePvN4absl7debian36StatusEPFvS1_P18grpc_cq_completionES1_S6_b"
using EndOp = void(grpc_completion_queue* queue, void* tag, void* status, void (*done)(void*, void*),
                   void* argument, void* storage, bool internal);
EndOp NibbleEndOp __asm__(NIBBLE_END_OP);
void NibbleEndOp(grpc_completion_queue* queue, void* tag, void* status, void (*done)(void*, void*),
                 void* argument, void* storage, bool internal) {
  static const auto next = Next<EndOp*>(NIBBLE_END_OP);
  __tsan_release(tag);
  next(queue, tag, status, done, argument, storage, internal);
}

// And takes one out: the threads on which a server's calls run.
grpc_event grpc_completion_queue_next(grpc_completion_queue* queue, gpr_timespec deadline, void* reserved) {
  static const auto next = Next<decltype(&grpc_completion_queue_next)>("grpc_completion_queue_next");
  const grpc_event event = next(queue, deadline, reserved);
  if (event.type == GRPC_OP_COMPLETE) __tsan_acquire(event.tag);
  return event;
}

grpc_event grpc_completion_queue_pluck(grpc_completion_queue* queue, void* tag, gpr_timespec deadline,
                                       void* reserved) {
  static const auto next = Next<decltype(&grpc_completion_queue_pluck)>("grpc_completion_queue_pluck");
  const grpc_event event = next(queue, tag, deadline, reserved);
  __tsan_acquire(tag);
  return event;
}

// grpc::internal::CallbackWithSuccessTag::StaticRun, with which every operation of a server ends.
#define NIBBLE_STATIC_RUN \
  "_ZN4grpc8internal22CallbackWithSuccessTag9StaticRunEP29grpc_completion_queue_functori"
void NibbleRunTag(grpc_completion_queue_functor* tag, int ok) __asm__(NIBBLE_STATIC_RUN);
void NibbleRunTag(grpc_completion_queue_functor* tag, int ok) {
  static const auto next = Next<decltype(&NibbleRunTag)>(NIBBLE_STATIC_RUN);
  __tsan_acquire(tag);
  next(tag, ok);
}

}  // extern "C"

// --- A call's counts of what it still waits for. The headers' halves are compiled with us and seen, the
// library's are not: the last to count down, whose thread goes on, may be one of those. ---

namespace grpc::internal {

void ServerCallbackCall::ScheduleOnDone(bool inline_ondone) {
  static const auto next = Next<void (*)(ServerCallbackCall*, bool)>(
      "_ZN4grpc8internal18ServerCallbackCall14ScheduleOnDoneEb");
  __tsan_acquire(&callbacks_outstanding_);
  next(this, inline_ondone);
}

void ServerCallbackCall::CallOnCancel(ServerReactor* reactor) {
  // The library calls OnCancel on a thread of its own and counts down right behind it.
  struct Seen final : ServerReactor {
    void OnDone() override {}
    void OnCancel() override {
      reactor->OnCancel();
      __tsan_release(count);
      delete this;
    }
    ServerReactor* reactor = nullptr;
    void* count = nullptr;
  };
  static const auto next = Next<void (*)(ServerCallbackCall*, ServerReactor*)>(
      "_ZN4grpc8internal18ServerCallbackCall12CallOnCancelEPNS0_13ServerReactorE");
  __tsan_acquire(&on_cancel_conditions_remaining_);
  if (reactor->InternalInlineable()) return next(this, reactor);
  auto* seen = new Seen;
  seen->reactor = reactor;
  seen->count = &callbacks_outstanding_;
  next(this, seen);
}

}  // namespace grpc::internal

// --- Abseil's locks. ---

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  static const auto next = Next<void (*)(Mutex*)>("_ZN4absl7debian35Mutex4LockEv");
  next(this);
  __tsan_acquire(this);
}

bool Mutex::TryLock() {
  static const auto next = Next<bool (*)(Mutex*)>("_ZN4absl7debian35Mutex7TryLockEv");
  const bool locked = next(this);
  if (locked) __tsan_acquire(this);
  return locked;
}

void Mutex::Unlock() {
  static const auto next = Next<void (*)(Mutex*)>("_ZN4absl7debian35Mutex6UnlockEv");
  __tsan_release(this);
  next(this);
}

// As the library has it, but by way of the Unlock above.
void ReleasableMutexLock::Release() {
  mu_->Unlock();
  mu_ = nullptr;
}

void CondVar::Wait(Mutex* mu) {
  static const auto next = Next<void (*)(CondVar*, Mutex*)>("_ZN4absl7debian37CondVar4WaitEPNS0_5MutexE");
  Waiting(mu, [&] { next(this, mu); });
}

bool CondVar::WaitWithTimeout(Mutex* mu, Duration timeout) {
  static const auto next = Next<bool (*)(CondVar*, Mutex*, Duration)>(
      "_ZN4absl7debian37CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
  return Waiting(mu, [&] { return next(this, mu, timeout); });
}

bool CondVar::WaitWithDeadline(Mutex* mu, Time deadline) {
  static const auto next = Next<bool (*)(CondVar*, Mutex*, Time)>(
      "_ZN4absl7debian37CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
  return Waiting(mu, [&] { return next(this, mu, deadline); });
}

ABSL_NAMESPACE_END
}  // namespace absl

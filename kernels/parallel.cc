#include "kernels/parallel.h"

#include <cstdlib>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include "kernels/check.h"

namespace nibble::kernels {
namespace {

// About 30 microseconds: longer than the gap between two ops of a step, shorter than a person or another
// process minds.
constexpr int kSpins = 1000;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

#if defined(__linux__)
// What the process was given, before any thread of it was pinned.
const cpu_set_t& Allowed() {
  static const cpu_set_t allowed = [] {
    cpu_set_t set;
    CPU_ZERO(&set);
    sched_getaffinity(0, sizeof set, &set);
    return set;
  }();
  return allowed;
}

// Without effect where the system refuses: results do not depend on it.
void PinOnce(int thread) {
  thread_local bool pinned = false;
  if (pinned) return;
  pinned = true;
  const int count = CPU_COUNT(&Allowed());
  if (count == 0) return;
  int left = thread % count, cpu = 0;
  while (!CPU_ISSET(cpu, &Allowed()) || left-- > 0) ++cpu;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  sched_setaffinity(0, sizeof one, &one);
}
#else
void Allowed() {}
void PinOnce(int) {}
#endif

}  // namespace

Placement AskedPlacement() {
  const char* asked = std::getenv("NIBBLE_PIN_THREADS");
  return asked != nullptr && std::strcmp(asked, "1") == 0 ? Placement::kPinned : Placement::kFree;
}

struct ThreadPool::Workers {
  std::vector<std::thread> threads;
};

ThreadPool::ThreadPool(int threads, Placement placement)
    : threads_(threads), placement_(placement), workers_(std::make_unique<Workers>()) {
  KERNEL_CHECK(threads >= 1 && threads <= 4096);
  if (placement == Placement::kPinned) Allowed();
  for (int thread = 1; thread < threads; ++thread) {
    try {
      workers_->threads.emplace_back([this, thread] { WorkerLoop(thread); });
    } catch (const std::system_error&) {
      threads_ = thread;
      break;
    }
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  state_.fetch_add(uint64_t{1} << 32, std::memory_order_release);
  state_.notify_all();
  for (std::thread& thread : workers_->threads) thread.join();
}

void ThreadPool::RunErased(int64_t pieces, Function function, void* argument) {
  KERNEL_CHECK(pieces >= 0 && pieces < int64_t{1} << 32);
  if (pieces == 0) return;
  if (placement_ == Placement::kPinned) PinOnce(0);
  pieces_ = pieces;
  function_ = function;
  argument_ = argument;
  done_.store(0, std::memory_order_relaxed);
  const uint64_t run = (state_.load(std::memory_order_relaxed) >> 32) + 1;
  state_.store(run << 32 | static_cast<uint64_t>(pieces), std::memory_order_release);
  if (pieces > 1 && threads_ > 1) state_.notify_all();
  TakePieces(0);
  for (int spin = 0;; ++spin) {
    const int64_t done = done_.load(std::memory_order_acquire);
    if (done == pieces) return;
    if (spin < kSpins) {
      Pause();
    } else {
      done_.wait(done, std::memory_order_acquire);
    }
  }
}

bool ThreadPool::TakePieces(int thread) {
  bool any = false;
  uint64_t state = state_.load(std::memory_order_acquire);
  while ((state & 0xFFFFFFFFu) != 0) {
    if (!state_.compare_exchange_weak(state, state - 1, std::memory_order_acq_rel)) continue;
    any = true;
    // The piece just taken is unfinished, so Run has not returned and these fields are its own.
    const int64_t pieces = pieces_;
    function_(argument_, pieces - static_cast<int64_t>(state & 0xFFFFFFFFu), thread);
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == pieces) done_.notify_one();
    state = state_.load(std::memory_order_acquire);
  }
  return any;
}

void ThreadPool::WorkerLoop(int thread) {
  if (placement_ == Placement::kPinned) PinOnce(thread);
  uint64_t seen = state_.load(std::memory_order_acquire);
  while (!stop_.load(std::memory_order_relaxed)) {
    TakePieces(thread);
    seen = state_.load(std::memory_order_acquire);
    if ((seen & 0xFFFFFFFFu) != 0) continue;
    for (int spin = 0; spin < kSpins && state_.load(std::memory_order_relaxed) == seen; ++spin) Pause();
    if (stop_.load(std::memory_order_relaxed)) return;
    state_.wait(seen, std::memory_order_acquire);
  }
}

}  // namespace nibble::kernels

// A small thread pool for kernels.
//
// Run(pieces, fn) calls fn(piece, thread) once for every piece 0 .. pieces-1 and returns when all are
// done. An op cuts its work into pieces whose results do not depend on who runs them, so the bits are the
// same for every number of threads; `thread` (0 .. threads()-1) only picks a private slice of workspace.
//
// The calling thread takes part. Workers spin a short while after each Run and then sleep, and a Run never
// waits for a worker that has not taken a piece, so small ops cost little. Run allocates nothing.
//
// The system places the threads. With kPinned thread i keeps to the i-th processor that the process may use,
// the caller too, from its first Run on: for a machine that does nothing else. Two pinned pools share
// processors.
//
// Threads: one thread at a time may call Run. fn must not throw and must not call Run.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace nibble::kernels {

enum class Placement { kFree, kPinned };
// kPinned with NIBBLE_PIN_THREADS=1 in the environment.
Placement AskedPlacement();

class ThreadPool {
 public:
  // `threads` counts the caller: 1 starts none. Where the system has no more threads, there are fewer:
  // threads() is how many, and the results are the same.
  explicit ThreadPool(int threads, Placement placement = Placement::kFree);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  template <typename F>
  void Run(int64_t pieces, F&& fn) {
    using Fn = std::remove_reference_t<F>;
    RunErased(pieces, [](void* f, int64_t piece, int thread) { (*static_cast<Fn*>(f))(piece, thread); },
              const_cast<void*>(static_cast<const void*>(&fn)));
  }

 private:
  using Function = void (*)(void*, int64_t, int);
  struct Workers;

  void RunErased(int64_t pieces, Function function, void* argument);
  // Takes pieces of the current Run until none is left; false when there was none.
  bool TakePieces(int thread);
  void WorkerLoop(int thread);

  int threads_;  // constant once it is made
  const Placement placement_;
  // The Run's number in the high half, pieces not yet taken in the low half: one compare-exchange both
  // takes a piece and proves that the job below is still the one it belongs to.
  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<bool> stop_{false};
  int64_t pieces_ = 0;
  Function function_ = nullptr;
  void* argument_ = nullptr;
  std::unique_ptr<Workers> workers_;
};

// Run on `pool`, or here when it is null.
template <typename F>
void RunPieces(ThreadPool* pool, int64_t pieces, F&& fn) {
  if (pool != nullptr && pool->threads() > 1 && pieces > 1) {
    pool->Run(pieces, fn);
  } else {
    for (int64_t piece = 0; piece < pieces; ++piece) fn(piece, 0);
  }
}

inline int PoolThreads(const ThreadPool* pool) { return pool == nullptr ? 1 : pool->threads(); }

}  // namespace nibble::kernels

// The machine behind emulate.h: fibers, and a scheduler that runs one block's threads warp by warp.
#include "kernels/cuda/emulate.h"

#include <sys/mman.h>

#include <atomic>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "kernels/counter.h"
#include "kernels/cuda/emulate_sanitizers.h"
#include "kernels/parallel.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace nibble::kernels::cuda_emulated {
namespace {

// --- Fibers ------------------------------------------------------------------------------------------

// A stack and where on it to go on. Resume runs it until it calls Suspend, in the same host thread. A fiber
// runs `entry` over and over: it suspends when it is through, and can then be used for other work.
class Fiber {
 public:
  explicit Fiber(void (*entry)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  void Resume();
  void Suspend();
  void Begin() { sanitizer_->AfterSuspend(); }  // `entry` calls it first

 private:
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  static constexpr size_t kStackBytes = 1024 * 1024;  // their frames are several times as large
#else
  static constexpr size_t kStackBytes = 256 * 1024;
#endif
  static constexpr size_t kGuardBytes = 4096;
  [[gnu::always_inline]] void Switch(bool to_fiber);

  char* stack_;
  std::optional<FiberSanitizer> sanitizer_;
#if defined(__x86_64__)
  void* fiber_sp_;
  void* caller_sp_ = nullptr;
#else
  ucontext_t fiber_, caller_;
#endif
};

#if defined(__x86_64__)
// swapcontext asks the system to switch signal masks, which costs more than all the rest of a kernel's
// emulation; this does what a function call must keep and no more.
extern "C" void NibbleEmulateSwitch(void** save_sp, void* load_sp);
asm(R"(
  .text
  .type NibbleEmulateSwitch, @function
  .hidden NibbleEmulateSwitch
NibbleEmulateSwitch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size NibbleEmulateSwitch, .-NibbleEmulateSwitch
)");
#endif

Fiber::Fiber(void (*entry)()) {
  void* map = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  KERNEL_CHECK(map != MAP_FAILED);
  KERNEL_CHECK(mprotect(map, kGuardBytes, PROT_NONE) == 0);
  stack_ = static_cast<char*>(map);
  sanitizer_.emplace(stack_ + kGuardBytes, kStackBytes - kGuardBytes);
#if defined(__x86_64__)
  // As if `entry` had been called: six saved registers, then where to return to, then (nothing) its caller.
  void** top = reinterpret_cast<void**>(stack_ + kStackBytes) - 2;
  top[0] = reinterpret_cast<void*>(entry);
  fiber_sp_ = top - 6;
#else
  KERNEL_CHECK(getcontext(&fiber_) == 0);
  fiber_.uc_stack.ss_sp = stack_;
  fiber_.uc_stack.ss_size = kStackBytes;
  fiber_.uc_link = nullptr;
  makecontext(&fiber_, entry, 0);
#endif
}

Fiber::~Fiber() {
  sanitizer_.reset();
  munmap(stack_, kStackBytes);
}

inline void Fiber::Switch(bool to_fiber) {
#if defined(__x86_64__)
  to_fiber ? NibbleEmulateSwitch(&caller_sp_, fiber_sp_) : NibbleEmulateSwitch(&fiber_sp_, caller_sp_);
#else
  to_fiber ? swapcontext(&caller_, &fiber_) : swapcontext(&fiber_, &caller_);
#endif
}

NIBBLE_UNSEEN void Fiber::Resume() {
  sanitizer_->BeforeResume();
  Switch(true);
  sanitizer_->AfterResume();
}

NIBBLE_UNSEEN void Fiber::Suspend() {
  sanitizer_->BeforeSuspend();
  Switch(false);
  sanitizer_->AfterSuspend();
}

// --- A block -----------------------------------------------------------------------------------------

// A warp operation: lanes arrive with values until all are there, then each reads what the others brought.
struct Meeting {
  unsigned mask = 0;
  unsigned arrived = 0;
  unsigned unread = 0;  // lanes for which the values must stay
  uint64_t values[32];

  NIBBLE_UNSEEN bool IsFree() const { return arrived == 0 && unread == 0; }
};

struct Warp {
  // Lanes may meet under several masks at a time, and each lane may still be reading of another meeting.
  Meeting meetings[64];
  unsigned running = 0;  // lanes that have not returned
};

struct Thread {
  uint3 index{};
  unsigned lane = 0;
  Warp* warp = nullptr;
  std::unique_ptr<Fiber> fiber;  // null before it starts and after it returns
  bool done = false;
  bool at_barrier = false;
  bool odd_barrier = false;
  Meeting* meeting = nullptr;  // the last one: waits for it, or may still be reading of it

  NIBBLE_UNSEEN bool CanRun() const {
    return !done && !at_barrier && (meeting == nullptr || (meeting->unread >> lane & 1) != 0);
  }
  NIBBLE_UNSEEN void LeaveMeeting() {
    if (meeting != nullptr) meeting->unread &= ~(1u << lane);
    meeting = nullptr;
  }
};

// The order in which the waiting ones of `count` warps, or of a warp's lanes, go on: upwards, downwards, or
// another one each time, made of the seed.
class Order {
 public:
  Order(uint64_t seed, int kind) : seed_(seed), kind_(kind) {}
  // Before each walk through all.
  void Next() {
    if (kind_ < 2) return;
    // Round from somewhere, in steps that meet all: those of a prime number above any count.
    constexpr unsigned kSteps[] = {1, 1033, 1039, 1049};
    const uint64_t bits = CounterBits(seed_, 0, walk_++);
    from_ = static_cast<unsigned>(bits >> 48);
    step_ = kSteps[bits & 3];
  }
  unsigned At(unsigned i, unsigned count) const {
    if (kind_ < 2) return kind_ == 0 ? i : count - 1 - i;
    return (from_ + i * step_) % count;
  }

 private:
  uint64_t seed_;
  int kind_;
  uint64_t walk_ = 0;
  unsigned from_ = 0, step_ = 1;
};

// Runs blocks one after the other; each host thread has one.
class BlockRunner {
 public:
  void Run(dim3 block, int64_t shared_bytes, Order order, void (*body)(void*), void* argument);
  void SyncThreads(int place);
  const uint64_t* Exchange(unsigned mask, uint64_t value, bool orders_memory);
  void* shared() { return shared_.data() + kSharedGuard; }
  int64_t shared_bytes() const { return static_cast<int64_t>(shared_.size() - 2 * kSharedGuard); }

 private:
  static constexpr size_t kSharedGuard = 256;
  static constexpr unsigned char kGuardByte = 0xA5;

  static void FiberEntry();
  void StartBlock(dim3 block, int64_t shared_bytes);
  void Arrange(dim3 block);
  void RunToBarrier(unsigned warp, Order& order);
  void RunThread(Thread& thread);
  void Finish(Thread& thread);
  static Meeting& Join(Warp& warp, unsigned mask);
  static void CompleteIfAllThere(Warp& warp, Meeting& meeting);
  void CheckSharedIntact(int64_t shared_bytes) const;

  dim3 block_{0, 0, 0};  // as threads_ are arranged
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<std::unique_ptr<Fiber>> idle_;
  std::vector<unsigned char> shared_;
  Thread* current_ = nullptr;
  Fiber* current_fiber_ = nullptr;
  int waiting_ = 0;  // at the barrier
  int place_ = 0;    // of the barrier they wait at
  // What is handed over at these: see emulate_sanitizers.h. Who is at a barrier may not have taken over yet
  // when another thread comes to the next one, so barriers take turns.
  char started_ = 0, ended_ = 0, barriers_[2] = {};
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
};

NIBBLE_UNSEEN BlockRunner& Runner() {
  static thread_local BlockRunner runner;
  return runner;
}

NIBBLE_UNSEEN void BlockRunner::FiberEntry() {
  Runner().current_fiber_->Begin();
  while (true) {
    BlockRunner& runner = Runner();
    TakeOver(&runner.started_);
    runner.body_(runner.argument_);
    HandOver(&runner.ended_);
    runner.current_->done = true;
    runner.current_fiber_->Suspend();
  }
}

void BlockRunner::StartBlock(dim3 block, int64_t shared_bytes) {
  if (block.x != block_.x || block.y != block_.y || block.z != block_.z) Arrange(block);
  for (Warp& warp : warps_) warp.running = 0;  // its meetings are all over
  for (Thread& thread : threads_) {
    thread.warp->running |= 1u << thread.lane;
    thread.done = thread.odd_barrier = false;
  }
  shared_.assign(static_cast<size_t>(shared_bytes) + 2 * kSharedGuard, kGuardByte);
  std::memset(shared(), 0xFF, static_cast<size_t>(shared_bytes));
  HandOver(&started_);
}

void BlockRunner::Arrange(dim3 block) {
  const size_t count = static_cast<size_t>(block.x) * block.y * block.z;
  KERNEL_CHECK(count > 0 && count <= 1024);
  block_ = block;
  threads_.resize(count);
  warps_.resize((count + 31) / 32);
  for (unsigned i = 0; i < count; ++i) {
    threads_[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
    threads_[i].lane = i % 32;
    threads_[i].warp = &warps_[i / 32];
  }
}

void BlockRunner::Run(dim3 block, int64_t shared_bytes, Order order, void (*body)(void*), void* argument) {
  body_ = body;
  argument_ = argument;
  StartBlock(block, shared_bytes);
  const auto warps = static_cast<unsigned>(warps_.size());
  while (true) {
    Order of_warps = order;
    of_warps.Next();
    for (unsigned i = 0; i < warps; ++i) RunToBarrier(of_warps.At(i, warps), order);
    order.Next();
    if (waiting_ == 0) break;  // all have returned
    waiting_ = 0;
    for (Thread& thread : threads_) thread.at_barrier = false;
  }
  TakeOver(&ended_);
  CheckSharedIntact(shared_bytes);
}

// Until every lane has returned or stands at the block's barrier.
void BlockRunner::RunToBarrier(unsigned warp, Order& order) {
  const size_t first = warp * size_t{32};
  const auto lanes = static_cast<unsigned>(std::min<size_t>(32, threads_.size() - first));
  for (bool progress = true; progress;) {
    progress = false;
    order.Next();
    for (unsigned i = 0; i < lanes; ++i) {
      Thread& thread = threads_[first + order.At(i, lanes)];
      if (!thread.CanRun()) continue;
      RunThread(thread);
      progress = true;
    }
  }
  for (unsigned i = 0; i < lanes; ++i) {
    const bool waits_for_a_lane_that_never_comes =
        !threads_[first + i].done && !threads_[first + i].at_barrier;
    KERNEL_CHECK(!waits_for_a_lane_that_never_comes);
  }
}

NIBBLE_UNSEEN void BlockRunner::RunThread(Thread& thread) {
  if (thread.fiber == nullptr) {
    if (idle_.empty()) idle_.push_back(std::make_unique<Fiber>(FiberEntry));
    thread.fiber = std::move(idle_.back());
    idle_.pop_back();
  }
  current_ = &thread;
  current_fiber_ = thread.fiber.get();
  threadIdx = thread.index;
  thread.fiber->Resume();
  if (thread.done) Finish(thread);
}

NIBBLE_UNSEEN void BlockRunner::Finish(Thread& thread) {
  idle_.push_back(std::move(thread.fiber));
  thread.LeaveMeeting();
  thread.warp->running &= ~(1u << thread.lane);
  for (Meeting& meeting : thread.warp->meetings)  // others need not wait for it any longer
    if (meeting.arrived != 0) CompleteIfAllThere(*thread.warp, meeting);
}

NIBBLE_UNSEEN void BlockRunner::SyncThreads(int place) {
  Thread& self = *current_;
  const bool all_wait_at_the_same_barrier = waiting_ == 0 || place == place_;
  KERNEL_CHECK(all_wait_at_the_same_barrier);
  place_ = place;
  char* const barrier = &barriers_[self.odd_barrier ? 1 : 0];
  self.odd_barrier = !self.odd_barrier;
  self.at_barrier = true;
  ++waiting_;
  HandOver(barrier);
  current_fiber_->Suspend();
  TakeOver(barrier);
}

NIBBLE_UNSEEN const uint64_t* BlockRunner::Exchange(unsigned mask, uint64_t value, bool orders_memory) {
  Thread& self = *current_;
  const bool mask_names_the_calling_lane = (mask >> self.lane & 1) != 0;
  KERNEL_CHECK(mask_names_the_calling_lane);
  self.LeaveMeeting();
  Meeting& meeting = Join(*self.warp, mask);
  self.meeting = &meeting;
  meeting.values[self.lane] = value;
  meeting.arrived |= 1u << self.lane;
  if (orders_memory) HandOver(&meeting);
  CompleteIfAllThere(*self.warp, meeting);
  if (!self.CanRun()) current_fiber_->Suspend();
  if (orders_memory) TakeOver(&meeting);
  return meeting.values;
}

// The meeting of this mask that lanes are waiting in, or a new one.
NIBBLE_UNSEEN Meeting& BlockRunner::Join(Warp& warp, unsigned mask) {
  Meeting* free = nullptr;
  for (Meeting& meeting : warp.meetings) {
    if (meeting.arrived != 0 && meeting.mask == mask) return meeting;
    if (free == nullptr && meeting.IsFree()) free = &meeting;
  }
  KERNEL_CHECK(free != nullptr);
  free->mask = mask;
  for (uint64_t& value : free->values) value = ~uint64_t{0};
  return *free;
}

NIBBLE_UNSEEN void BlockRunner::CompleteIfAllThere(Warp& warp, Meeting& meeting) {
  if ((meeting.mask & warp.running & ~meeting.arrived) != 0) return;
  meeting.unread = meeting.arrived;
  meeting.arrived = 0;
}

void BlockRunner::CheckSharedIntact(int64_t shared_bytes) const {
  const unsigned char* behind = shared_.data() + kSharedGuard + shared_bytes;
  bool shared_memory_was_written_outside_of_its_bounds = false;
  for (size_t i = 0; i < kSharedGuard; ++i)
    shared_memory_was_written_outside_of_its_bounds |= shared_[i] != kGuardByte || behind[i] != kGuardByte;
  KERNEL_CHECK(!shared_memory_was_written_outside_of_its_bounds);
}

std::atomic<uint64_t> launches = 0;

}  // namespace

void RunGrid(ThreadPool* pool, dim3 grid, dim3 block, int64_t shared_bytes, void (*thread)(void*),
             void* argument) {
  const bool grid_is_within_a_devices_limits =
      grid.x <= 0x7FFFFFFFu && grid.y <= 0xFFFFu && grid.z <= 0xFFFFu;
  const bool block_is_within_a_devices_limits = block.x <= 1024 && block.y <= 1024 && block.z <= 64;
  const bool shared_memory_is_within_a_devices_limits = shared_bytes <= 227 * 1024;
  KERNEL_CHECK(grid_is_within_a_devices_limits);
  KERNEL_CHECK(block_is_within_a_devices_limits);
  KERNEL_CHECK(shared_memory_is_within_a_devices_limits);
  const uint64_t launch = launches.fetch_add(1, std::memory_order_relaxed);
  RunPieces(pool, static_cast<int64_t>(grid.x) * grid.y * grid.z, [&](int64_t piece, int) {
    const auto i = static_cast<unsigned>(piece);
    gridDim = grid;
    blockDim = block;
    blockIdx = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
    const uint64_t seed = launch + i;
    Runner().Run(block, shared_bytes, Order(seed, static_cast<int>(seed % 3)), thread, argument);
  });
}

void BeginOrders() { launches = 0; }
uint64_t Launches() { return launches; }

void* DynamicSharedBytes() { return Runner().shared(); }
int64_t DynamicSharedSize() { return Runner().shared_bytes(); }
NIBBLE_UNSEEN void SyncThreads(int place) { Runner().SyncThreads(place); }
NIBBLE_UNSEEN const uint64_t* ExchangeInWarp(unsigned mask, uint64_t value, bool orders_memory) {
  return Runner().Exchange(mask, value, orders_memory);
}

}  // namespace nibble::kernels::cuda_emulated

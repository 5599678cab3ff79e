#include "kernels/cuda/emulated.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/check.h"
#include "kernels/cuda/emulate.h"
#include "kernels/cuda/quantize.h"
#include "kernels/each_op.h"

namespace nibble::kernels {

struct Recording {
  std::vector<std::function<void()>> launches;
  int64_t bytes = 0;
};

namespace {

constexpr int64_t kPage = 4096;
constexpr int64_t kMemoryBytes = int64_t{1} << 30;  // of the emulated device
constexpr int64_t kFixedBytes = int64_t{1} << 20, kLateBytes = int64_t{1} << 18;

EmulatedBytes held;
int64_t ops_left = -1;  // -1: no failure in sight
bool refuse_next = false;
EmulatedCounts counts;
int64_t launch_bytes = kEmulatedLaunchBytes;
int64_t queued = 0;  // on the compute lane
bool refuse_next_pinned = false;

int64_t PageUp(int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

// The device memory of this process; open while an op or a copy runs.
class GuardedMemory {
 public:
  void* Allocate(int64_t bytes) {
    void* address = mmap(nullptr, static_cast<size_t>(PageUp(bytes)), PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) return nullptr;
    blocks_[address] = bytes;
    held.device += bytes;
    return address;
  }
  void Release(void* address) {
    const auto block = blocks_.find(address);
    KERNEL_CHECK(block != blocks_.end());
    munmap(address, static_cast<size_t>(PageUp(block->second)));
    held.device -= block->second;
    blocks_.erase(block);
  }
  void Open() { Protect(PROT_READ | PROT_WRITE); }
  void Close() { Protect(PROT_NONE); }
  int64_t used_bytes() const { return held.device; }

 private:
  void Protect(int protection) {
    for (const auto& [address, bytes] : blocks_) {
      KERNEL_CHECK(mprotect(address, static_cast<size_t>(PageUp(bytes)), protection) == 0);
    }
  }
  std::map<void*, int64_t> blocks_;
};

GuardedMemory memory;
bool failed = false;

class Opened {
 public:
  Opened() { memory.Open(); }
  ~Opened() { memory.Close(); }
};

// What is being recorded; null = nothing.
Recording* recording = nullptr;

// An argument of an op as a recording keeps it: what it points to on the host is gone when it is replayed.
template <typename T>
struct Kept {
  explicit Kept(const T& value) : value(value) {}
  const T& get() const { return value; }
  std::decay_t<T> value;
};
template <>
struct Kept<const LinearArgs&> {
  explicit Kept(const LinearArgs& args) : args(args) {
    if (args.lora != nullptr) lora = *args.lora;
  }
  LinearArgs get() const {
    LinearArgs out = args;
    if (args.lora != nullptr) out.lora = &lora;
    return out;
  }
  LinearArgs args;
  LoraArgs lora;
};

template <>
struct Kept<const LinearGroup&> {
  explicit Kept(const LinearGroup& group) : group(group) {
    for (int i = 0; i < group.count; ++i) {
      if (group.linear[i].lora != nullptr) lora[i] = *group.linear[i].lora;
    }
  }
  LinearGroup get() const {
    LinearGroup out = group;
    for (int i = 0; i < group.count; ++i) {
      if (group.linear[i].lora != nullptr) out.linear[i].lora = &lora[i];
    }
    return out;
  }
  LinearGroup group;
  LoraArgs lora[kMostGrouped];
};

// The emulated tables' ops, each between opening the device's memory and closing it: bf16 and fp16, with
// either attention.
constexpr int kTables = 4;
const KernelTable* inner[kTables];

template <int kWhich, auto kOp>
struct Guarded;
template <int kWhich, typename... Args, void (*KernelTable::*kOp)(Context*, Args...)>
struct Guarded<kWhich, kOp> {
  static void Call(Context* context, Args... args) {
    if (recording != nullptr) {
      const DecodeAhead ahead = context->ahead != nullptr ? *context->ahead : DecodeAhead{};
      recording->launches.push_back([context, then = *context, ahead,
                                     kept = std::tuple(Kept<Args>(args)...)] {
        const Context now = std::exchange(*context, then);
        if (then.ahead != nullptr) {
          std::copy(std::begin(ahead.next), std::end(ahead.next), std::begin(then.ahead->next));
          then.ahead->next_count = ahead.next_count;
          then.ahead->next_backward = ahead.next_backward;
        }
        std::apply([&](const auto&... arg) { Call(context, arg.get()...); }, kept);
        *context = now;
      });
      return;
    }
    if (failed || ops_left == 0) {
      failed = true;
      return;
    }
    if (ops_left > 0) --ops_left;
    ++queued;
    const Opened opened;
    (inner[kWhich]->*kOp)(context, args...);
  }
};

template <int kWhich>
KernelTable MakeGuarded(const KernelTable& table) {
  inner[kWhich] = &table;
  KernelTable guarded = table;
#define NIBBLE_GUARD(op) guarded.op = &Guarded<kWhich, &KernelTable::op>::Call;
  NIBBLE_EACH_OP(NIBBLE_GUARD)
#undef NIBBLE_GUARD
  return guarded;
}

template <int kWhich = 0>
const KernelTable& GuardedTable(const KernelTable& table) {
  static const KernelTable* of = nullptr;
  static KernelTable guarded;
  if (of == nullptr) {
    of = &table;
    guarded = MakeGuarded<kWhich>(table);
  }
  if (of == &table) return guarded;
  if constexpr (kWhich + 1 < kTables) return GuardedTable<kWhich + 1>(table);
  KERNEL_CHECK(false);
}

constexpr Encoders kEncoders = {
    .quantize =
        [](auto... args) {
          const Opened opened;
          ++counts.encodings;
          cuda_emulated::Quantize(args...);
        },
    .quantize_absmax =
        [](auto... args) {
          const Opened opened;
          cuda_emulated::QuantizeAbsmax(args...);
        },
};

class EmulatedBackend final : public Backend {
 public:
  explicit EmulatedBackend(const KernelTable& table) : table_(GuardedTable(table)) {}
  ~EmulatedBackend() override {
    for (const auto& [address, bytes] : pinned_) std::free(address);
  }

  const KernelTable& table() const override { return table_; }
  Context& context() override { return context_; }
  bool is_host() const override { return false; }

  void* Allocate(int64_t bytes) override {
    KERNEL_CHECK(bytes > 0);
    if (!Synchronize()) return nullptr;
    if (refuse_next || bytes > free_bytes()) {
      refuse_next = false;
      fault_ = Fault::kOutOfMemory;
      return nullptr;
    }
    fault_ = Fault::kNone;
    return memory.Allocate(bytes);
  }
  void Release(void* device) override {
    Synchronize();
    memory.Release(device);
  }
  void* AllocatePinned(int64_t bytes) override {
    if (std::exchange(refuse_next_pinned, false)) return nullptr;
    void* address = std::aligned_alloc(kPage, static_cast<size_t>(PageUp(bytes)));
    if (address == nullptr) return nullptr;
    pinned_[address] = bytes;
    held.pinned += bytes;
    return address;
  }
  void ReleasePinned(void* host) override {
    const auto block = pinned_.find(host);
    const bool nothing_is_on_its_way = reading_.empty();
    KERNEL_CHECK(block != pinned_.end() && nothing_is_on_its_way);
    held.pinned -= block->second;
    pinned_.erase(block);
    std::free(host);
  }

  // A copy lane is as late as it may be: its copies happen when somebody waits for them. It might as well be
  // early: so it has waited, itself or by another lane, for all that the compute lane was given. What the
  // compute lane copies out is read at once and arrives at Synchronize; what it copies in from page-locked
  // memory must stay as it was until then, for a device may read it as late.
  void CopyIn(Lane lane, void* device, const void* host, int64_t bytes) override {
    Copy copy{device, host, bytes};
    if (lane != Lane::kCompute && !IsPinned(host)) Snapshot(copy);
    if (lane == Lane::kCompute && IsPinned(host)) Snapshot(reading_.emplace_back(copy));
    Queue(lane, std::move(copy));
  }
  void CopyOut(Lane lane, void* host, const void* device, int64_t bytes) override {
    Copy copy{host, device, bytes};
    if (lane != Lane::kCompute) return Queue(lane, std::move(copy));
    if (failed) return;
    const Opened opened;
    Snapshot(copy);
    arrivals_.push_back(std::move(copy));
  }
  void CopyWithin(Lane lane, void* to, const void* from, int64_t bytes) override {
    if (recording != nullptr) {
      recording->launches.push_back([this, lane, to, from, bytes] { CopyWithin(lane, to, from, bytes); });
      return;
    }
    Queue(lane, {to, from, bytes});
  }
  void Fill(void* device, uint8_t byte, int64_t bytes) override {
    if (recording != nullptr) {
      recording->launches.push_back([this, device, byte, bytes] { Fill(device, byte, bytes); });
      return;
    }
    if (failed) return;
    ++queued;
    const Opened opened;
    std::memset(device, byte, static_cast<size_t>(bytes));
  }
  void Wait(Lane waiting, Lane awaited) override {
    RunQueue(awaited);
    const int64_t seen = awaited == Lane::kCompute ? queued : seen_[static_cast<int>(awaited)];
    int64_t& mine = seen_[static_cast<int>(waiting)];
    mine = std::max(mine, seen);
  }
  bool Synchronize() override {
    for (const Lane lane : {Lane::kIn, Lane::kOut}) RunQueue(lane);
    for (const Copy& copy : arrivals_) std::memcpy(copy.to, copy.bytes.data(), copy.bytes.size());
    arrivals_.clear();
    for (const Copy& copy : reading_) {
      const bool memory_is_as_it_was_copied =
          std::memcmp(copy.from, copy.bytes.data(), copy.bytes.size()) == 0;
      KERNEL_CHECK(memory_is_as_it_was_copied);
    }
    reading_.clear();
    return fault() != Fault::kDevice;
  }

  Fault fault() const override { return failed || context_.error != nullptr ? Fault::kDevice : fault_; }
  const char* error() const override {
    if (failed) return "emulated failure: the device fell off the bus";
    if (context_.error != nullptr) return context_.error;
    return fault_ == Fault::kOutOfMemory ? "emulated failure: the device's memory is taken" : nullptr;
  }
  int64_t fixed_bytes() const override { return kFixedBytes; }
  int64_t late_bytes() const override { return kLateBytes; }
  int64_t free_bytes() const override {
    return kMemoryBytes - kFixedBytes + kLateBytes - memory.used_bytes() - held.recordings;
  }

  DecodeAhead* ahead() override { return &ahead_; }
  const Encoders* encoders() const override { return &kEncoders; }

  bool BeginRecording() override {
    KERNEL_CHECK(recording == nullptr);
    recording = new Recording;
    return true;
  }
  Recording* EndRecording(int64_t most_bytes) override {
    std::unique_ptr<Recording> made(std::exchange(recording, nullptr));
    made->bytes = static_cast<int64_t>(made->launches.size()) * launch_bytes;
    if (made->bytes > most_bytes) return nullptr;
    ++counts.recordings;
    held.recordings += made->bytes;
    return made.release();
  }
  int64_t RecordingBytes(const Recording* recorded) const override { return recorded->bytes; }
  void Replay(Recording* recorded) override {
    ++counts.replays;
    for (const auto& launch : recorded->launches) launch();
  }
  void ReleaseRecording(Recording* recorded) override {
    --counts.recordings;
    held.recordings -= recorded->bytes;
    delete recorded;
  }

 private:
  struct Copy {
    void* to;
    const void* from;
    int64_t size;
    std::vector<std::byte> bytes;  // when `from` has been read already
  };

  static void Snapshot(Copy& copy) {
    const auto* from = static_cast<const std::byte*>(copy.from);
    copy.bytes.assign(from, from + copy.size);
  }
  void Run(const Copy& copy) {
    if (failed) return;
    const Opened opened;
    std::memcpy(copy.to, copy.bytes.empty() ? copy.from : copy.bytes.data(), static_cast<size_t>(copy.size));
  }
  void Queue(Lane lane, Copy copy) {
    if (lane == Lane::kCompute) {
      ++queued;
      return Run(copy);
    }
    const bool the_compute_lane_was_waited_for = failed || seen_[static_cast<int>(lane)] == queued;
    KERNEL_CHECK(the_compute_lane_was_waited_for);
    lanes_[static_cast<int>(lane)].push_back(std::move(copy));
  }
  void RunQueue(Lane lane) {
    auto& queue = lanes_[static_cast<int>(lane)];
    for (const Copy& copy : queue) Run(copy);
    queue.clear();
  }
  bool IsPinned(const void* host) const {
    const auto after = pinned_.upper_bound(const_cast<void*>(host));
    if (after == pinned_.begin()) return false;
    const auto block = std::prev(after);
    return static_cast<const std::byte*>(host) < static_cast<const std::byte*>(block->first) + block->second;
  }

  const KernelTable& table_;
  Context context_;
  DecodeAhead ahead_;
  Fault fault_ = Fault::kNone;
  std::vector<Copy> lanes_[3];
  int64_t seen_[3] = {};  // of `queued`, what each lane begins behind
  std::vector<Copy> arrivals_;  // of the compute lane
  std::vector<Copy> reading_;   // of the compute lane, from page-locked memory
  std::map<void*, int64_t> pinned_;
};

}  // namespace

EmulatedBytes EmulatedCudaBytes() { return held; }
void EmulatedCudaFailAfter(int64_t ops) {
  failed = false;
  ops_left = ops;
}
void EmulatedCudaRefuseNextAllocate() { refuse_next = true; }
void EmulatedCudaRefuseNextPinned() { refuse_next_pinned = true; }
void EmulatedCudaLaunchBytes(int64_t bytes) { launch_bytes = bytes; }

EmulatedCounts EmulatedCudaCounts() {
  counts.launches = static_cast<int64_t>(cuda_emulated::Launches());
  return counts;
}

const char* CudaName() { return "cuda-emulated"; }

std::vector<DeviceInfo> CudaDevices(std::string*) {
  return {{.index = 0,
           .uuid = "GPU-00000000-0000-0000-0000-000000000000",
           .name = "Emulated device",
           .memory_bytes = kMemoryBytes,
           .free_bytes = kMemoryBytes - kFixedBytes - memory.used_bytes(),
           .capability_major = 9,
           .capability_minor = 0,
           .driver = "none"}};
}

std::unique_ptr<Backend> OpenCuda(const CudaOptions& options, std::string* why) {
  if (options.index != 0) {
    *why = "there is one emulated device, number 0";
    return nullptr;
  }
  if (failed) {
    *why = "emulated failure: the device does not answer";
    return nullptr;
  }
  const KernelTable* table = EmulatedCudaTable(options.fp16, why);
  if (table == nullptr) return nullptr;
  return std::make_unique<EmulatedBackend>(*table);
}

}  // namespace nibble::kernels
